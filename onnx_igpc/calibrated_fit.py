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

All arithmetic is in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onnx_igpc.fitting import IgpcWeights, fit_layout, igpc_matrix
from onnx_igpc.layout import GroupLayout
from onnx_igpc.moments import SiteStatistics

RIDGE = 1e-3
"""Variance that is added to every channel, relative to the mean of all channels' variances."""


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
    filter_scale: np.ndarray | None = None,
) -> CalibratedFit:
    """Weights of K and L and the bias that come nearest to the dense layer on the data.

    Args:
        layout: a layout that replaces the layer.
        weight: W, shape (F, C).
        bias: b, shape (F,); zeros if ``None``.
        statistics: of the layer's input.
        filter_scale: the diagonal of D, shape (F,); ones if ``None``.

    Raises:
        ValueError: shapes that do not match the layout.
    """
    target, metric = effective_target(weight, statistics)
    weights = fit_layout(layout, target, metric, filter_scale)
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
