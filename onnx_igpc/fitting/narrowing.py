"""A pointwise convolution that reads some of its channels alone: which ones, and with what weights.

The map W x + b is made of the channels S that stay, M x_S + b', by least squares. Which channels to leave out is
found by leaving out those first whose absence the others make up for best (the order of optimal brain surgeon, Hassibi
and Stork, NIPS 1992, here for the channels of a linear map).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_igpc.fitting.moments import Moments, SiteStatistics

# Added to every channel's variance, as a part of their mean, where channels are chosen.
_LOADING = 1e-4
# Channels that are left out at once: a part of all, but numbers that can be divided by this one are not passed over.
_AT_ONCE = 1 / 128
_WHOLE = 8
# Added in the same way where weights are fitted: what does least damage to parts of the data left out of the fit is
# taken, first for what makes up for the channels that are gone, then for what went wrong before them.
_OWN = (1e-3, 3e-2, 1.0)
_CORRECTION = (3e-2, 1.0, 30.0)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The channels of a map, those first that should stay longest.

    errors: of keeping n of the C channels, E|W x - M x_S|^2 as a part of the variance of W x, shape (C + 1,); NaN where
    no n was looked at, which no multiple of 8 is.
    """

    order: np.ndarray
    errors: np.ndarray

    def kept(self, count: int) -> tuple[int, ...]:
        """The channels to keep, rising."""
        return tuple(sorted(self.order[:count].tolist()))


@dataclass(frozen=True, eq=False)
class NarrowWeights:
    """M, shape (F, len(kept)), and b', (F,); ``error`` as :class:`Ranking` has it, on what it was fitted to."""

    kept: tuple[int, ...]
    matrix: np.ndarray
    bias: np.ndarray
    error: float

    def dense(self, channels: int) -> np.ndarray:
        """The same map of all channels, shape (F, channels), of which it reads those that stay."""
        full = np.zeros((len(self.matrix), channels))
        full[:, list(self.kept)] = self.matrix
        return full


def rank_channels(weight: np.ndarray, second: np.ndarray, fewest: int = 1) -> Ranking:
    """The order in which to leave out channels, down to ``fewest``.

    Args:
        weight: W, shape (F, C).
        second: centred second moments of x, shape (C, C).
    """
    C = len(second)
    loaded = second + max(_LOADING * np.trace(second) / C, 1e-30) * np.eye(C)
    inverse, matrix = np.linalg.inv(loaded), weight.astype(np.float64)
    variance = max(float(np.sum((matrix @ loaded) * matrix)), 1e-30)
    alive, gone, lost = np.arange(C), [], 0.0
    errors = np.full(C + 1, np.nan)
    errors[C] = 0.0
    while len(alive) > fewest:
        cost = np.sum(matrix**2, axis=0) / np.diag(inverse)
        to_whole = len(alive) % _WHOLE or _WHOLE
        several = max(min(int(C * _AT_ONCE), len(alive) - fewest, to_whole), 1)
        out = np.argsort(cost, kind="stable")[:several]
        stay = np.setdiff1d(np.arange(len(alive)), out)
        between = np.linalg.solve(inverse[np.ix_(out, out)], inverse[np.ix_(out, stay)])
        lost += float(
            np.sum(matrix[:, out] * np.linalg.solve(inverse[np.ix_(out, out)], matrix[:, out].T).T)
        )
        matrix = matrix[:, stay] - matrix[:, out] @ between
        inverse = inverse[np.ix_(stay, stay)] - inverse[np.ix_(stay, out)] @ between
        gone += alive[out].tolist()
        alive = alive[stay]
        errors[len(alive)] = lost / variance
    last = alive[np.argsort(-np.sum(matrix**2, axis=0) / np.diag(inverse), kind="stable")]
    return Ranking(np.array([*last.tolist(), *reversed(gone)], dtype=int), errors)


def fit_narrow(
    weight: np.ndarray,
    bias: np.ndarray | None,
    kept: Sequence[int],
    parts: Sequence[SiteStatistics],
) -> NarrowWeights:
    """The map of the kept channels in the rewrite that comes nearest to the whole one in the original.

    First what makes up for the channels that are gone, on the original's activations, then what makes up for what
    the rewrite changed before; how far to go in each is chosen on parts of the data left out.

    Args:
        weight: W, shape (F, C). bias: (F,).
        kept: the channels that are read.
        parts: of the input, on parts of the data.
    """
    towards = weight[:, list(kept)].astype(np.float64)
    own = [_View.of(weight, kept, _as_original(part)) for part in parts]
    ridge = _best(_OWN, own, lambda view, ridge: view.solved(towards, ridge))
    view = _View.joined(own)
    matrix = view.solved(towards, ridge)
    if any(part.cross is not part.second for part in parts):
        views = [_View.of(weight, kept, part) for part in parts]
        view, start = _View.joined(views), matrix
        ridge = _best(_CORRECTION, views, lambda view, ridge: view.solved(start, ridge))
        matrix = view.solved(start, ridge)
    return _weights(kept, matrix, bias, view)


def fit_without_each(
    weight: np.ndarray,
    bias: np.ndarray | None,
    kept: Sequence[int],
    parts: Sequence[SiteStatistics],
) -> list[NarrowWeights]:
    """For each part of the data the map that is fitted to all others, of channels in the original.

    How far it is drawn towards W is one number for all of them, which each part has its share in.
    """
    towards = weight[:, list(kept)].astype(np.float64)
    views = [_View.of(weight, kept, part) for part in parts]
    ridge = _best(_OWN, views, lambda view, ridge: view.solved(towards, ridge))
    rests = [_View.joined(_others(views, number)) for number in range(len(views))]
    return [_weights(kept, rest.solved(towards, ridge), bias, rest) for rest in rests]


def _as_original(part: SiteStatistics) -> SiteStatistics:
    return SiteStatistics.unchanged(Moments(part.mean, part.second, part.count))


@dataclass(frozen=True, eq=False)
class _View:
    """Of some data what a fit needs: of y = W x and of the kept channels z of the rewrite.

    made, read: the means, (F,) and (k,). power: E|y - made|^2. cross: E[(y - made)(z - read)^T], (F, k). second: that of
    z, (k, k). ``count`` positions.
    """

    made: np.ndarray
    read: np.ndarray
    power: float
    cross: np.ndarray
    second: np.ndarray
    count: int

    @classmethod
    def of(cls, weight: np.ndarray, kept: Sequence[int], stats: SiteStatistics) -> _View:
        W, some = weight.astype(np.float64), list(kept)
        return cls(
            W @ stats.mean,
            stats.mean_rewritten[some],
            float(np.sum((W @ stats.second) * W)),
            W @ stats.cross[:, some],
            stats.second_rewritten[np.ix_(some, some)],
            stats.count,
        )

    @classmethod
    def joined(cls, views: Sequence[_View]) -> _View:
        """Of all of the data, about its means."""
        if len(views) == 1:
            return views[0]
        total = sum(view.count for view in views)
        shares = [view.count / total for view in views]
        made = np.sum([a * view.made for a, view in zip(shares, views, strict=True)], axis=0)
        read = np.sum([a * view.read for a, view in zip(shares, views, strict=True)], axis=0)
        power, cross, second = 0.0, np.zeros_like(views[0].cross), np.zeros_like(views[0].second)
        for share, view in zip(shares, views, strict=True):
            y, z = view.made - made, view.read - read
            power += share * (view.power + float(y @ y))
            cross += share * (view.cross + np.outer(y, z))
            second += share * (view.second + np.outer(z, z))
        return cls(made, read, power, cross, second, total)

    def solved(self, towards: np.ndarray, ridge: float) -> np.ndarray:
        """The map of z that comes nearest to y, drawn towards a given one."""
        loading = max(ridge * np.trace(self.second) / len(self.second), 1e-30)
        loaded = self.second + loading * np.eye(len(self.second))
        wanted = (self.cross - towards @ self.second).T
        return np.asarray(towards + np.linalg.solve(loaded, wanted).T)

    def missed(self, matrix: np.ndarray, fitted: _View) -> float:
        """E|y - M z - b|^2, b being that of other data."""
        shift = (self.made - fitted.made) - matrix @ (self.read - fitted.read)
        both, own = np.sum(self.cross * matrix), np.sum((matrix @ self.second) * matrix)
        return float(self.power - 2 * both + own + shift @ shift)


def _others(views: Sequence[_View], number: int) -> list[_View]:
    """All views but one; that one where there is no other."""
    return [*views[:number], *views[number + 1 :]] or list(views)


def _best(
    ridges: Sequence[float], views: Sequence[_View], solve: Callable[[_View, float], np.ndarray]
) -> float:
    """The ridge with which fits to all parts of the data but one miss least on that one."""
    if len(views) == 1:
        return ridges[len(ridges) // 2]
    missed = np.zeros(len(ridges))
    for number, view in enumerate(views):
        rest = _View.joined(_others(views, number))
        missed += [view.count * view.missed(solve(rest, ridge), rest) for ridge in ridges]
    return ridges[int(np.argmin(missed))]


def _weights(
    kept: Sequence[int], matrix: np.ndarray, bias: np.ndarray | None, view: _View
) -> NarrowWeights:
    made = view.made - matrix @ view.read
    error = max(view.missed(matrix, view), 0.0) / view.power if view.power > 0 else 0.0
    return NarrowWeights(tuple(kept), matrix, made if bias is None else bias + made, error)
