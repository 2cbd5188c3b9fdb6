"""The least-squares problem of one layer without the sum: K by exact steps, L always at its best.

Without the sum, and where no row of K is read by two groups of L, each group of L is a regression
of its own outputs T x, T = diag(d) W, on its own rows z = K x. At the best L, what remains is

    tr(T S T^T) - tr(T S K^T (K S K^T)^-1 K S T^T),

a function of K alone (variable projection: Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973). Given
the rows of all other groups, the best rows of one group have a closed form: take the other rows'
part out of its channels and out of T x, and what is left is reduced-rank regression (Izenman,
"Reduced-rank regression for the multivariate linear model", J. Multivariate Analysis 5, 1975), an
eigenproblem of the size of the group. One group alone is exact low rank in a single step.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from onnx_igpc.fitting.alternating import Groups

# Added to the variances of a group's inputs, relative to the largest: directions that vary less are
# as good as constant.
_VARIANCE_RIDGE = 1e-10
# A row that reduces the error by less than this part of the total is zero.
_LEAST_GAIN = 1e-14
_RANK_TOLERANCE = 1e-10
# Relative to the mean of the diagonal: lets rows be zero or alike.
_RIDGE = 1e-12


@dataclass(frozen=True)
class GroupDirections:
    """The best rows for one group, given the other groups' rows.

    ``rows`` has shape (r, channels of the group), the best first; ``gains``, shape (r,), by how much
    each of them reduces the squared error; ``without`` is the squared error with none of them.
    """

    rows: np.ndarray
    gains: np.ndarray
    without: float


class ProjectionProblem:
    """min over the blocks of K, and over all L, of  |(T - L K) S^(1/2)|^2.

    Args:
        target: T, the dense weight with each filter times its scale, shape (F, C), float64.
        moments: S, shape (C, C), or ``None`` for the identity.
        columns: the input channels of each group of K.

    ``K`` has the rows of each group, shape (rows, channels of the group), and ``gains`` what each
    direction of a group was worth when the group last had its turn (``None`` before that).
    """

    def __init__(
        self, target: np.ndarray, moments: np.ndarray | None, columns: Sequence[np.ndarray]
    ) -> None:
        C = target.shape[1]
        # Only T^T T matters: more filters than channels carry nothing more.
        self.T = np.asarray(np.linalg.qr(target, mode="r")) if target.shape[0] > C else target
        self.S = np.eye(C) if moments is None else moments
        self.TS = self.T if moments is None else self.T @ moments
        self.total = float(np.sum(self.TS * self.T))
        self._plain = moments is None
        self._set_columns(columns)

    def with_columns(
        self, columns: Sequence[np.ndarray], rows: Sequence[np.ndarray]
    ) -> ProjectionProblem:
        """The same layer with other groups and these rows for them."""
        other = copy(self)
        other._set_columns(columns)
        for group, each in enumerate(rows):
            other.assign(group, each)
        return other

    def _set_columns(self, columns: Sequence[np.ndarray]) -> None:
        C = len(self.S)
        self.columns = [np.asarray(each) for each in columns]
        self.K = [np.zeros((0, len(each))) for each in self.columns]
        self._KS = [np.zeros((0, C)) for _ in self.columns]
        self.gains: list[np.ndarray | None] = [None] * len(self.columns)
        everything = np.concatenate(self.columns)
        disjoint = len(np.unique(everything)) == len(everything)
        self._separable = len(self.columns) == 1 or (self._plain and disjoint)

    @property
    def ranks(self) -> list[int]:
        """Rows of each group."""
        return [len(rows) for rows in self.K]

    def directions(self, group: int) -> GroupDirections:
        """The best rows of ``group`` for the rows that the other groups have now."""
        from scipy.linalg import solve_triangular

        own = self.columns[group]
        spread = self.S[np.ix_(own, own)]
        cross = self.TS[:, own]
        without = self.total
        others = [index for index, rows in enumerate(self.K) if index != group and len(rows)]
        if others:
            gram, outer = self._rows_of(others)
            seen = np.concatenate([self._KS[index][:, own] for index in others])
            root = _inverse_root(gram)
            scaled_outer = outer @ root.T
            scaled_seen = root @ seen
            spread = spread - scaled_seen.T @ scaled_seen
            cross = cross - scaled_outer @ scaled_seen
            without -= float(np.sum(scaled_outer**2))
        lower = _lower_root(spread, float(np.diagonal(self.S)[own].max()))
        image = solve_triangular(lower, cross.T, lower=True)
        gains, basis = np.linalg.eigh(image @ image.T)
        rows = solve_triangular(lower, basis[:, ::-1], lower=True, trans=1).T
        gains = np.maximum(gains[::-1], 0.0)
        # What is left here is rounding, in directions that the ridge alone makes directions.
        rows[gains <= _LEAST_GAIN * self.total] = 0.0
        return GroupDirections(rows, gains, without)

    def assign(self, group: int, rows: np.ndarray) -> None:
        """Make ``rows``, shape (count, channels of the group), those of ``group``."""
        self.K[group] = rows
        self._KS[group] = rows @ self.S[self.columns[group]]

    def step(self, group: int, count: int) -> float:
        """Give ``group`` its ``count`` best rows; returns the squared error that is left.

        Rows that can add nothing, because the group has too few directions, are zero.
        """
        found = self.directions(group)
        self.gains[group] = found.gains
        rows = np.zeros((count, len(self.columns[group])))
        chosen = found.rows[:count]
        rows[: len(chosen)] = chosen
        self.assign(group, rows)
        return max(found.without - float(found.gains[:count].sum()), 0.0)

    def objective(self) -> float:
        """The squared error of the current rows at the best L."""
        used = [index for index, rows in enumerate(self.K) if len(rows)]
        if not used:
            return self.total
        gram, outer = self._rows_of(used)
        return max(self.total - float(np.sum((outer @ _inverse_root(gram).T) ** 2)), 0.0)

    def solve(self, ranks: Sequence[int], tolerance: float, max_rounds: int) -> float:
        """Rounds over the groups, each to its optimum given the others, until a round improves by
        less than ``tolerance`` of the squared error. Returns what is left; it never rises.
        """
        previous = error = self.total
        if not any(ranks):
            return error
        for _ in range(max_rounds):
            for group, count in enumerate(ranks):
                if count:
                    error = self.step(group, count)
            if self._separable or previous - error <= tolerance * previous:
                break
            previous = error
        return error

    def k_matrix(self) -> np.ndarray:
        """K, group after group, shape (D, C)."""
        K = np.zeros((sum(self.ranks), len(self.S)))
        for rows, own, columns in zip(self.row_slices(), self.K, self.columns, strict=True):
            K[rows, columns] = own
        return K

    def row_slices(self) -> list[slice]:
        """Where the rows of each group lie in :meth:`k_matrix`."""
        ends = np.cumsum(self.ranks).tolist()
        return [slice(end - count, end) for end, count in zip(ends, self.ranks, strict=True)]

    def best_l(self, target: np.ndarray) -> np.ndarray:
        """L for the current rows, group after group, shape (rows of ``target``, D)."""
        K = self.k_matrix()
        seen = np.concatenate(self._KS)
        root = _inverse_root(seen @ K.T)
        outer: np.ndarray = target @ seen.T @ root.T @ root
        return outer

    def _rows_of(self, groups: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """K S K^T and T S K^T over the rows of some groups."""
        seen = np.concatenate([self._KS[index] for index in groups])
        gram = np.concatenate(
            [seen[:, self.columns[index]] @ self.K[index].T for index in groups], axis=1
        )
        outer = np.concatenate(
            [self.TS[:, self.columns[index]] @ self.K[index].T for index in groups], axis=1
        )
        return gram, outer


def fit_without_sum(
    target: np.ndarray,
    moments: np.ndarray | None,
    k_groups: Groups,
    l_groups: Groups,
    tolerance: float,
    max_rounds: int,
    *,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """K, shape (D, C), and L P, shape (F, D), for ``target`` = diag(d) W, shape (F, C).

    Each group of L is a problem of its own, so that no two of them may read the same row of K.

    Args:
        target: W, each filter times its scale.
        moments: S, shape (C, C), or ``None`` for the identity.
        k_groups: (rows of K, input channels) of each group.
        l_groups: (filters, rows of K) of each group.
        tolerance: see :meth:`ProjectionProblem.solve`, as for ``max_rounds``.
        max_rounds: of each problem.
        start: rows of K to start from, shape (D, C); none if ``None``.
    """
    K = np.zeros((sum(len(rows) for rows, _ in k_groups), target.shape[1]))
    L = np.zeros((len(target), len(K)))
    for filters, read in l_groups:
        parts = [(np.intersect1d(rows, read), columns) for rows, columns in k_groups]
        parts = [(rows, columns) for rows, columns in parts if len(rows)]
        problem = ProjectionProblem(target[filters], moments, [columns for _, columns in parts])
        if start is not None:
            for group, (rows, columns) in enumerate(parts):
                problem.assign(group, start[np.ix_(rows, columns)])
        problem.solve([len(rows) for rows, _ in parts], tolerance, max_rounds)
        for (rows, columns), found in zip(parts, problem.K, strict=True):
            K[np.ix_(rows, columns)] = found
        every = np.concatenate([rows for rows, _ in parts])
        L[np.ix_(filters, every)] = problem.best_l(target[filters])
    return K, L


def _lower_root(spread: np.ndarray, largest: float) -> np.ndarray:
    """The Cholesky factor of a positive semi-definite matrix with a ridge, as large as it must be."""
    ridge = _VARIANCE_RIDGE * max(largest, 1e-100)
    while True:
        try:
            return np.linalg.cholesky(spread + ridge * np.eye(len(spread)))
        except np.linalg.LinAlgError:
            ridge *= 100.0


def _inverse_root(gram: np.ndarray) -> np.ndarray:
    """R with R^T R the inverse of a symmetric positive semi-definite matrix, lower triangular."""
    from scipy.linalg import solve_triangular

    size = len(gram)
    ridge = _RIDGE * max(float(np.trace(gram)) / size, 1e-100)
    for _ in range(8):
        try:
            lower = np.linalg.cholesky(gram + ridge * np.eye(size))
        except np.linalg.LinAlgError:
            ridge *= 100.0
            continue
        inverse: np.ndarray = solve_triangular(lower, np.eye(size), lower=True)
        return inverse
    power, vectors = np.linalg.eigh(gram)
    used = power > _RANK_TOLERANCE * max(float(power.max()), 1e-300)
    root: np.ndarray = (vectors[:, used] / np.sqrt(power[used])).T
    return root
