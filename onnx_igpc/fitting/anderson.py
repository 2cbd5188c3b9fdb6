"""Anderson acceleration of a fit that is made by sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.linalg import LinAlgError

# Earlier sweeps that an accelerated step is made from, and what they may take in memory.
_SWEEPS = 8
_BYTES = 32 * 2**20
# Relative to the mean of the diagonal: enough to decide between equally good solutions, too little
# to be seen in the fit.
_RIDGE = 1e-10
# A smaller mean of the diagonal would leave the range of normal numbers with the ridge.
_ZERO = 1e-290


class Sweeping(Protocol):
    """A fit in progress: what is fitted is one vector, and a sweep never raises the objective."""

    def sweep(self) -> None:
        """One step of the plain iteration."""

    def state(self) -> np.ndarray:
        """A copy of what is fitted, shape (n,), float64."""

    def restore(self, state: np.ndarray) -> None:
        """Make ``state`` the current one."""

    def objective(self) -> float:
        """What is minimised, of the current state."""


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


def solve_by_sweeps(
    problem: Sweeping, tolerance: float, max_sweeps: int, floor: float = 0.0
) -> None:
    """Sweeps with Anderson acceleration until one improves the objective by less than
    ``tolerance`` of it, or the objective is no more than ``floor``.

    Plain sweeps stop 10 to 30 % short. Anderson acceleration is a multisecant quasi-Newton
    method (Fang and Saad, "Two classes of multisecant methods for nonlinear acceleration",
    Numerical Linear Algebra with Applications 16, 2009); a step that does not improve on its
    sweep is dropped, so that the objective never rises.
    """
    history = _History()
    previous = problem.objective()
    before = problem.state()
    for _ in range(max_sweeps):
        problem.sweep()
        swept = problem.state()
        current = problem.objective()
        history.add(swept, swept - before)
        before = swept
        if (combined := history.combination()) is not None:
            problem.restore(combined)
            if (faster := problem.objective()) < current:
                current, before = faster, combined
            else:
                problem.restore(swept)
                history = _History()
        if previous - current <= tolerance * previous or current <= floor:
            break
        previous = current


class _History:
    """The last sweeps: how what they led to, and by how much they changed it, differ from one to the
    next."""

    def __init__(self) -> None:
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        self._moves: list[np.ndarray] = []
        self._changes: list[np.ndarray] = []

    def add(self, swept: np.ndarray, change: np.ndarray) -> None:
        if self._last is not None:
            self._moves.append(swept - self._last[0])
            self._changes.append(change - self._last[1])
        kept = max(1, min(_SWEEPS, _BYTES // max(1, 2 * swept.nbytes)))
        del self._moves[:-kept], self._changes[:-kept]
        self._last = (swept, change)

    def combination(self) -> np.ndarray | None:
        """The combination of these sweeps whose combined change is least; ``None`` of a single one."""
        if self._last is None or not self._moves:
            return None
        swept, change = self._last
        gram = np.array([[a @ b for b in self._changes] for a in self._changes])
        shares = solve_gram(gram, np.array([a @ change for a in self._changes]))
        return np.asarray(swept - _sum(self._moves, shares))


def _sum(vectors: Sequence[np.ndarray], factors: np.ndarray) -> np.ndarray:
    total = np.zeros_like(vectors[0])
    for vector, factor in zip(vectors, factors, strict=True):
        total += factor * vector
    return total
