"""Fitting a layer where errors in different filters matter together.

With G, shape (F, F), a Fisher information matrix of the layer's output for one, the fit minimises

    tr(G (W - M) S (W - M)^T)

over M of the layout's structure. G is written as D C D with the scales D = diag(d) of the filters and
their correlations C = U^T U. Where L is one dense group without the sum, U D M has the same structure as M: the fit
to U D W in the plain metric is exact, and L is then multiplied by (U D)^-1. Where L has several
groups, the same holds of each, and correlations between filters of different groups are left out. Where the
outputs of K and L are added, or there is no L, only the scales are used: there a full G would tie the rows of K
to one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_igpc.fitting.fit import TOLERANCE, fit_layout, layout_weights, refit_layout, stage_groups
from onnx_igpc.fitting.weights import IgpcWeights, igpc_matrix, relative_error, stage_matrix
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.permutations import invert_permutation

# A filter that does not matter keeps a weight that can be divided by, as in fit_layout.
_LEAST_SCALE = 1e-4
# Added to the diagonal of the correlations, so that their root can be divided by.
_RIDGE = 1e-8
# Of a fit that starts near its end.
_ROUNDS = 2


@dataclass(frozen=True)
class OutputMetric:
    """G = D U^T U D, up to a factor. ``scale``: d, shape (F,), the largest being 1, none below 1e-4;
    ``root``: U, shape (F, F), upper triangular, ``None`` for the identity. Both float64.
    """

    scale: np.ndarray
    root: np.ndarray | None = None

    @classmethod
    def of_scale(cls, filter_scale: np.ndarray | None, filters: int) -> OutputMetric:
        """Filters that count each for itself, by ``filter_scale``, shape (F,); ``None`` for alike.

        Raises:
            ValueError: another shape.
        """
        scale = np.ones(filters)
        if filter_scale is not None:
            scale = np.abs(np.asarray(filter_scale, dtype=np.float64))
            if scale.shape != (filters,):
                raise ValueError(f"filter_scale has shape {scale.shape}, not (F,)")
            scale = np.maximum(scale / max(float(scale.max(initial=0.0)), 1e-300), _LEAST_SCALE)
        return cls(scale)

    @classmethod
    def of_matrix(cls, matrix: np.ndarray, load: float = 0.0) -> OutputMetric:
        """G + load diag(G): correlations are divided by 1 + load, as suits a G that is estimated.

        Args:
            matrix: G, shape (F, F), symmetric and positive semi-definite. Filters that do not matter
                count a little, as in :func:`~onnx_igpc.fitting.fit.fit_layout`; all alike where it is zero.
            load: not negative.

        Raises:
            ValueError: another shape, values that are not finite, or not positive semi-definite.
        """
        G = np.asarray(matrix, dtype=np.float64)
        if G.ndim != 2 or G.shape[0] != G.shape[1] or not np.isfinite(G).all():
            raise ValueError(f"a metric takes finite values of shape (F, F), not {G.shape}")
        power = np.maximum(np.diagonal(G), 0.0)
        largest = float(power.max(initial=0.0))
        if largest <= 0.0:
            return cls.of_scale(None, len(G))
        scale = np.maximum(np.sqrt(power / largest), _LEAST_SCALE)
        correlations = G / largest / np.outer(scale, scale) / (1.0 + load + _RIDGE)
        np.fill_diagonal(correlations, 1.0)
        try:
            return cls(scale, np.linalg.cholesky((correlations + correlations.T) / 2).T)
        except np.linalg.LinAlgError:
            raise ValueError("the metric is not positive semi-definite") from None

    def within(self, groups: Sequence[np.ndarray]) -> OutputMetric:
        """The metric without correlations between filters of different groups, which share out all."""
        if self.root is None or len(groups) == 1:
            return self
        root = np.zeros_like(self.root)
        for each in groups:
            filters = np.sort(each)
            own = self.root[:, filters]
            root[np.ix_(filters, filters)] = np.linalg.cholesky(own.T @ own).T
        return OutputMetric(self.scale, root)

    def whitened(self, weight: np.ndarray) -> np.ndarray:
        """R W with R = U D, so that errors of R W count alike; shape (F, C), float64."""
        scaled = np.asarray(weight, dtype=np.float64) * self.scale[:, None]
        return scaled if self.root is None else np.asarray(self.root @ scaled)

    def unwhitened(self, weight: np.ndarray) -> np.ndarray:
        """R^-1 times a matrix with F rows, such as L of a fit to R W."""
        from scipy.linalg import solve_triangular

        found = weight if self.root is None else solve_triangular(self.root, weight)
        return np.asarray(found / self.scale[:, None])

    def error(
        self,
        layout: GroupLayout,
        weights: IgpcWeights,
        weight: np.ndarray,
        moments: np.ndarray | None = None,
    ) -> float:
        """tr(G (W - M) S (W - M)^T) / tr(G W S W^T), as :func:`~onnx_igpc.fitting.weights.fit_error`."""
        matrix = igpc_matrix(layout, weights)
        return relative_error(self.whitened(weight), self.whitened(matrix), moments)


def fit_in_metric(
    layout: GroupLayout,
    weight: np.ndarray,
    moments: np.ndarray | None,
    metric: OutputMetric,
    *,
    tolerance: float = TOLERANCE,
    start: IgpcWeights | None = None,
) -> IgpcWeights:
    """Weights of K and L whose matrix M is nearest to the dense ``weight`` in a metric of the output.

    Args:
        layout: a layout that replaces the layer.
        weight: W, shape (F, C).
        moments: S, shape (C, C), symmetric and positive semi-definite; the identity if ``None``.
        metric: of which what the layout cannot be fitted in is left out, see the text of this module.
        tolerance: see :func:`~onnx_igpc.fitting.fit.fit_layout`.
        start: weights that are near already, from which a few rounds are made instead.

    Raises:
        ValueError: shapes that do not match the layout.
    """
    if len(metric.scale) != layout.out_channels:
        raise ValueError(f"the metric is of {len(metric.scale)} filters, not F of the layout")
    if metric.root is None or layout.l is None or layout.has_sum:
        return _fitted(layout, weight, moments, metric.scale, tolerance, start)
    made = np.arange(layout.out_channels)
    if layout.output_interleave is not None:
        made = np.asarray(invert_permutation(layout.output_interleave))
    own = metric.within([made[rows] for rows, _ in stage_groups(layout.l)])
    by_filter = np.argsort(made)
    if start is not None:
        K, L = _stage_matrices(layout, start)
        start = layout_weights(layout, K, own.whitened(L[by_filter]))
    fitted = _fitted(layout, own.whitened(weight), moments, None, tolerance, start)
    K, L = _stage_matrices(layout, fitted)
    return layout_weights(layout, K, own.unwhitened(L[by_filter]))


def _fitted(
    layout: GroupLayout,
    weight: np.ndarray,
    moments: np.ndarray | None,
    scale: np.ndarray | None,
    tolerance: float,
    start: IgpcWeights | None,
) -> IgpcWeights:
    if start is None or moments is None:
        return fit_layout(layout, weight, moments, scale, tolerance=tolerance)
    return refit_layout(layout, start, weight, moments, scale, rounds=_ROUNDS)


def _stage_matrices(layout: GroupLayout, weights: IgpcWeights) -> tuple[np.ndarray, np.ndarray]:
    """K, shape (rows of K, C), and L P, shape (F, rows of K), the filters in the order they are made in."""
    assert layout.l is not None
    L = stage_matrix(layout.l, weights.l)
    if layout.interleave is not None:
        L = L[:, list(invert_permutation(layout.interleave))]
    return stage_matrix(layout.k, weights.k), L
