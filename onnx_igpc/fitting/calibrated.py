"""Fitting a site to data: what K and L are to compute on the inputs that they will see.

With x the layer's input in the original, x^ what the rewritten part before it makes of the same
data, and W the dense weight, the fit minimises over M (of the layout's structure) and b'

    E |D (W x + b - M x^ - b')|^2,

D being the scale that a following BatchNorm gives the filters. This is the asymmetric reconstruction
of Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection",
TPAMI 2016, section 3.3, for another structure than theirs. The best bias is
b' = b + W E[x] - M E[x^], whatever M is: it makes the mean output exact. What is left is, but for a
constant, |D (W_eff - M)|^2 in the metric S^ = E[(x^ - m^)(x^ - m^)^T], where

    W_eff = W E[(x - m)(x^ - m^)^T] S^^-1.

Least squares answers what it cannot know with the mean, so that its outputs vary less than the
original's, layer upon layer. Every filter is therefore scaled to a variance half-way back, about its
exact mean: sites further on, activations above all, then work where they were trained to.

All arithmetic is in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onnx_igpc.fitting.fit import TOLERANCE
from onnx_igpc.fitting.moments import SiteStatistics
from onnx_igpc.fitting.output_metric import OutputMetric, fit_in_metric
from onnx_igpc.fitting.weights import IgpcWeights, igpc_matrix
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.layout.permutations import invert_permutation

RIDGE = 1e-3
"""Variance that is added to every channel, relative to the mean of all channels' variances."""

GAIN_POWER = 0.5
"""How far a filter's deviation is brought back to the original's: 0 not at all, 1 all the way."""

_MAX_GAIN = 2.0


class CalibratedFit(NamedTuple):
    """weights of K and L; bias: b', shape (F,), float64; error: see :func:`calibrated_error`."""

    weights: IgpcWeights
    bias: np.ndarray
    error: float


def fit_calibrated(
    layout: GroupLayout,
    weight: np.ndarray,
    bias: np.ndarray | None,
    statistics: SiteStatistics,
    metric: OutputMetric | None = None,
    *,
    blend: float = 0.0,
    start: IgpcWeights | None = None,
    tolerance: float = TOLERANCE,
) -> CalibratedFit:
    """Weights of K and L and the bias that come nearest to the dense layer on the data.

    By least squares, then scaled by :func:`variance_gains`.

    Args:
        layout: a layout that replaces the layer.
        weight: W, shape (F, C).
        bias: b, shape (F,); zeros if ``None``.
        statistics: of the layer's input.
        metric: how much an error of the output counts, in the place of D^2; all alike if ``None``.
        blend: see :meth:`~onnx_igpc.fitting.moments.SiteStatistics.blended`; not for the bias.
        start: weights that are near already, from which a few steps will do.
        tolerance: of a fit without a start, see :func:`~onnx_igpc.fitting.fit.fit_layout`.

    Raises:
        ValueError: shapes that do not match the layout.
    """
    blended = statistics.blended(blend)
    target, second = effective_target(weight, blended)
    metric = metric or OutputMetric.of_scale(None, len(target))
    weights = fit_in_metric(layout, target, second, metric, start=start, tolerance=tolerance)
    gains = variance_gains(weight, igpc_matrix(layout, weights), blended)
    weights = scale_filters(layout, weights, gains)
    matrix = igpc_matrix(layout, weights)
    return CalibratedFit(
        weights,
        corrected_bias(weight, matrix, bias, statistics),
        calibrated_error(weight, matrix, statistics),
    )


def effective_target(
    weight: np.ndarray, statistics: SiteStatistics, ridge: float = RIDGE
) -> tuple[np.ndarray, np.ndarray]:
    """W_eff, shape (F, C), and the metric S^, shape (C, C), in which a fit is to come near to it.

    The ridge adds the same small noise to x and x^: it keeps W_eff near W in directions that the data
    hardly shows, where E[x x^^T] S^^-1 would be decided by chance.
    """
    W = np.asarray(weight, dtype=np.float64)
    second = statistics.second_rewritten
    channels = len(second)
    noise = ridge * max(float(np.trace(second)) / channels, 1e-12) * np.eye(channels)
    metric = second + noise
    if statistics.cross is second:
        return W, metric
    # W (cross + noise) metric^-1, solved for its difference from W, which is small.
    change = W @ (statistics.cross - second)
    return W + np.linalg.solve(metric, change.T).T, metric


def variance_gains(
    weight: np.ndarray, matrix: np.ndarray, statistics: SiteStatistics, power: float = GAIN_POWER
) -> np.ndarray:
    """(std W x / std M x^)^power of every filter, shape (F,), between 1/2 and 2.

    A filter that is constant on the data, in the original or in the rewrite, has a gain of 1.
    """
    W = np.asarray(weight, dtype=np.float64)
    wanted = np.einsum("fc,fc->f", W @ statistics.second, W)
    made = np.einsum("fc,fc->f", matrix @ statistics.second_rewritten, matrix)
    floor = 1e-12 * max(float(wanted.max()), float(made.max()), 1e-300)
    varies = (wanted > floor) & (made > floor)
    ratio = np.where(varies, wanted, 1.0) / np.where(varies, made, 1.0)
    return np.clip(ratio ** (power / 2), 1 / _MAX_GAIN, _MAX_GAIN)


def scale_filters(layout: GroupLayout, weights: IgpcWeights, gains: np.ndarray) -> IgpcWeights:
    """Weights whose matrix is diag(gains) M, for gains that are positive, shape (F,).

    Where the outputs of K and L are added, K's are scaled with them, and L divides what it reads of
    K by the same gains.
    """
    if layout.output_interleave is not None:
        gains = gains[list(invert_permutation(layout.output_interleave))]
    if layout.l is None:
        return IgpcWeights(_scaled_rows(layout.k, weights.k, gains))
    l_rows = _scaled_rows(layout.l, weights.l, gains)
    if not layout.has_sum:
        return IgpcWeights(weights.k, l_rows)
    read = gains if layout.interleave is None else gains[list(layout.interleave)]
    undone = []
    for path, values in zip(layout.l.paths, l_rows, strict=True):
        by_group = read[list(path.inputs)].reshape(path.groups, path.channels_per_group)
        undone.append(values / np.repeat(by_group, path.filters_per_group, axis=0))
    return IgpcWeights(_scaled_rows(layout.k, weights.k, gains), tuple(undone))


def _scaled_rows(
    stage: GroupedStage, weights: Sequence[np.ndarray], gains: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The weights of every path with each filter multiplied by its gain."""
    ends = np.cumsum([path.filters for path in stage.paths])
    parts = np.split(gains, ends[:-1])
    return tuple(w * part[:, np.newaxis] for w, part in zip(weights, parts, strict=True))


def corrected_bias(
    weight: np.ndarray, matrix: np.ndarray, bias: np.ndarray | None, statistics: SiteStatistics
) -> np.ndarray:
    """b' = b + W E[x] - M E[x^], shape (F,), float64: the mean output is that of the original."""
    W = np.asarray(weight, dtype=np.float64)
    b = np.zeros(len(W)) if bias is None else np.asarray(bias, dtype=np.float64)
    return np.asarray(b + W @ statistics.mean - matrix @ statistics.mean_rewritten)


def calibrated_error(weight: np.ndarray, matrix: np.ndarray, statistics: SiteStatistics) -> float:
    """E|W (x - m) - M (x^ - m^)|^2 / E|W (x - m)|^2: the part of the output's variance that is lost.

    All filters count alike, whatever scale a fit gave them. In a rewrite that is fitted in sequence
    this includes the errors that earlier sites made and this one could not mend.
    """
    W = np.asarray(weight, dtype=np.float64)
    total = float(np.sum((W @ statistics.second) * W))
    mixed = float(np.sum((W @ statistics.cross) * matrix))
    made = float(np.sum((matrix @ statistics.second_rewritten) * matrix))
    error = max(total - 2 * mixed + made, 0.0)
    if total <= 0:
        return 0.0 if error <= 0 else float("inf")
    return error / total
