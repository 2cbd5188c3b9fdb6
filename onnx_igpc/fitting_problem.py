"""The least-squares problem of one layer with a K and an L: closed-form sweeps, accelerated.

Kept apart from :mod:`onnx_igpc.fitting` because it holds the state of an iteration: K, A and the
residual W - A K, which every step updates only where the step can change it. Without calibration
data most of the residual is out of reach of all blocks, which makes large layers cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.linalg import LinAlgError

Groups = Sequence[tuple[np.ndarray, np.ndarray]]
State = tuple[np.ndarray, np.ndarray]

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
        l_groups: (filters, rows of K) of each group; filters are disjoint.
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
        F, C = target.shape
        self.E = np.eye(F) if has_sum else np.zeros((F, k_rows or F))
        self.K = np.zeros((self.E.shape[1], C))
        self.A = self.E.copy()
        self.R = self.W.copy()
        self.RS = self._times_s(self.R)
        self._total = self.objective()
        self._support = [self._columns_below(rows_of_k) for _, rows_of_k in self.l_groups]
        self._reach = [self._filters_above(rows) for rows, _ in self.k_groups]

    def _columns_below(self, rows_of_k: np.ndarray) -> np.ndarray:
        """Input channels that any of these rows of K can read."""
        wanted = set(rows_of_k.tolist())
        columns = [c for rows, c in self.k_groups if not wanted.isdisjoint(rows.tolist())]
        return np.unique(np.concatenate(columns))

    def _filters_above(self, rows_of_k: np.ndarray) -> np.ndarray:
        """Filters that any of these rows of K can change."""
        wanted = set(rows_of_k.tolist())
        filters = [f for f, rows in self.l_groups if not wanted.isdisjoint(rows.tolist())]
        if self.E.any():
            filters.append(rows_of_k)
        return np.unique(np.concatenate(filters)) if filters else np.empty(0, dtype=int)

    def _times_s(self, matrix: np.ndarray) -> np.ndarray:
        return matrix if self.S is None else matrix @ self.S

    def l_matrix(self) -> np.ndarray:
        """L P: shape (F, rows of K)."""
        return self.A - self.E

    def objective(self) -> float:
        """The weighted squared error of the current K and L."""
        return float(np.einsum("f,fc,fc->", self.d2, self.R, self.RS))

    def state(self) -> State:
        """A copy of K and A."""
        return self.K.copy(), self.A.copy()

    def restore(self, state: State) -> None:
        """Go back to a :meth:`state`."""
        self.K, self.A = state[0].copy(), state[1].copy()
        self.R = self.W - self._product(self.K, self.A)
        self.RS = self._times_s(self.R)

    def _product(self, K: np.ndarray, A: np.ndarray) -> np.ndarray:
        """A K, by the groups of L: most of A is zero."""
        product = K.copy() if self.E.any() else np.zeros_like(self.W)
        L = A - self.E
        for (filters, rows), support in zip(self.l_groups, self._support, strict=True):
            block = np.ix_(filters, support)
            product[block] += L[np.ix_(filters, rows)] @ K[np.ix_(rows, support)]
        return product

    def start(self) -> None:
        """K as near to W as it comes alone, L left to the first sweep; without the sum, block SVD.

        Without the sum and with the identity for S the singular vectors are the optimum: each pair
        of a group of K and a group of L owns the rows of K that connect the two, hence a block of W
        of that rank.
        """
        if not self.E.any():
            self.restore((self._block_svd(), self.E.copy()))
            return
        K = np.zeros_like(self.K)
        for rows, columns in self.k_groups:
            K[np.ix_(rows, columns)] = self.W[np.ix_(rows, columns)]
        self.restore((K, self.E.copy()))

    def _block_svd(self) -> np.ndarray:
        K = np.zeros_like(self.K)
        taken: set[int] = set()
        for filters, l_rows in self.l_groups:
            for rows, columns in self.k_groups:
                common = [row for row in np.intersect1d(rows, l_rows) if row not in taken]
                if not common:
                    continue
                taken.update(common)
                block = self.W[np.ix_(filters, columns)] * np.sqrt(self.d2[filters])[:, None]
                K[np.ix_(common, columns)] = self._leading_rows(block, columns, len(common))
        return K

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
        for index in range(len(self.l_groups)):
            self._solve_l(index)
        for index in range(len(self.k_groups)):
            self._solve_k(index)

    def _solve_l(self, index: int) -> None:
        filters, rows = self.l_groups[index]
        block = np.ix_(filters, rows)
        old = self.A[block] - self.E[block]
        if self.S is None:
            support = self._support[index]
            k = self.K[np.ix_(rows, support)]
            gram = k @ k.T
            outer = self.R[np.ix_(filters, support)] @ k.T + old @ gram
        else:
            k = self.K[rows]
            k_s = k @ self.S
            gram = k_s @ k.T
            outer = self.RS[filters] @ k.T + old @ gram
        change = solve_gram(gram, outer.T).T - old
        self.A[block] += change
        if self.S is None:
            self.R[np.ix_(filters, support)] -= change @ k
        else:
            self.R[filters] -= change @ k
            self.RS[filters] -= change @ k_s

    def _solve_k(self, index: int) -> None:
        rows, columns = self.k_groups[index]
        filters = self._reach[index]
        if not len(filters):
            return
        a = self.A[np.ix_(filters, rows)]
        weighted = a.T * self.d2[filters]
        gram = weighted @ a
        old = self.K[np.ix_(rows, columns)]
        block = np.ix_(filters, columns)
        if self.S is None:
            change = solve_gram(gram, weighted @ self.R[block] + gram @ old) - old
            self.R[block] -= a @ change
        else:
            inner = self.S[np.ix_(columns, columns)]
            # Both sides of gram X inner = right are solved for the change alone: what is there
            # already need not pass through the badly conditioned inner matrix.
            change = solve_gram(gram, weighted @ self.RS[block])
            change = solve_gram(inner, change.T).T
            self.R[block] -= a @ change
            self.RS[filters] -= a @ (change @ self.S[columns])
        self.K[np.ix_(rows, columns)] += change

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
        floor = 1e-14 * self._total
        for _ in range(max_iterations):
            before = self._pack()
            self.sweep()
            swept = self._pack()
            current = self.objective()
            history = [*history[-_MEMORY:], (swept, swept - before)]
            if len(history) > 1:
                state = self.state()
                self._unpack(_accelerated(history))
                if (faster := self.objective()) < current:
                    current = faster
                else:
                    self.restore(state)
                    history.clear()
            if previous - current <= tolerance * previous or current <= floor:
                break
            previous = current

    def _pack(self) -> np.ndarray:
        """All blocks of K and L as one vector."""
        L = self.l_matrix()
        blocks = [self.K[np.ix_(*group)].ravel() for group in self.k_groups]
        blocks += [L[np.ix_(*group)].ravel() for group in self.l_groups]
        return np.concatenate(blocks)

    def _unpack(self, vector: np.ndarray) -> None:
        """Make the blocks in ``vector`` the current K and L."""
        K, L = np.zeros_like(self.K), np.zeros_like(self.A)
        position = 0
        for matrix, groups in ((K, self.k_groups), (L, self.l_groups)):
            for rows, columns in groups:
                size = len(rows) * len(columns)
                block = vector[position : position + size].reshape(len(rows), len(columns))
                matrix[np.ix_(rows, columns)] = block
                position += size
        self.restore((K, L + self.E))


def _accelerated(history: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The combination of earlier sweeps whose combined change is least."""
    changes = np.stack([new[1] - old[1] for old, new in pairwise(history)], axis=1)
    moves = np.stack([new[0] - old[0] for old, new in pairwise(history)], axis=1)
    swept, residual = history[-1]
    gram = changes.T @ changes
    return np.asarray(swept - moves @ solve_gram(gram, changes.T @ residual))
