"""The least-squares problem of one layer with a K and an L, fitted in turns.

Closed-form sweeps, accelerated (:mod:`onnx_igpc.fitting.anderson`). Kept apart from
:mod:`onnx_igpc.fitting.fit` because it holds the state of an iteration: K, L and, with the second moment
of the input S, the residual W - A K and what S makes of it and of K, which every step updates only
where the step can change them.
Without calibration data :mod:`onnx_igpc.fitting.alternating_plain` does the same in less memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnx_igpc.fitting.anderson import Sweeping, solve_by_sweeps, solve_gram

Groups = Sequence[tuple[np.ndarray, np.ndarray]]


def joined(groups: Iterable[tuple[np.ndarray, np.ndarray]], items: np.ndarray) -> np.ndarray:
    """All second members of the groups whose first members have any of ``items``, sorted."""
    wanted = set(items.tolist())
    found = [second for first, second in groups if not wanted.isdisjoint(first.tolist())]
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=int)


def filters_reached(l_groups: Groups, rows: np.ndarray, has_sum: bool) -> np.ndarray:
    """The filters that these rows of K can change, sorted."""
    above = joined(((r, f) for f, r in l_groups), rows)
    return np.union1d(above, rows) if has_sum else above


def leading_rows(block: np.ndarray, gram: np.ndarray | None, count: int) -> np.ndarray:
    """The row space of the best approximation of ``block`` of rank ``count`` in a metric.

    Args:
        block: shape (filters, channels).
        gram: the metric, shape (channels, channels), positive semi-definite; the identity if ``None``.
        count: rows that are asked for.
    """
    if gram is None:
        _, values, right = np.linalg.svd(block, full_matrices=False)
        basis = right * values[:, None]
    else:
        power, vectors = np.linalg.eigh(gram)
        root = np.sqrt(np.clip(power, power.max() * 1e-12, None))
        _, values, right = np.linalg.svd((block @ vectors) * root, full_matrices=False)
        basis = (right * values[:, None] / root) @ vectors.T
    # More rows than the block has rank: spread the rest over the same directions.
    return np.asarray(basis[np.arange(count) % basis.shape[0]])


class BlockStep(Protocol):
    """One group of K or of L, whose turn it is in a sweep."""

    def solve(self, problem: Any) -> None:
        """Bring the group's block to its optimum given all others."""


@dataclass(frozen=True)
class BlockPattern:
    """Where K and L have blocks.

    Args:
        k_groups: (rows of K, input channels) of each group; rows are disjoint.
        l_groups: (filters, rows of K) of each group; filters are disjoint and all are there.
        has_sum: whether K's output is added to L's, as published; K then has F rows.
        k_rows: rows of K (intermediate channels); F if ``None``.
    """

    k_groups: Groups
    l_groups: Groups
    has_sum: bool = True
    k_rows: int | None = None


class AlternatingProblem(Sweeping, ABC):
    """min over the blocks of K and L of  sum_f d_f^2 |(W - A K)_f|_S^2,  A = L (+ I).

    K and L are zero until :meth:`start`.

    Args:
        target: W, shape (F, C).
        scale: d, shape (F,).
        pattern: the blocks.
    """

    total: float
    """The objective of K = 0."""
    _k_steps: Sequence[BlockStep]
    _l_steps: Sequence[BlockStep]

    def __init__(self, target: np.ndarray, scale: np.ndarray, pattern: BlockPattern) -> None:
        self.W = target
        self.d2 = scale**2
        self.k_groups, self.l_groups = pattern.k_groups, pattern.l_groups
        self.has_sum = pattern.has_sum
        self.rows = len(target) if self.has_sum else pattern.k_rows or len(target)

    @abstractmethod
    def part(self, filters: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """A part of W in float64."""

    @abstractmethod
    def _gram(self, columns: np.ndarray) -> np.ndarray | None:
        """A part of S; ``None`` where it is the identity."""

    @abstractmethod
    def _set_k(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """Set rows of K within their group, whose input channels are ``columns``."""

    def start(self) -> None:
        """K as near to W as it comes alone, L left to the first sweep; without the sum, block SVD.

        Without the sum each pair of a group of K and a group of L owns the rows of K that connect
        the two, hence a block of W of that rank, whose leading directions the rows start with. With
        the identity for S these are the optimum.
        """
        if self.has_sum:
            for rows, columns in self.k_groups:
                self._set_k(rows, columns, self.part(rows, columns))
            return
        taken = np.empty(0, dtype=int)
        for filters, l_rows in self.l_groups:
            for rows, columns in self.k_groups:
                common = np.setdiff1d(np.intersect1d(rows, l_rows), taken)
                if len(common):
                    taken = np.union1d(taken, common)
                    block = self.part(filters, columns) * np.sqrt(self.d2[filters])[:, None]
                    found = leading_rows(block, self._gram(columns), len(common))
                    self._set_k(common, columns, found)

    def sweep(self) -> None:
        """Each block of L, then each block of K, to its optimum given all others."""
        for step in (*self._l_steps, *self._k_steps):
            step.solve(self)

    def solve(self, tolerance: float, max_sweeps: int) -> None:
        """Accelerated sweeps: see :func:`~onnx_igpc.fitting.anderson.solve_by_sweeps`."""
        solve_by_sweeps(self, tolerance, max_sweeps, 1e-14 * self.total)


class FittingProblem(AlternatingProblem):
    """The problem with the second moment ``moments`` of the input, S, shape (C, C); W is float64."""

    def __init__(
        self, target: np.ndarray, scale: np.ndarray, moments: np.ndarray, pattern: BlockPattern
    ) -> None:
        super().__init__(target, scale, pattern)
        F, C = target.shape
        self.S = moments
        self.K, self.L = np.zeros((self.rows, C)), np.zeros((F, self.rows))
        self.WS = self.W @ self.S
        self.KS = np.zeros_like(self.K)
        self.R, self.RS = self.W.copy(), self.WS.copy()
        self.total = self.objective()
        self._k_steps: list[_KStep] = [_KStep(self, *group) for group in self.k_groups]
        self._l_steps: list[_LStep] = [_LStep(self, *group) for group in self.l_groups]

    def objective(self) -> float:
        return float(self.d2 @ np.einsum("fc,fc->f", self.R, self.RS))

    def state(self) -> np.ndarray:
        blocks = [self.K[step.block].ravel() for step in self._k_steps]
        blocks += [self.L[step.block].ravel() for step in self._l_steps]
        return np.concatenate(blocks)

    def restore(self, state: np.ndarray) -> None:
        position = 0
        for matrix, steps in ((self.K, self._k_steps), (self.L, self._l_steps)):
            for step in steps:
                old = matrix[step.block]
                matrix[step.block] = state[position : position + old.size].reshape(old.shape)
                position += old.size
        self._refresh()

    def _refresh(self) -> None:
        """What follows from the current K and L."""
        for k_step in self._k_steps:
            self.KS[k_step.rows] = self.K[k_step.block] @ k_step.spread
        for l_step in self._l_steps:
            block = self.L[l_step.block]
            residual = self.W[l_step.filters] - block @ self.K[l_step.rows]
            times_s = self.WS[l_step.filters] - block @ self.KS[l_step.rows]
            if self.has_sum:
                residual -= self.K[l_step.filters]
                times_s -= self.KS[l_step.filters]
            self.R[l_step.filters], self.RS[l_step.filters] = residual, times_s

    def start(self) -> None:
        super().start()
        self._refresh()

    def start_from(self, K: np.ndarray, L: np.ndarray) -> None:
        """K, shape (rows, C), and L P, shape (F, rows), which are zero outside of the blocks."""
        self.K[:], self.L[:] = K, L
        self._refresh()

    def part(self, filters: np.ndarray, columns: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.W[np.ix_(filters, columns)]
        return found

    def _gram(self, columns: np.ndarray) -> np.ndarray:
        gram: np.ndarray = self.S[np.ix_(columns, columns)]
        return gram

    def _set_k(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        self.K[np.ix_(rows, columns)] = values


class _LStep:
    """One group of L: its filters, and the rows of K below it."""

    def __init__(self, problem: FittingProblem, filters: np.ndarray, rows: np.ndarray) -> None:
        self.filters = filters
        self.rows = rows
        self.block = np.ix_(filters, rows)

    def solve(self, problem: FittingProblem) -> None:
        """The block of L by least squares, row by row; the weight of a row does not matter."""
        old = problem.L[self.block]
        k, k_s = problem.K[self.rows], problem.KS[self.rows]
        gram = k_s @ k.T
        outer = problem.RS[self.filters] @ k.T + old @ gram
        change = solve_gram(gram, outer.T).T - old
        problem.L[self.block] += change
        problem.R[self.filters] -= change @ k
        problem.RS[self.filters] -= change @ k_s


class _KStep:
    """One group of K: its rows, its input channels, and the filters it can change."""

    def __init__(self, problem: FittingProblem, rows: np.ndarray, columns: np.ndarray) -> None:
        self.filters = filters_reached(problem.l_groups, rows, problem.has_sum)
        self.rows, self.columns = rows, columns
        self.spread = problem.S[columns]
        self.inner = problem.S[np.ix_(columns, columns)]
        self.block = np.ix_(rows, columns)
        self.above = np.ix_(self.filters, rows)
        self.changed = np.ix_(self.filters, columns)
        self.identity = np.asarray(self.filters[:, None] == rows, dtype=float)

    def solve(self, problem: FittingProblem) -> None:
        """The block of K by least squares.

        gram X inner = right is solved for the change alone: what is there already need not pass
        through the inner matrix, which is badly conditioned where channels are alike.
        """
        if not len(self.filters):
            return
        a = problem.L[self.above]
        if problem.has_sum:
            a = a + self.identity
        weighted = a.T * problem.d2[self.filters]
        change = solve_gram(weighted @ a, weighted @ problem.RS[self.changed])
        change = solve_gram(self.inner, change.T).T
        times_s = change @ self.spread
        problem.R[self.changed] -= a @ change
        problem.RS[self.filters] -= a @ times_s
        problem.K[self.block] += change
        problem.KS[self.rows] += times_s
