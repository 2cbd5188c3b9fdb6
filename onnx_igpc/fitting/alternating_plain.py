"""The least-squares problem of one layer without calibration data, in little memory.

With the identity for the second moment, a block of K or L sees only the columns of W that it can
reach, so that its optimum is computed from those alone: beside W in its own dtype there are the
blocks of K and L and what one of them needs. No residual and no dense K or L is held. The formulas
are those of :mod:`onnx_igpc.fitting.alternating`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from onnx_igpc.fitting.alternating import Groups, filters_reached, joined, leading_rows
from onnx_igpc.fitting.anderson import solve_by_sweeps, solve_gram

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


class PlainProblem:
    """min over the blocks of K and L of  sum_f d_f^2 |(W - A K)_f|^2,  A = L (+ I).

    Args:
        target: W, shape (F, C), of any floating dtype; it is not copied.
        scale: d, shape (F,).
        k_groups: (rows of K, input channels) of each group; rows are disjoint.
        l_groups: (filters, rows of K) of each group; filters are disjoint and all are there.
        has_sum: whether K's output is added to L's, as published; K then has F rows.
        k_rows: rows of K (intermediate channels); F if ``None``.
    """

    def __init__(
        self,
        target: np.ndarray,
        scale: np.ndarray,
        k_groups: Groups,
        l_groups: Groups,
        has_sum: bool = True,
        k_rows: int | None = None,
    ) -> None:
        self.W = target
        self.d2 = scale**2
        self.k_groups = list(k_groups)
        self.l_groups = list(l_groups)
        self.has_sum = has_sum
        F, C = target.shape
        self.rows = F if has_sum else k_rows or F
        self.K = Blocks(self.rows, self.k_groups, C)
        self.L = Blocks(F, self.l_groups, self.rows)
        self._l_steps = [_LStep(self, *group) for group in self.l_groups]
        self._k_steps = [_KStep(self, *group) for group in self.k_groups]

    def part(self, filters: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """A part of W in float64."""
        every = len(columns) == self.W.shape[1]  # and then in order
        found = self.W[filters] if every else self.W[np.ix_(filters, columns)]
        return np.asarray(found, dtype=np.float64)

    def a(self, filters: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """A part of L P (+ I), shape (len(filters), len(rows))."""
        found = self.L.dense(filters, Places(rows, self.rows))
        return found + (filters[:, None] == rows) if self.has_sum else found

    @cached_property
    def _total(self) -> float:
        """The objective of K = 0."""
        return sum(
            float(self.d2[start : start + _ROWS] @ (part.astype(np.float64) ** 2).sum(axis=1))
            for start in range(0, len(self.W), _ROWS)
            for part in [self.W[start : start + _ROWS]]
        )

    @cached_property
    def _unreachable(self) -> float:
        """What no block can change of it."""
        return self._total - sum(
            float(self.d2[step.filters] @ (self.part(step.filters, step.seen) ** 2).sum(axis=1))
            for step in self._l_steps
        )

    def objective(self) -> float:
        """The weighted squared error of the current K and L."""
        return self._unreachable + sum(step.error(self) for step in self._l_steps)

    def state(self) -> np.ndarray:
        """All blocks of K and L as one vector."""
        return np.concatenate([self.K.values.ravel(), self.L.values.ravel()])

    def restore(self, state: np.ndarray) -> None:
        """Make the blocks in ``state`` the current K and L."""
        self.K.values[...] = state[: self.K.values.size].reshape(self.K.values.shape)
        self.L.values[...] = state[self.K.values.size :].reshape(self.L.values.shape)

    def start(self) -> None:
        """K as near to W as it comes alone, L left to the first sweep; without the sum, block SVD.

        Without the sum the singular vectors are the optimum: each pair of a group of K and a group
        of L owns the rows of K that connect the two, hence a block of W of that rank.
        """
        self.K.values.fill(0.0)
        self.L.values.fill(0.0)
        if self.has_sum:
            for rows, columns in self.k_groups:
                self.K.values[rows, : len(columns)] = self.part(rows, columns)
            return
        taken: set[int] = set()
        for filters, l_rows in self.l_groups:
            for rows, columns in self.k_groups:
                common = [row for row in np.intersect1d(rows, l_rows) if row not in taken]
                if common:
                    taken.update(common)
                    block = self.part(filters, columns) * np.sqrt(self.d2[filters])[:, None]
                    self.K.values[common, : len(columns)] = leading_rows(block, None, len(common))

    def sweep(self) -> None:
        """Each block of L, then each block of K, to its optimum given all others."""
        for l_step in self._l_steps:
            l_step.solve(self)
        for k_step in self._k_steps:
            k_step.solve(self)

    def solve(self, tolerance: float, max_sweeps: int) -> None:
        """Accelerated sweeps: see :func:`~onnx_igpc.fitting.anderson.solve_by_sweeps`."""
        solve_by_sweeps(self, tolerance, max_sweeps, 1e-14 * self._total)


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
