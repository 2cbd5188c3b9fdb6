"""The weights of K and L, the matrix that they are, and its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout

# Rows or columns of a matrix that are worked on at once where an array of all would be large.
_PART = 64


@dataclass(frozen=True)
class IgpcWeights:
    """Weights of a rewritten layer, one array per path of K and of L, float64.

    Each array has shape (filters of the path, channels per group). ``l`` is empty where the
    layout has no L.
    """

    k: tuple[np.ndarray, ...]
    l: tuple[np.ndarray, ...] = ()  # noqa: E741 - the paper's name


def igpc_matrix(layout: GroupLayout, weights: IgpcWeights) -> np.ndarray:
    """The matrix M, shape (F, C), that a linear IGPC applies to its input channels."""
    return apply_igpc(layout, weights, np.eye(layout.in_channels))


def apply_igpc(layout: GroupLayout, weights: IgpcWeights, x: np.ndarray) -> np.ndarray:
    """M x for x of shape (C, n), float64, group by group: shape (F, n)."""
    y = apply_stage(layout.k, weights.k, x)
    if layout.l is not None:
        interleaved = y if layout.interleave is None else y[list(layout.interleave)]
        made = apply_stage(layout.l, weights.l, interleaved)
        y = made + y if layout.has_sum else made
    return y if layout.output_interleave is None else y[list(layout.output_interleave)]


def apply_stage(stage: GroupedStage, weights: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """A grouped convolution of x, shape (in channels, n), float64: shape (out channels, n)."""
    made = []
    for path, values in zip(stage.paths, weights, strict=True):
        read = x[list(path.inputs)].reshape(path.groups, path.channels_per_group, -1)
        blocks = values.reshape(path.groups, path.filters_per_group, path.channels_per_group)
        made.append((blocks @ read).reshape(path.filters, -1))
    return np.concatenate(made)


def stage_matrix(stage: GroupedStage, weights: Sequence[np.ndarray]) -> np.ndarray:
    """A grouped convolution as a matrix of shape (out channels, in channels)."""
    matrix = np.zeros((stage.out_channels, stage.in_channels))
    first = 0
    for path, values in zip(stage.paths, weights, strict=True):
        for group in range(path.groups):
            rows = slice(group * path.filters_per_group, (group + 1) * path.filters_per_group)
            columns = list(path.group_inputs(group))
            matrix[first + rows.start : first + rows.stop, columns] = values[rows]
        first += path.filters
    return matrix


def relative_error(
    weight: np.ndarray, matrix: np.ndarray, moments: np.ndarray | None = None
) -> float:
    """E|(W - M)x|^2 / E|Wx|^2 for inputs x with the given second moments (identity if ``None``)."""
    error = total = 0.0
    # A block of rows at a time: what is computed on the way must not outgrow the matrices.
    for start in range(0, len(weight), _PART):
        rows = slice(start, start + _PART)
        difference = weight[rows] - matrix[rows]
        if moments is None:
            error += float(np.sum(difference**2))
            total += float(np.sum(weight[rows] ** 2))
        else:
            error += float(np.sum((difference @ moments) * difference))
            total += float(np.sum((weight[rows] @ moments) * weight[rows]))
    return _part_of(error, total)


def plain_error(layout: GroupLayout, weights: IgpcWeights, weight: np.ndarray) -> float:
    """:func:`relative_error` of a layout's matrix without moments, and without making the matrix."""
    error = total = 0.0
    for start in range(0, layout.in_channels, _PART):
        wanted = weight[:, start : start + _PART].astype(np.float64)
        columns = np.zeros((layout.in_channels, wanted.shape[1]))
        columns[start + np.arange(wanted.shape[1]), np.arange(wanted.shape[1])] = 1.0
        error += float(np.sum((wanted - apply_igpc(layout, weights, columns)) ** 2))
        total += float(np.sum(wanted**2))
    return _part_of(error, total)


def fit_error(
    layout: GroupLayout,
    weights: IgpcWeights,
    weight: np.ndarray,
    moments: np.ndarray | None = None,
    filter_scale: np.ndarray | None = None,
) -> float:
    """The objective that :func:`fit_layout` minimises, as a part of what it is for M = 0."""
    scale = 1.0 if filter_scale is None else np.abs(filter_scale)[:, None]
    return relative_error(weight * scale, igpc_matrix(layout, weights) * scale, moments)


def _part_of(error: float, total: float) -> float:
    if total <= 0:
        return 0.0 if error <= 0 else float("inf")
    return float(max(error, 0.0) / total)
