"""Learned grouping: which input channels share a group.

Groups are clusters of channels with a high affinity (:mod:`onnx_igpc.planning.clustering`). Those of
layouts without the sum are improved further by exchanges that are measured by a refit
(:mod:`onnx_igpc.planning.exchange_search`). Everything here is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from onnx_igpc.fitting.fit import fit_layout, stage_groups
from onnx_igpc.fitting.variable_projection import ProjectionProblem
from onnx_igpc.fitting.weights import IgpcWeights, fit_error
from onnx_igpc.layout.extended import with_input_order
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.planning.clustering import Clustering, channel_affinity

Grouping = Literal["learned", "contiguous"]

_MAX_ROUNDS = 40


def even_sizes(items: int, groups: int) -> list[int]:
    """Sizes of ``groups`` groups that differ by at most one."""
    return [len(part) for part in np.array_split(np.arange(items), groups)]


def contiguous_groups(sizes: Sequence[int]) -> list[np.ndarray]:
    """Consecutive items in groups of these sizes."""
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def clustered_groups(
    problem: ProjectionProblem,
    sizes: Sequence[int],
    ranks: Sequence[int],
    clustering: Clustering,
    tolerance: float = 1e-2,
) -> ProjectionProblem:
    """The better of clusters and contiguous groups of these sizes, with rows of these ranks.

    Which of them is better, a single round says.

    Args:
        problem: any of the layer.
        sizes: input channels of each group.
        ranks: rows of each group.
        clustering: that of the channels.
        tolerance: see :meth:`~onnx_igpc.fitting.variable_projection.ProjectionProblem.solve`.
    """
    tried = []
    for columns in (clustering.balanced(sizes), contiguous_groups(sizes)):
        tried.append(problem.with_columns(columns, []))
        tried[-1].solve(ranks, tolerance, 1)
    best = min(tried, key=ProjectionProblem.objective)
    best.solve(ranks, tolerance, _MAX_ROUNDS - 1)
    return best


def learned_published(
    layout: GroupLayout,
    weight: np.ndarray,
    moments: np.ndarray | None = None,
    filter_scale: np.ndarray | None = None,
    clustering: Clustering | None = None,
) -> GroupLayout:
    """A published layout with correlated channels in its groups, the sizes being the same.

    Each cluster of channels goes to the filters that it says most about. This is the order alone:
    :func:`better_grouping` says whether it is better.

    Args:
        layout: a layout of V1 or V2 that replaces the layer, with its published input order.
        weight: W, shape (F, C).
        moments: S, shape (C, C); the identity if ``None``.
        filter_scale: d, shape (F,); ones if ``None``.
        clustering: that of the channels, if it is known already.
    """
    from scipy.optimize import linear_sum_assignment

    groups = stage_groups(layout.k)
    first_reader: dict[int, int] = {}
    for index, (_, columns) in enumerate(groups):
        for column in columns.tolist():
            first_reader.setdefault(column, index)
    places = [[c for c, group in first_reader.items() if group == g] for g in range(len(groups))]
    target = weight if filter_scale is None else weight * np.abs(filter_scale)[:, None]
    if clustering is None:
        clustering = Clustering(channel_affinity(target, moments))
    clusters = clustering.balanced([len(each) for each in places])
    by_filter = [_explained(target, moments, cluster) for cluster in clusters]
    said = np.array([[float(each[rows].sum()) for each in by_filter] for rows, _ in groups])
    fits = np.array([[len(place) == len(c) for c in clusters] for place in places])
    _, chosen = linear_sum_assignment(np.where(fits, -said, 1e6 * max(float(said.max()), 1.0)))
    order = list(range(layout.in_channels))
    for place, index in zip(places, chosen, strict=True):
        for position, channel in zip(sorted(place), clusters[index].tolist(), strict=True):
            order[position] = channel
    return with_input_order(layout, order)


def better_grouping(
    layouts: Sequence[GroupLayout],
    weight: np.ndarray,
    moments: np.ndarray | None = None,
    filter_scale: np.ndarray | None = None,
) -> tuple[GroupLayout, IgpcWeights, float]:
    """The layout whose fit has the least error, its weights and that error; the first if equal.

    The error is that of the fitted objective, relative: see
    :func:`~onnx_igpc.fitting.weights.fit_error`.
    """
    found = []
    for layout in layouts:
        weights = fit_layout(layout, weight, moments, filter_scale)
        error = fit_error(layout, weights, weight, moments, filter_scale)
        found.append((layout, weights, error))
    return min(found, key=lambda entry: entry[2])


def _explained(target: np.ndarray, moments: np.ndarray | None, columns: np.ndarray) -> np.ndarray:
    """The power of each filter's output that these input channels alone can make, shape (F,)."""
    cross = target[:, columns] if moments is None else target @ moments[:, columns]
    if moments is None or not len(columns):
        return np.asarray((cross**2).sum(axis=1))
    inner = moments[np.ix_(columns, columns)]
    ridge = 1e-9 * max(float(np.trace(inner)) / len(inner), 1e-100)
    solved = np.linalg.solve(inner + ridge * np.eye(len(inner)), cross.T)
    return np.asarray((solved.T * cross).sum(axis=1))
