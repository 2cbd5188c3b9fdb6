"""Searching the extended family at one layer: the best members without the sum, size by size.

A trial is a set of groups with rows for each. Along a path of growing sizes, rows go to the groups
where they reduce the error most for their cost: a row of a group with c channels costs c weights in
K and as many in L as there are filters that read it. Trials are cheap; only the best are polished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

import numpy as np

from onnx_igpc.fitting.fit import layout_weights
from onnx_igpc.fitting.output_metric import OutputMetric
from onnx_igpc.fitting.variable_projection import ProjectionProblem
from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.layout.extended import extended_layout, k_row_positions
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.planning.clustering import Clustering, channel_affinity
from onnx_igpc.planning.exchange_search import search_groups
from onnx_igpc.planning.grouping import Grouping, clustered_groups, contiguous_groups, even_sizes

# Of the budget, for rows that read every channel, beside groups.
_SHARED_PART = 0.3
# Groups are learned for few sizes, as a part of C F, each for the sizes near it.
_ANCHORS = (0.35, 0.12)
_POLISH_ROUNDS = 60
# Numbers of groups whose clusters leave no more than this times the least error are searched.
_CLOSE_GROUPS = 1.1
# Clusters that leave more than this times the error of low rank are taken as they are.
_HOPELESS = 1.3
# Fewer channels in a group than this make slow convolutions and gain little.
_LEAST_GROUP = 4
# Refits of a search for groups: fewer for larger layers.
_REFITS, _REFITS_AT, _LEAST_REFITS = 24, 96, 4
# Layers with more channels than this are searched with less care.
_SMALL, _MEDIUM, _LARGE, _VERY_LARGE = 64, 128, 256, 512


@dataclass
class Trial:
    """Groups of channels, how many rows each has, and the squared error they leave."""

    problem: ProjectionProblem
    ranks: list[int]
    error: float


class ExtendedSearch:
    """The search at one layer.

    Args:
        target: T = diag(d) W, shape (F, C), float64.
        moments: S, shape (C, C), or ``None`` for the identity.
        k_counts: numbers of groups of K to try, besides one.
        grouping: whether channels are grouped by what fits or as they come.

    ``polished_trials`` is how many trials of one size are worth polishing.
    """

    def __init__(
        self,
        target: np.ndarray,
        moments: np.ndarray | None,
        k_counts: Sequence[int],
        grouping: Grouping,
    ) -> None:
        self.F, self.C = target.shape
        self.target = target
        self.moments = moments
        self.grouping = grouping
        self.k_counts = [g for g in k_counts if 1 < g <= self.C // _LEAST_GROUP]
        if self.C > max(_LARGE, self.F):
            # Few wide groups take longest, and are hardly ever best.
            self.k_counts = self.k_counts[-2:]
        self.low_rank = ProjectionProblem(target, moments, [np.arange(self.C)])
        self._spectrum = self.low_rank.directions(0)
        self.clustering = Clustering(channel_affinity(target, moments))
        # More filters than channels cost nothing: see ProjectionProblem.
        refits = int(_REFITS * min(1.0, (_REFITS_AT / self.C) ** 1.5))
        self._refits = max(refits, _LEAST_REFITS)
        self._start_tolerance = 1e-2 if self.C <= _LARGE else 1e-1
        self._rounds = 2 if self.C <= _VERY_LARGE else 1
        self.polished_trials = 2 if self.C <= _LARGE else 1
        self._groupings_tried = 3 if self.C <= _SMALL else 2 if self.C <= _MEDIUM else 1

    def trials(self, budgets: Sequence[int]) -> list[list[Trial]]:
        """For each budget of weights, in ascending order, the trials that keep to it."""
        found = [self._low_rank_trial(budget) for budget in budgets]
        for near in self._near_anchors(budgets):
            within = [budgets[index] for index in near]
            for columns in self._groupings(within):
                for index, trial in zip(near, self._path(columns, within), strict=True):
                    found[index] += trial
        for each, budget in zip(found, budgets, strict=True):
            grouped = [trial for trial in each if len(trial.problem.columns) > 1]
            if grouped:
                best = min(grouped, key=lambda trial: trial.error)
                each += self._with_shared_rows(best, budget)
        return found

    def polished(self, trial: Trial, tolerance: float) -> Trial:
        """The trial with its rows at a local optimum; where rows are exact already, itself.

        Groups are left with at most two numbers of rows, since each number takes a convolution.
        """
        if len(trial.problem.columns) == 1:
            return trial
        grouped = self._groups_of(trial)
        widths = [len(columns) for columns in trial.problem.columns[:grouped]]
        levels = two_levels(trial.ranks[:grouped], [w + self.F for w in widths], min(widths))
        ranks = levels + trial.ranks[grouped:]
        problem = trial.problem.copied()
        return Trial(problem, ranks, problem.solve(ranks, tolerance, _POLISH_ROUNDS))

    def _groups_of(self, trial: Trial) -> int:
        """How many groups there are beside one that reads every channel."""
        columns = trial.problem.columns
        return len(columns) - 1 if len(columns[-1]) == self.C else len(columns)

    def layout(self, trial: Trial, metric: OutputMetric) -> tuple[GroupLayout, IgpcWeights]:
        """The trial as a layout and its weights, for a target that was made one of this metric."""
        parts = zip(trial.problem.columns, trial.ranks, strict=True)
        k_groups = [(columns.tolist(), rank) for columns, rank in parts]
        layout = extended_layout(self.C, self.F, k_groups)
        L = metric.unwhitened(trial.problem.best_l(self.target))
        positions = np.argsort(k_row_positions(self.C, k_groups))
        return layout, layout_weights(layout, trial.problem.k_matrix()[positions], L[:, positions])

    def _low_rank_trial(self, budget: int) -> list[Trial]:
        rank = min(budget // (self.C + self.F), self.C, self.F, len(self._spectrum.rows))
        if rank < 1:
            return []
        problem = self.low_rank.with_columns([np.arange(self.C)], [self._spectrum.rows[:rank]])
        left = self.low_rank.total - float(self._spectrum.gains[:rank].sum())
        return [Trial(problem, [rank], max(left, 0.0))]

    def _near_anchors(self, budgets: Sequence[int]) -> list[list[int]]:
        """The indices of the budgets that share groups."""
        if self.grouping == "contiguous":
            return [list(range(len(budgets)))]
        anchors = [anchor * self.C * self.F for anchor in _ANCHORS]
        near: list[list[int]] = [[] for _ in anchors]
        for index, budget in enumerate(budgets):
            distance = [abs(np.log(max(budget, 1) / anchor)) for anchor in anchors]
            near[int(np.argmin(distance))].append(index)
        return [each for each in near if each]

    def _groupings(self, budgets: Sequence[int]) -> list[list[np.ndarray]]:
        """Groups of channels to try at these budgets, in the numbers that promise most."""
        sizes = {g: even_sizes(self.C, g) for g in self.k_counts}
        if self.grouping == "contiguous":
            return [contiguous_groups(each) for each in sizes.values()]
        middle = budgets[len(budgets) // 2]
        started = []
        for g, each in sizes.items():
            rows = max(int(middle / (self.C / g + self.F)), g)
            ranks = [min(rank, size) for rank, size in zip(even_sizes(rows, g), each, strict=True)]
            problem = clustered_groups(
                self.low_rank, each, ranks, self.clustering, self._start_tolerance
            )
            started.append((problem.objective(), g, ranks, problem))
        started.sort(key=lambda entry: entry[:2])
        low_rank = min((trial.error for trial in self._low_rank_trial(middle)), default=np.inf)
        if started and started[0][0] > _HOPELESS * low_rank:
            return [started[0][3].columns]
        return [
            [
                np.sort(each)
                for each in search_groups(problem, ranks, self._refits, self._rounds).columns
            ]
            for error, _, ranks, problem in started[: self._groupings_tried]
            if error <= _CLOSE_GROUPS * started[0][0] or self._groupings_tried > 2
        ]

    def _path(self, columns: list[np.ndarray], budgets: Sequence[int]) -> list[list[Trial]]:
        """Trials of growing size over the same groups; none where a budget is too small."""
        problem = self.low_rank.with_columns(columns, [])
        costs = [len(each) + self.F for each in columns]
        most = [min(len(each), self.F) for each in columns]
        ranks = [0] * len(columns)
        found: list[list[Trial]] = []
        for budget in budgets:
            known = [
                problem.directions(group).gains if gains is None else gains
                for group, gains in enumerate(problem.gains)
            ]
            grown = _grow(ranks, known, costs, most, budget)
            if not any(grown):
                found.append([])
                continue
            ranks = grown
            error = problem.solve(ranks, 0.0, self._rounds)
            found.append([Trial(problem.copied(), list(ranks), error)])
        return found

    def _with_shared_rows(self, trial: Trial, budget: int) -> list[Trial]:
        """The trial with part of its rows given up for rows that read every channel."""
        shared = int(_SHARED_PART * budget / (self.C + self.F))
        left = budget - shared * (self.C + self.F)
        if shared < 1:
            return []
        columns = trial.problem.columns
        costs = [len(each) + self.F for each in columns]
        spent = sum(rank * cost for rank, cost in zip(trial.ranks, costs, strict=True))
        ranks = [int(rank * left / spent) for rank in trial.ranks]
        if not any(ranks):
            return []
        rows = [trial.problem.K[group][:rank] for group, rank in enumerate(ranks)]
        everything = np.arange(self.C)
        problem = self.low_rank.with_columns([*columns, everything], [*rows, np.zeros((0, self.C))])
        problem.step(len(columns), shared)
        error = problem.solve([*ranks, shared], 0.0, 1)
        return [Trial(problem, [*ranks, shared], error)]


def two_levels(ranks: Sequence[int], costs: Sequence[int], most: int) -> list[int]:
    """At most two different ranks, at no higher cost and so that least is taken away.

    Ranks are lowered to one of two, and then all of one of them raised, up to ``most``, as long as
    that costs no more than ``ranks`` did.
    """
    low = min(ranks)

    def lost(high: int) -> int:
        return sum(rank - (high if rank >= high else low) for rank in ranks)

    high = min(sorted(set(ranks)), key=lost)
    raised = [rank >= high for rank in ranks]
    levels = {True: high, False: low}
    left = sum(
        (rank - levels[group]) * cost
        for rank, group, cost in zip(ranks, raised, costs, strict=True)
    )
    for group in (True, False) * len(ranks):
        price = sum(cost for cost, own in zip(costs, raised, strict=True) if own == group)
        while price and price <= left and levels[group] < most:
            levels[group] += 1
            left -= price
    return [levels[group] for group in raised]


def _grow(
    ranks: Sequence[int],
    gains: Sequence[np.ndarray],
    costs: Sequence[int],
    most: Sequence[int],
    budget: int,
) -> list[int]:
    """More rows for the groups that gain most by one for its cost, as far as the budget goes."""
    grown = list(ranks)
    left = budget - sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))

    def value(group: int) -> float:
        available = grown[group] < min(most[group], len(gains[group]))
        return float(gains[group][grown[group]]) / costs[group] if available else -1.0

    heap = [(-value(group), group) for group in range(len(grown))]
    heapify(heap)
    while heap[0][0] <= 0.0:
        group = heap[0][1]
        if costs[group] <= left:
            grown[group] += 1
            left -= costs[group]
            heapreplace(heap, (-value(group), group))
        else:
            heapreplace(heap, (1.0, group))
    return grown
