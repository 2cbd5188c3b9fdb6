"""Fitting K and L to the dense weight that they replace, in closed form and then to convergence.

A linear IGPC is a matrix: M = A K with A = L P + I where L's output is added to K's, A = L P where
it is not, and M = K where there is no L. Without the sum L is always at
its best while K is fitted, see :mod:`onnx_igpc.fitting.variable_projection`. K and L P have one dense block per group and are zero
elsewhere; a replicated channel merely lies in two blocks. The fit minimises

    sum_f  d_f^2  (W - M)_f  S  (W - M)_f^T

over the blocks, where S is the second moment of the layer's input (the identity without
calibration data) and d_f the scale that a following BatchNorm gives to filter f. All arithmetic is
in float64 and deterministic. Without calibration data nothing of the size of W is made, since W may
be a good part of what fits into memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from onnx_igpc.fitting.alternating import BlockPattern, FittingProblem
from onnx_igpc.fitting.alternating_plain import Blocks, PlainProblem
from onnx_igpc.fitting.anderson import solve_gram
from onnx_igpc.fitting.variable_projection import fit_without_sum
from onnx_igpc.fitting.weights import IgpcWeights, fit_error, stage_matrix
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.layout.permutations import invert_permutation

TOLERANCE = 1e-4
"""A fit ends when a sweep improves the objective by less than this part of it."""
_MAX_SWEEPS = 200


def fit_layout(
    layout: GroupLayout,
    weight: np.ndarray,
    moments: np.ndarray | None = None,
    filter_scale: np.ndarray | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> IgpcWeights:
    """Weights of K and L whose matrix M is nearest to the dense ``weight``.

    Args:
        layout: a layout that replaces the layer.
        weight: W, shape (F, C).
        moments: S, shape (C, C), symmetric and positive semi-definite; the identity if ``None``.
        filter_scale: d, shape (F,), how much an error in each filter counts; ones if ``None``.
        tolerance: the fit ends when a sweep improves by less than this part of the error; a large
            one gives a rough fit fast.

    Raises:
        ValueError: shapes that do not match the layout.
    """
    target, scale = _as_seen_by_stages(layout, weight, filter_scale)
    if moments is not None:
        _check_moments(layout, moments)
    k_groups = stage_groups(layout.k)
    if layout.l is None:
        return IgpcWeights(_paths(layout.k, _project(target, k_groups, moments)))
    l_groups = stage_groups(layout.l, layout.interleave)
    with threadpool_limits(1):
        # The blocks are small: more threads make it slower, and results depend on their number.
        if not (layout.has_sum or _rows_shared(l_groups)):
            scaled = target * scale[:, None]
            K, L = fit_without_sum(scaled, moments, k_groups, l_groups, tolerance, _MAX_SWEEPS)
            L /= scale[:, None]
            return IgpcWeights(_paths(layout.k, K), _paths(layout.l, L, layout.interleave))
        pattern = BlockPattern(k_groups, l_groups, layout.has_sum, layout.k.out_channels)
        if moments is None:
            plain = PlainProblem(target, scale, pattern)
            plain.start()
            plain.solve(tolerance, _MAX_SWEEPS)
            return IgpcWeights(_packed(layout.k, plain.K), _packed(layout.l, plain.L))
        problem = FittingProblem(target.astype(np.float64), scale, moments, pattern)
        problem.start()
        problem.solve(tolerance, _MAX_SWEEPS)
    return IgpcWeights(_paths(layout.k, problem.K), _paths(layout.l, problem.L, layout.interleave))


def refit_layout(
    layout: GroupLayout,
    start: IgpcWeights,
    weight: np.ndarray,
    moments: np.ndarray,
    filter_scale: np.ndarray | None = None,
    *,
    rounds: int = 1,
) -> IgpcWeights:
    """Weights of K and L for other moments or another weight than those that ``start`` was fitted to.

    A small part of the work of :func:`fit_layout`, and near to its result where little has changed. The
    objective, :func:`~onnx_igpc.fitting.weights.fit_error`, is never above that of ``start``. A layout
    without L has its exact fit, whatever the start.

    Args:
        layout: a layout that replaces the layer.
        start: weights for the layout, as :func:`fit_layout` gives them.
        weight: W, shape (F, C).
        moments: S, shape (C, C), symmetric and positive semi-definite.
        filter_scale: d, shape (F,), how much an error in each filter counts; ones if ``None``.
        rounds: how often every group of K and L is brought to its optimum given all others.

    Raises:
        ValueError: shapes that do not match the layout.
    """
    if layout.l is None:
        found = fit_layout(layout, weight, moments, filter_scale)
    else:
        target, scale = _as_seen_by_stages(layout, weight, filter_scale)
        _check_moments(layout, moments)
        k_groups, l_groups = stage_groups(layout.k), stage_groups(layout.l, layout.interleave)
        K, L = stage_matrix(layout.k, start.k), stage_matrix(layout.l, start.l)
        if layout.interleave is not None:
            L = L[:, list(invert_permutation(layout.interleave))]
        with threadpool_limits(1):
            if not (layout.has_sum or _rows_shared(l_groups)):
                scaled = target * scale[:, None]
                K, L = fit_without_sum(scaled, moments, k_groups, l_groups, 0.0, rounds, start=K)
                L /= scale[:, None]
            else:
                pattern = BlockPattern(k_groups, l_groups, layout.has_sum, layout.k.out_channels)
                problem = FittingProblem(target.astype(np.float64), scale, moments, pattern)
                problem.start_from(K, L)
                problem.solve(0.0, rounds)
                K, L = problem.K, problem.L
        found = IgpcWeights(_paths(layout.k, K), _paths(layout.l, L, layout.interleave))
    given = (weight, moments, filter_scale)
    return min((found, start), key=lambda each: fit_error(layout, each, *given))


def random_weights(layout: GroupLayout, seed: int, name: str, activated: bool) -> IgpcWeights:
    """Normally distributed weights for training from scratch.

    The variance keeps a ReLU network's signal (He et al., "Delving Deep into Rectifiers", ICCV
    2015, eq. 10): 2 / channels per group for a stage whose output is ``activated`` or the layer's
    own; half of it for K and L whose outputs are added, and for a K that only L reads. ``name``
    makes each site's draw its own.
    """
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])

    def draw(stage: GroupedStage, halved: bool) -> tuple[np.ndarray, ...]:
        variance = 1.0 if halved and not activated else 2.0
        return tuple(
            generator.normal(0.0, np.sqrt(variance / path.channels_per_group), path.weight_shape)
            for path in stage.paths
        )

    if layout.l is None:
        return IgpcWeights(draw(layout.k, halved=False))
    return IgpcWeights(draw(layout.k, halved=True), draw(layout.l, halved=layout.has_sum))


def layout_weights(layout: GroupLayout, K: np.ndarray, L: np.ndarray) -> IgpcWeights:
    """The blocks of K, shape (rows of K, C), and of L, shape (F, rows of K), for a layout with L.

    Rows of K are in the order in which the layout makes them, rows of L in that of the filters.
    """
    assert layout.l is not None
    made = L
    if layout.output_interleave is not None:
        made = L[list(invert_permutation(layout.output_interleave))]
    return IgpcWeights(_paths(layout.k, K), _paths(layout.l, made, layout.interleave))


def stage_groups(
    stage: GroupedStage, interleave: Sequence[int] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(filters, input channels) of every group; a group that two paths share appears once.

    Input channels are seen from before ``interleave``, where one is given.
    """
    filters: dict[tuple[int, ...], list[int]] = {}
    first = 0
    for path in stage.paths:
        for group in range(path.groups):
            made = range(group * path.filters_per_group, (group + 1) * path.filters_per_group)
            filters.setdefault(path.group_inputs(group), []).extend(first + f for f in made)
        first += path.filters
    order = np.arange(stage.in_channels) if interleave is None else np.asarray(interleave)
    return [(np.asarray(rows), order[list(columns)]) for columns, rows in filters.items()]


def _check_moments(layout: GroupLayout, moments: np.ndarray) -> None:
    if moments.shape != (layout.in_channels, layout.in_channels):
        raise ValueError(f"moments have shape {moments.shape}, not (C, C)")


def _as_seen_by_stages(
    layout: GroupLayout, weight: np.ndarray, filter_scale: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """W, and d in float64, their rows in the order in which K and L make the filters."""
    if weight.shape != (layout.out_channels, layout.in_channels):
        raise ValueError(f"weight has shape {weight.shape}, not (F, C) of the layout")
    scale = np.ones(layout.out_channels)
    if filter_scale is not None:
        scale = np.abs(np.asarray(filter_scale, dtype=np.float64))
        # A filter that BatchNorm switches off must not make the equations singular.
        scale = np.maximum(scale / max(scale.max(), 1e-300), 1e-4)
    if layout.output_interleave is None:
        return weight, scale
    order = list(invert_permutation(layout.output_interleave))
    return weight[order], scale[order]


def _project(
    target: np.ndarray,
    groups: Sequence[tuple[np.ndarray, np.ndarray]],
    moments: np.ndarray | None,
) -> np.ndarray:
    """The nearest matrix with the groups' blocks: each row by least squares on its own columns.

    Only the blocks are meant: what is elsewhere is not of interest.
    """
    if moments is None:
        return target
    K = np.zeros(target.shape)
    for rows, columns in groups:
        inner = moments[np.ix_(columns, columns)]
        outer = target[rows] @ moments[:, columns]
        K[np.ix_(rows, columns)] = solve_right(outer, inner)
    return K


def solve_right(outer: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """``X`` with ``X gram = outer`` for a symmetric positive semi-definite ``gram``."""
    return solve_gram(gram, outer.T).T


def _rows_shared(l_groups: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether two groups of L read the same row of K."""
    rows = np.concatenate([rows for _, rows in l_groups])
    return len(np.unique(rows)) < len(rows)


def _packed(stage: GroupedStage, matrix: Blocks) -> tuple[np.ndarray, ...]:
    """:func:`_paths` of a matrix that is stored as blocks already."""
    ends = np.cumsum([path.filters for path in stage.paths])
    return tuple(
        matrix.values[end - path.filters : end, : path.channels_per_group].copy()
        for path, end in zip(stage.paths, ends.tolist(), strict=True)
    )


def _paths(
    stage: GroupedStage, matrix: np.ndarray, interleave: Sequence[int] | None = None
) -> tuple[np.ndarray, ...]:
    """The blocks of ``matrix`` as one weight array per path."""
    seen = matrix if interleave is None else matrix[:, list(interleave)]
    arrays = []
    first = 0
    for path in stage.paths:
        values = np.empty(path.weight_shape)
        for group in range(path.groups):
            rows = slice(group * path.filters_per_group, (group + 1) * path.filters_per_group)
            columns = list(path.group_inputs(group))
            values[rows] = seen[first + rows.start : first + rows.stop, columns]
        arrays.append(values)
        first += path.filters
    return tuple(arrays)
