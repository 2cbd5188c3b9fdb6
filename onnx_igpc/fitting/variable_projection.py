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
from onnx_igpc.fitting.semidefinite import leading, lower_root, ridge, solve_lower

# Added to the variances of a group's inputs, relative to the largest: directions that vary less are
# as good as constant.
_VARIANCE_RIDGE = 1e-10
# A row that reduces the error by less than this part of the total is zero.
_LEAST_GAIN = 1e-14


@dataclass(frozen=True)
class GroupDirections:
    """The best rows for one group, given the other groups' rows.

    ``rows`` has shape (r, channels of the group), the best first; ``gains``, of r entries or more, by
    how much each of them and of those that were not asked for reduces the squared error; ``without``
    is the squared error with none of them.
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
        self._power = self.TS @ self.T.T
        self.total = float(np.trace(self._power))
        self._variances = np.diagonal(self.S)
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

    def copied(self) -> ProjectionProblem:
        """The same groups with the same rows, to be changed apart."""
        other = copy(self)
        for name in ("K", "gains", "_seen", "_outer", "_inner"):
            setattr(other, name, copy(getattr(self, name)))
        return other

    def _set_columns(self, columns: Sequence[np.ndarray]) -> None:
        C = len(self.S)
        self.columns = [np.asarray(each) for each in columns]
        self.K = [np.zeros((0, len(each))) for each in self.columns]
        self.gains: list[np.ndarray | None] = [None] * len(self.columns)
        # K S of each group, T S K^T, and K S K^T of each pair whose first is not before its second.
        self._seen = [np.zeros((0, C)) for _ in self.columns]
        self._outer = [np.zeros((len(self.T), 0)) for _ in self.columns]
        self._inner: dict[tuple[int, int], np.ndarray] = {}
        everything = np.concatenate(self.columns)
        disjoint = len(np.unique(everything)) == len(everything)
        self._separable = len(self.columns) == 1 or (self._plain and disjoint)
        # Contiguous parts of S and T S, which every turn of a group needs.
        self._spreads = [(self.S[own], self.TS[:, own]) for own in self.columns]

    @property
    def ranks(self) -> list[int]:
        """Rows of each group."""
        return [len(rows) for rows in self.K]

    def directions(self, group: int, count: int | None = None) -> GroupDirections:
        """The best rows of ``group``, at most ``count``, for the rows that the other groups have now."""
        others = [index for index, rows in enumerate(self.K) if index != group and len(rows)]
        if len(self.columns[group]) == len(self.S):
            return self._directions_of_everything(group, others, count)
        own = self.columns[group]
        seen, cross = self._spreads[group]
        # One factor of the moments of the others' rows and of the group's channels together: what
        # the others leave of the channels and of T x needs no products of its own.
        first, gram = self._inner_products(others, len(own))
        start = 0
        for index in others:
            end = start + len(self.K[index])
            gram[first:, start:end] = self._seen[index][:, own].T
            start = end
        gram[first:, first:] = seen[:, own]
        ridges = np.full(
            len(gram), _VARIANCE_RIDGE * max(float(self._variances[own].max()), 1e-100)
        )
        ridges[:first] = ridge(gram[:first, :first])
        lower = lower_root(gram, ridges)
        right = np.concatenate([*(self._outer[index] for index in others), cross], axis=1)
        solved = solve_lower(lower, right.T)
        without = self.total - float(np.sum(solved[:first] ** 2))
        image = solved[first:]
        if len(image) <= len(self.T):
            gains, basis = leading(image @ image.T, count)
        else:
            gains, vectors = leading(image.T @ image, count)
            basis = image @ vectors / np.sqrt(np.maximum(gains[: vectors.shape[1]], 1e-300))
        rows = solve_lower(lower[first:, first:], basis, transposed=True).T
        return self._found(rows, gains, without)

    def _directions_of_everything(
        self, group: int, others: Sequence[int], count: int | None
    ) -> GroupDirections:
        """For a group that reads every channel: the leading outputs of what the others leave of T x."""
        power, remaining, without = self._power, self.T, self.total
        if others:
            first, gram = self._inner_products(others, 0)
            lower = lower_root(gram, np.full(first, ridge(gram)))
            outer = np.concatenate([self._outer[index] for index in others], axis=1)
            solved = solve_lower(lower, outer.T)
            without -= float(np.sum(solved**2))
            power = power - solved.T @ solved
            back = solve_lower(lower, solved, transposed=True).T
            remaining = self.T.copy()
            start = 0
            for index in others:
                end = start + len(self.K[index])
                remaining[:, self.columns[index]] -= back[:, start:end] @ self.K[index]
                start = end
        gains, basis = leading(power, count)
        scale = np.sqrt(np.maximum(gains[: basis.shape[1]], 1e-300))
        rows = (basis / scale).T @ remaining[:, self.columns[group]]
        return self._found(rows, gains, without)

    def _found(self, rows: np.ndarray, gains: np.ndarray, without: float) -> GroupDirections:
        # What is left here is rounding, in directions that the ridge alone makes directions.
        rows[gains[: len(rows)] <= _LEAST_GAIN * self.total] = 0.0
        return GroupDirections(rows, gains, without)

    def assign(self, group: int, rows: np.ndarray) -> None:
        """Make ``rows``, shape (count, channels of the group), those of ``group``."""
        seen, cross = self._spreads[group]
        self.K[group] = rows
        self._seen[group] = rows @ seen
        self._outer[group] = cross @ rows.T
        for other, columns in enumerate(self.columns):
            if len(rows) and len(self.K[other]):
                product = self._seen[group][:, columns] @ self.K[other].T
                self._inner[max(group, other), min(group, other)] = (
                    product if group >= other else product.T
                )

    def step(self, group: int, count: int) -> float:
        """Give ``group`` its ``count`` best rows; returns the squared error that is left.

        Rows that can add nothing, because the group has too few directions, are zero.
        """
        found = self.directions(group, count)
        self.gains[group] = found.gains
        rows = np.zeros((count, len(self.columns[group])))
        rows[: len(found.rows)] = found.rows
        self.assign(group, rows)
        return max(found.without - float(found.gains[:count].sum()), 0.0)

    def objective(self) -> float:
        """The squared error of the current rows at the best L."""
        used = [index for index, rows in enumerate(self.K) if len(rows)]
        if not used:
            return self.total
        first, gram = self._inner_products(used, 0)
        lower = lower_root(gram, np.full(first, ridge(gram)))
        outer = np.concatenate([self._outer[index] for index in used], axis=1)
        return max(self.total - float(np.sum(solve_lower(lower, outer.T) ** 2)), 0.0)

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
        used = [index for index, rows in enumerate(self.K) if len(rows)]
        first, gram = self._inner_products(used, 0)
        lower = lower_root(gram, np.full(first, ridge(gram)))
        seen = np.concatenate([self._seen[index] for index in used])
        half = solve_lower(lower, seen @ target.T)
        return solve_lower(lower, half, transposed=True).T

    def _inner_products(self, groups: Sequence[int], further: int) -> tuple[int, np.ndarray]:
        """The number of rows of some groups, in ascending order, and a matrix with that many rows and
        columns more than ``further``: K S K^T in its lower triangle, the rest not yet set.
        """
        ends = np.cumsum([0, *(len(self.K[index]) for index in groups)]).tolist()
        gram = np.zeros((ends[-1] + further, ends[-1] + further))
        for i, row in enumerate(groups):
            for j, column in enumerate(groups[: i + 1]):
                gram[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] = self._inner[row, column]
        return ends[-1], gram


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
