"""Which channels belong together: what two of them lose by sharing one row of K, and clusters of it.

Two channels a and b with weights t_a, t_b (columns of T = diag(d) W) and moments S lose nothing by
sharing a row where they carry the same signal, or where all filters use them alike: the two singular
values of [t_a t_b] S^(1/2) have the product |t_a| |t_b| sqrt(S_aa S_bb (1 - cos^2) (1 - corr^2)).
Hence the affinity 1 - (1 - cos^2)(1 - corr^2), between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

_MAX_ROUNDS = 30
# Items up to which they are assigned exactly; the time grows with the cube.
_MOST_EXACT = 512


def channel_affinity(target: np.ndarray, moments: np.ndarray | None) -> np.ndarray:
    """Affinity of each pair of input channels, shape (C, C), for T of shape (F, C) and S."""
    unlike = 1.0 - squared_cosines(target.T @ target)
    if moments is not None:
        unlike *= 1.0 - squared_cosines(moments)
    return 1.0 - unlike


def squared_cosines(gram: np.ndarray) -> np.ndarray:
    """cos^2 between vectors, given their inner products; 0 for a vector that is zero."""
    power = np.maximum(np.diagonal(gram), 0.0)
    scale = np.where(power > 1e-300, power, 1.0)
    cosines: np.ndarray = np.clip(gram**2 / np.outer(scale, scale), 0.0, 1.0)
    return cosines


class Clustering:
    """Clusters of the items of one affinity, shape (n, n), in any numbers and sizes.

    Spectral clustering (Ng, Jordan and Weiss, NIPS 2001), the nearest centre being replaced by an
    assignment that keeps to the sizes. The eigenvectors are computed once. Deterministic:
    centres start at items that are farthest from each other.
    """

    def __init__(self, affinity: np.ndarray) -> None:
        self._affinity = affinity
        self._found: dict[tuple[int, ...], list[np.ndarray]] = {}

    @cached_property
    def _vectors(self) -> np.ndarray:
        """Eigenvectors of the normalised affinity, the leading one last."""
        links = self._affinity - np.diag(np.diagonal(self._affinity))
        root = np.sqrt(np.maximum(links.sum(axis=1), 1e-9))
        _, vectors = np.linalg.eigh(links / np.outer(root, root))
        # The sign of an eigenvector is arbitrary; the largest entry decides, for the same result
        # anywhere.
        largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(len(vectors))]
        return vectors * np.where(largest < 0, -1.0, 1.0)

    def balanced(self, sizes: Sequence[int]) -> list[np.ndarray]:
        """Clusters of exactly the given sizes, each in ascending order; they add up to all items."""
        key = tuple(sizes)
        if key not in self._found:
            self._found[key] = self._balanced(sizes)
        return self._found[key]

    def _balanced(self, sizes: Sequence[int]) -> list[np.ndarray]:
        count = len(self._affinity)
        if len(sizes) == 1:
            return [np.arange(count)]
        points = self._vectors[:, -min(len(sizes), count) :]
        points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)
        centres = points[_spread_items(points, len(sizes))]
        owner = np.empty(0, dtype=int)
        for _ in range(_MAX_ROUNDS):
            before, owner = owner, _assigned(_squared_distances(points, centres), sizes)
            if np.array_equal(before, owner):
                break
            centres = np.stack([_mean(points[owner == index]) for index in range(len(sizes))])
        return [np.flatnonzero(owner == index) for index in range(len(sizes))]


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Shape (points, centres); rounded, so that the last bits decide nothing."""
    found = (points**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * points @ centres.T
    return np.asarray(np.round(found, 12))


def _assigned(distance: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The cluster of each item, shape (n,), with the least sum of distances for these sizes.

    Among many items only near to the least: they go to the nearest cluster with room, and where too
    many want the same, those stay that would lose most by the next one.
    """
    from scipy.optimize import linear_sum_assignment

    if len(distance) <= _MOST_EXACT:
        slots = np.repeat(np.arange(len(sizes)), sizes)
        return np.asarray(slots[linear_sum_assignment(distance[:, slots])[1]])
    owner = np.full(len(distance), -1)
    room = np.asarray(sizes).copy()
    distance = np.where(room > 0, distance, np.inf)
    waiting = np.arange(len(distance))
    while len(waiting):
        here = distance[waiting]
        wanted = here.argmin(axis=1)
        rows = np.arange(len(waiting))
        nearest = here[rows, wanted]
        here[rows, wanted] = np.inf
        loss = here.min(axis=1) - nearest
        order = np.lexsort((waiting, nearest, -loss, wanted))
        ranked = wanted[order]
        place = np.arange(len(order)) - np.searchsorted(ranked, ranked)
        staying = order[place < room[ranked]]
        owner[waiting[staying]] = wanted[staying]
        room -= np.bincount(wanted[staying], minlength=len(room))
        distance[:, room == 0] = np.inf
        waiting = waiting[owner[waiting] < 0]
    return owner


def _spread_items(points: np.ndarray, count: int) -> list[int]:
    chosen = [int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmax())]
    nearest = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return chosen


def _mean(points: np.ndarray) -> np.ndarray:
    return points.mean(axis=0) if len(points) else np.zeros(points.shape[1])
