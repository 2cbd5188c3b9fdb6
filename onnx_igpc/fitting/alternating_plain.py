"""The least-squares problem of one layer without calibration data, in little memory.

With the identity for the second moment, a block of K or L sees only the columns of W that it can
reach, so that its optimum is computed from those alone: beside W in its own dtype there are the
blocks of K and L and what one of them needs. No residual and no dense K or L is held. The formulas
are those of :mod:`onnx_igpc.fitting.alternating`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from onnx_igpc.fitting.alternating import (
    AlternatingProblem,
    BlockPattern,
    Groups,
    filters_reached,
    joined,
)
from onnx_igpc.fitting.anderson import solve_gram

# Rows of W that are worked on at once where all of them count.
_ROWS = 64


class Blocks:
    """A matrix of one dense block per group, stored without the zeros between them.

    Args:
        rows: number of rows; one without a group is zero.
        groups: (rows, columns) of each block; rows are disjoint.
        columns: number of columns.
    """

    def __init__(self, rows: int, groups: Groups, columns: int) -> None:
        width = max((len(each) for _, each in groups), default=0)
        self.values = np.zeros((rows, width))
        # The place of a weight that a narrower block lacks: one behind the last column.
        self.columns = np.full((rows, width), columns, dtype=np.int32)
        for members, each in groups:
            self.columns[members, : len(each)] = each

    def dense(self, rows: np.ndarray, places: Places) -> np.ndarray:
        """These rows at those columns, shape (len(rows), places.count), float64."""
        found = np.zeros((len(rows), places.count + 1))
        found[np.arange(len(rows))[:, None], places.of[self.columns[rows]]] = self.values[rows]
        return found[:, :-1]


class Places:
    """Which column of a smaller matrix each of ``total`` columns is; all others are one behind it."""

    def __init__(self, columns: np.ndarray, total: int) -> None:
        self.count = len(columns)
        self.of = np.full(total + 1, self.count, dtype=np.intp)
        self.of[columns] = np.arange(self.count)


class PlainProblem(AlternatingProblem):
    """The problem with the identity for S; W is of any floating dtype, and not copied."""

    def __init__(self, target: np.ndarray, scale: np.ndarray, pattern: BlockPattern) -> None:
        super().__init__(target, scale, pattern)
        F, C = target.shape
        self.K = Blocks(self.rows, self.k_groups, C)
        self.L = Blocks(F, self.l_groups, self.rows)
        self._l_steps: list[_LStep] = [_LStep(self, *group) for group in self.l_groups]
        self._k_steps: list[_KStep] = [_KStep(self, *group) for group in self.k_groups]
        self.total = sum(
            float(self.d2[start : start + _ROWS] @ (part.astype(np.float64) ** 2).sum(axis=1))
            for start in range(0, F, _ROWS)
            for part in [self.W[start : start + _ROWS]]
        )

    def part(self, filters: np.ndarray, columns: np.ndarray) -> np.ndarray:
        every = len(columns) == self.W.shape[1]  # and then in order
        found = self.W[filters] if every else self.W[np.ix_(filters, columns)]
        return np.asarray(found, dtype=np.float64)

    def a(self, filters: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """A part of L P (+ I), shape (len(filters), len(rows))."""
        found = self.L.dense(filters, Places(rows, self.rows))
        return found + (filters[:, None] == rows) if self.has_sum else found

    @cached_property
    def _unreachable(self) -> float:
        """What no block can change of it."""
        return self.total - sum(
            float(self.d2[step.filters] @ (self.part(step.filters, step.seen) ** 2).sum(axis=1))
            for step in self._l_steps
        )

    def objective(self) -> float:
        return self._unreachable + sum(step.error(self) for step in self._l_steps)

    def state(self) -> np.ndarray:
        return np.concatenate([self.K.values.ravel(), self.L.values.ravel()])

    def restore(self, state: np.ndarray) -> None:
        self.K.values[...] = state[: self.K.values.size].reshape(self.K.values.shape)
        self.L.values[...] = state[self.K.values.size :].reshape(self.L.values.shape)

    def _gram(self, columns: np.ndarray) -> None:
        return None

    def _set_k(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        self.K.values[rows, : len(columns)] = values


class _LStep:
    """One group of L: its filters, the rows of K below it, and the columns of W that it sees."""

    def __init__(self, problem: PlainProblem, filters: np.ndarray, rows: np.ndarray) -> None:
        own = filters if problem.has_sum else filters[:0]
        self.filters, self.rows = filters, rows
        self.seen = joined(problem.k_groups, np.concatenate([rows, own]))

    def _parts(self, problem: PlainProblem) -> tuple[np.ndarray, np.ndarray]:
        """K below the group, and what L is to make of it."""
        places = Places(self.seen, problem.W.shape[1])
        wanted = problem.part(self.filters, self.seen)
        if problem.has_sum:
            wanted -= problem.K.dense(self.filters, places)
        return problem.K.dense(self.rows, places), wanted

    def solve(self, problem: PlainProblem) -> None:
        """The block of L by least squares, row by row; the weight of a row does not matter."""
        k, wanted = self._parts(problem)
        block = solve_gram(k @ k.T, k @ wanted.T).T
        problem.L.values[self.filters, : len(self.rows)] = block

    def error(self, problem: PlainProblem) -> float:
        """The group's share of the objective."""
        k, wanted = self._parts(problem)
        wanted -= problem.L.values[self.filters, : len(self.rows)] @ k
        return float(problem.d2[self.filters] @ np.einsum("fc,fc->f", wanted, wanted))


class _KStep:
    """One group of K: its rows, its input channels, and the filters it can change."""

    def __init__(self, problem: PlainProblem, rows: np.ndarray, columns: np.ndarray) -> None:
        self.rows, self.columns = rows, columns
        self.filters = filters_reached(problem.l_groups, rows, problem.has_sum)
        # Rows of other groups that read a channel of this one, as where channels are replicated.
        touching = joined(((c, r) for r, c in problem.k_groups), columns)
        self.others = np.setdiff1d(touching, rows)

    def solve(self, problem: PlainProblem) -> None:
        """The block of K by least squares, as a change of what it is."""
        if not len(self.filters):
            return
        places = Places(self.columns, problem.W.shape[1])
        a = problem.a(self.filters, self.rows)
        left = problem.part(self.filters, self.columns)
        left -= a @ problem.K.dense(self.rows, places)
        if len(self.others):
            left -= problem.a(self.filters, self.others) @ problem.K.dense(self.others, places)
        weighted = a.T * problem.d2[self.filters]
        change = solve_gram(weighted @ a, weighted @ left)
        problem.K.values[self.rows, : len(self.columns)] += change
