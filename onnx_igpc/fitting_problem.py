"""The least-squares problem of one layer with a K and an L: closed-form sweeps, accelerated.

Kept apart from :mod:`onnx_igpc.fitting` because it holds the state of an iteration: K, L and the
residual W - A K, which every step updates only where the step can change it. Without calibration
data most of the residual is out of reach of all blocks, which makes large layers cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.linalg import LinAlgError

Groups = Sequence[tuple[np.ndarray, np.ndarray]]

# Relative to the mean of the diagonal: enough to decide between equally good solutions, too little
# to be seen in the fit.
_RIDGE = 1e-10
# A smaller mean of the diagonal would leave the range of normal numbers with the ridge.
_ZERO = 1e-290
# Earlier sweeps that an accelerated step is made from.
_MEMORY = 8


def solve_gram(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``X`` with ``gram X = right`` for a symmetric positive semi-definite ``gram``.

    Where ``gram`` is zero (channels that are always zero, rows of K without weights), ``X`` is zero.
    """
    size = gram.shape[0]
    mean = float(np.trace(gram)) / size
    if mean < _ZERO:
        return np.zeros(right.shape)
    try:
        solution: np.ndarray = np.linalg.solve(gram + _RIDGE * mean * np.eye(size), right)
    except LinAlgError:
        solution = np.linalg.pinv(gram, hermitian=True) @ right
    return solution


class FittingProblem:
    """min over the blocks of K and L of  sum_f d_f^2 |(W - A K)_f|_S^2,  A = L (+ I).

    Args:
        target: W, shape (F, C), float64.
        scale: d, shape (F,).
        moments: S, shape (C, C), or ``None`` for the identity.
        k_groups: (rows of K, input channels) of each group; rows are disjoint.
        l_groups: (filters, rows of K) of each group; filters are disjoint and all are there.
        has_sum: whether K's output is added to L's, as published; K then has F rows.
        k_rows: rows of K (intermediate channels); F if ``None``.
    """

    def __init__(
        self,
        target: np.ndarray,
        scale: np.ndarray,
        moments: np.ndarray | None,
        k_groups: Groups,
        l_groups: Groups,
        has_sum: bool = True,
        k_rows: int | None = None,
    ) -> None:
        self.W = target
        self.d2 = scale**2
        self.S = moments
        self.k_groups = list(k_groups)
        self.l_groups = list(l_groups)
        self.has_sum = has_sum
        F, C = target.shape
        rows = F if has_sum else k_rows or F
        self.K, self.L = np.zeros((rows, C)), np.zeros((F, rows))
        self.R = self.W.copy()
        self.RS = self._times_s(self.R)
        self._total = float(np.einsum("f,fc,fc->", self.d2, self.R, self.RS))
        self._k_steps = [_KStep(self, *group) for group in self.k_groups]
        self._l_steps = [_LStep(self, *group) for group in self.l_groups]
        self._unreachable = self._total - self._reachable_objective()

    @property
    def A(self) -> np.ndarray:  # noqa: N802 - the formula's name
        """L P (+ I): shape (F, rows of K)."""
        return self.L + np.eye(len(self.L)) if self.has_sum else self.L.copy()

    def _times_s(self, matrix: np.ndarray) -> np.ndarray:
        return matrix if self.S is None else matrix @ self.S

    def _reachable_objective(self) -> float:
        """The objective without what no block can change (with the identity for S)."""
        if self.S is not None:
            return float(np.einsum("f,fc,fc->", self.d2, self.R, self.RS))
        return sum(
            float(np.einsum("f,fc->", self.d2[step.filters], self.R[step.seen] ** 2))
            for step in self._l_steps
        )

    def objective(self) -> float:
        """The weighted squared error of the current K and L."""
        return self._unreachable + self._reachable_objective()

    def state(self) -> np.ndarray:
        """All blocks of K and L as one vector."""
        blocks = [self.K[step.block].ravel() for step in self._k_steps]
        blocks += [self.L[step.block].ravel() for step in self._l_steps]
        return np.concatenate(blocks)

    def restore(self, state: np.ndarray) -> None:
        """Make the blocks in ``state`` the current K and L."""
        position = 0
        for matrix, steps in ((self.K, self._k_steps), (self.L, self._l_steps)):
            for step in steps:
                old = matrix[step.block]
                matrix[step.block] = state[position : position + old.size].reshape(old.shape)
                position += old.size
        self._refresh()

    def _refresh(self) -> None:
        """The residual of the current K and L, where blocks can reach it."""
        for step in self._l_steps:
            residual = self.W[step.seen] - self.L[step.block] @ self.K[step.below]
            if self.has_sum:
                residual -= self.K[step.seen]
            self.R[step.seen] = residual
        self.RS = self._times_s(self.R)

    def start(self) -> None:
        """K as near to W as it comes alone, L left to the first sweep; without the sum, block SVD.

        Without the sum and with the identity for S the singular vectors are the optimum: each pair
        of a group of K and a group of L owns the rows of K that connect the two, hence a block of W
        of that rank.
        """
        self.K.fill(0.0)
        self.L.fill(0.0)
        if self.has_sum:
            for step in self._k_steps:
                self.K[step.block] = self.W[step.block]
        else:
            self._start_from_block_svd()
        self._refresh()

    def _start_from_block_svd(self) -> None:
        taken: set[int] = set()
        for filters, l_rows in self.l_groups:
            for rows, columns in self.k_groups:
                common = [row for row in np.intersect1d(rows, l_rows) if row not in taken]
                if not common:
                    continue
                taken.update(common)
                block = self.W[np.ix_(filters, columns)] * np.sqrt(self.d2[filters])[:, None]
                self.K[np.ix_(common, columns)] = self._leading_rows(block, columns, len(common))

    def _leading_rows(self, block: np.ndarray, columns: np.ndarray, count: int) -> np.ndarray:
        """The row space of the best approximation of ``block`` of rank ``count`` in the metric S."""
        if self.S is None:
            _, values, right = np.linalg.svd(block, full_matrices=False)
            basis = right * values[:, None]
        else:
            power, vectors = np.linalg.eigh(self.S[np.ix_(columns, columns)])
            root = np.sqrt(np.clip(power, power.max() * 1e-12, None))
            _, values, right = np.linalg.svd((block @ vectors) * root, full_matrices=False)
            basis = (right * values[:, None] / root) @ vectors.T
        # More rows than the block has rank: spread the rest over the same directions.
        return np.asarray(basis[np.arange(count) % basis.shape[0]])

    def sweep(self) -> None:
        """Each block of L, then each block of K, to its optimum given all others."""
        for l_step in self._l_steps:
            l_step.solve(self)
        for k_step in self._k_steps:
            k_step.solve(self)

    def solve(self, tolerance: float, max_iterations: int) -> None:
        """Sweeps with Anderson acceleration until one improves the objective by less than
        ``tolerance`` of it.

        Plain sweeps stop 10 to 30 % short. Anderson acceleration is a multisecant quasi-Newton
        method (Fang and Saad, "Two classes of multisecant methods for nonlinear acceleration",
        Numerical Linear Algebra with Applications 16, 2009); a step that does not improve on its
        sweep is dropped, so that the objective never rises.
        """
        history: list[tuple[np.ndarray, np.ndarray]] = []
        previous = self.objective()
        before = self.state()
        floor = 1e-14 * self._total
        for _ in range(max_iterations):
            self.sweep()
            swept = self.state()
            current = self.objective()
            history = [*history[-_MEMORY:], (swept, swept - before)]
            before = swept
            if len(history) > 1:
                combined = _accelerated(history)
                self.restore(combined)
                if (faster := self.objective()) < current:
                    current, before = faster, combined
                else:
                    self.restore(swept)
                    history.clear()
            if previous - current <= tolerance * previous or current <= floor:
                break
            previous = current


class _LStep:
    """One group of L: its filters, the rows of K below it, and the columns of W it can change."""

    def __init__(self, problem: FittingProblem, filters: np.ndarray, rows: np.ndarray) -> None:
        wanted = set(rows.tolist())
        own = set(filters.tolist()) if problem.has_sum else set()
        support = [c for r, c in problem.k_groups if not wanted.isdisjoint(r.tolist())]
        seen = support + [c for r, c in problem.k_groups if not own.isdisjoint(r.tolist())]
        every = np.arange(problem.W.shape[1])
        columns = every if problem.S is not None else np.unique(np.concatenate(seen))
        self.filters = filters
        self.block = np.ix_(filters, rows)
        self.seen = np.ix_(filters, columns)
        self.below = np.ix_(rows, columns)
        self.rows = rows

    def solve(self, problem: FittingProblem) -> None:
        """The block of L by least squares, row by row; the weight of a row does not matter."""
        old = problem.L[self.block]
        k = problem.K[self.below]
        k_s = problem._times_s(k)
        gram = k_s @ k.T
        outer = problem.RS[self.seen] @ k.T + old @ gram
        change = solve_gram(gram, outer.T).T - old
        problem.L[self.block] += change
        problem.R[self.seen] -= change @ k
        if problem.S is not None:
            problem.RS[self.filters] -= change @ k_s


class _KStep:
    """One group of K: its rows, its input channels, and the filters it can change."""

    def __init__(self, problem: FittingProblem, rows: np.ndarray, columns: np.ndarray) -> None:
        wanted = set(rows.tolist())
        above = [f for f, r in problem.l_groups if not wanted.isdisjoint(r.tolist())]
        above += [rows] if problem.has_sum else []
        self.filters = np.unique(np.concatenate(above)) if above else np.empty(0, dtype=int)
        self.columns = columns
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
        if problem.S is None:
            problem.R[self.changed] -= a @ change
        else:
            inner = problem.S[np.ix_(self.columns, self.columns)]
            change = solve_gram(inner, change.T).T
            problem.R[self.changed] -= a @ change
            problem.RS[self.filters] -= a @ (change @ problem.S[self.columns])
        problem.K[self.block] += change


def _accelerated(history: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The combination of earlier sweeps whose combined change is least."""
    changes = np.stack([new[1] - old[1] for old, new in pairwise(history)], axis=1)
    moves = np.stack([new[0] - old[0] for old, new in pairwise(history)], axis=1)
    swept, residual = history[-1]
    gram = changes.T @ changes
    return np.asarray(swept - moves @ solve_gram(gram, changes.T @ residual))
