"""Which channels belong together: what two of them lose by sharing one row of K, and clusters of it.

Two channels a and b with weights t_a, t_b (columns of T = diag(d) W) and moments S lose nothing by
sharing a row where they carry the same signal, or where all filters use them alike: the two singular
values of [t_a t_b] S^(1/2) have the product |t_a| |t_b| sqrt(S_aa S_bb (1 - cos^2) (1 - corr^2)).
Hence the affinity 1 - (1 - cos^2)(1 - corr^2), between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MAX_ROUNDS = 30


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


def balanced_clusters(affinity: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Clusters of exactly the given sizes, each in ascending order; they add up to all items.

    Spectral clustering (Ng, Jordan and Weiss, NIPS 2001), with an assignment problem in the place of
    the nearest centre. Deterministic: centres start at items that are farthest from each other.
    """
    from scipy.optimize import linear_sum_assignment

    if len(sizes) == 1:
        return [np.arange(len(affinity))]
    points = _embedding(affinity, min(len(sizes), len(affinity)))
    centres = points[_spread_items(points, len(sizes))]
    slots = np.repeat(np.arange(len(sizes)), sizes)
    owner = np.empty(0, dtype=int)
    for _ in range(_MAX_ROUNDS):
        distance = ((points[:, None] - centres[None]) ** 2).sum(axis=2)
        _, columns = linear_sum_assignment(distance[:, slots])
        before, owner = owner, slots[columns]
        if np.array_equal(before, owner):
            break
        centres = np.stack([_mean(points[owner == index]) for index in range(len(sizes))])
    return [np.flatnonzero(owner == index) for index in range(len(sizes))]


def _embedding(affinity: np.ndarray, dimensions: int) -> np.ndarray:
    """Leading eigenvectors of the normalised affinity, each item scaled to length 1."""
    links = affinity - np.diag(np.diagonal(affinity))
    root = np.sqrt(np.maximum(links.sum(axis=1), 1e-9))
    _, vectors = np.linalg.eigh(links / np.outer(root, root))
    points = vectors[:, -dimensions:]
    # The sign of an eigenvector is arbitrary; the largest entry decides, for the same result anywhere.
    largest = points[np.abs(points).argmax(axis=0), np.arange(dimensions)]
    points = points * np.where(largest < 0, -1.0, 1.0)
    scaled: np.ndarray = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)
    return scaled


def _spread_items(points: np.ndarray, count: int) -> list[int]:
    chosen = [int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmax())]
    nearest = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return chosen


def _mean(points: np.ndarray) -> np.ndarray:
    return points.mean(axis=0) if len(points) else np.zeros(points.shape[1])
