"""First and second moments of activations, added up batch by batch in float64.

Products are taken in float32 (float64 for float64 activations) of values from which the first
batch's mean was subtracted, so that the centred moments do not suffer where a mean is large beside
the deviation; every partial sum is then added in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

# Columns that are multiplied at once: float32 sums stay short and their temporaries small.
_COLUMNS = 1 << 15


@dataclass(frozen=True)
class Moments:
    """Of one layer's input, a sample being one spatial position of one sample of the data.

    mean: shape (C,). second: centred, E[(x - mean)(x - mean)^T], shape (C, C). Both float64.
    count: positions that were seen, at least 1.
    """

    mean: np.ndarray
    second: np.ndarray
    count: int

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Those of all positions of several parts of the data, at least one, about their common mean."""
        counts = np.array([part.count for part in parts], dtype=np.float64)
        shares = counts / counts.sum()
        mean = np.asarray(sum(share * part.mean for share, part in zip(shares, parts, strict=True)))
        second = np.zeros_like(parts[0].second)
        for share, part in zip(shares, parts, strict=True):
            apart = part.mean - mean
            second += share * (part.second + np.outer(apart, apart))
        return cls(mean, second, int(counts.sum()))


@dataclass(frozen=True)
class SiteStatistics:
    """What a fit needs to know of a site's input in the original, x, and in the rewrite so far, x^.

    mean, mean_rewritten: m = E[x] and m^ = E[x^], shape (C,). second: E[(x - m)(x - m)^T], cross:
    E[(x - m)(x^ - m^)^T], second_rewritten: E[(x^ - m^)(x^ - m^)^T], shape (C, C). All float64 and
    independent of the site's weight. count: positions that were seen, at least 1.
    """

    mean: np.ndarray
    mean_rewritten: np.ndarray
    second: np.ndarray
    cross: np.ndarray
    second_rewritten: np.ndarray
    count: int

    @classmethod
    def unchanged(cls, moments: Moments) -> SiteStatistics:
        """Where what comes before the site is as in the original: x^ is x."""
        mean, second = moments.mean, moments.second
        return cls(mean, mean, second, second, second, moments.count)

    def blended(self, share: float) -> SiteStatistics:
        """With this share of x^'s second moments taken from x: the fit then relies less on how the
        errors of the sites before look on these very samples. The means stay: they are a bias's."""
        if share <= 0 or self.cross is self.second:
            return self
        if share >= 1:
            return replace(self, cross=self.second, second_rewritten=self.second)
        return replace(
            self,
            cross=(1 - share) * self.cross + share * self.second,
            second_rewritten=(1 - share) * self.second_rewritten + share * self.second,
        )

    @classmethod
    def joined(cls, parts: Sequence[SiteStatistics]) -> SiteStatistics:
        """Those of all positions of several parts of the data, at least one, about their common means."""
        if len(parts) == 1:
            return parts[0]
        counts = np.array([part.count for part in parts], dtype=np.float64)
        shares = counts / counts.sum()

        def mean(values: Sequence[np.ndarray]) -> np.ndarray:
            return np.asarray(np.tensordot(shares, np.stack(values), axes=1))

        if all(part.cross is part.second for part in parts):
            moments = [Moments(part.mean, part.second, part.count) for part in parts]
            return cls.unchanged(Moments.joined(moments))
        m, rewritten = mean([p.mean for p in parts]), mean([p.mean_rewritten for p in parts])
        second, cross, changed = (np.zeros_like(parts[0].second) for _ in range(3))
        for share, part in zip(shares, parts, strict=True):
            a, b = part.mean - m, part.mean_rewritten - rewritten
            second += share * (part.second + np.outer(a, a))
            cross += share * (part.cross + np.outer(a, b))
            changed += share * (part.second_rewritten + np.outer(b, b))
        return cls(m, rewritten, second, cross, changed, int(counts.sum()))

    @classmethod
    def pooled(cls, parts: Sequence[SiteStatistics]) -> SiteStatistics:
        """For one weight that several sites share, each having a bias, hence means, of its own.

        Second moments are averaged over all positions about the mean of the site they belong to. The
        means are averaged too, which serves for nothing but completeness: a bias is a site's own.
        """
        if len(parts) == 1:
            return parts[0]
        counts = np.array([part.count for part in parts], dtype=np.float64)
        shares = counts / counts.sum()

        def average(name: str) -> np.ndarray:
            values = np.stack([getattr(part, name) for part in parts])
            return np.asarray(np.tensordot(shares, values, axes=1))

        return cls(
            average("mean"),
            average("mean_rewritten"),
            average("second"),
            average("cross"),
            average("second_rewritten"),
            int(counts.sum()),
        )


class MomentsAccumulator:
    """Adds up :class:`Moments`; memory does not depend on how much is added."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._shift: np.ndarray | None = None
        self._sum = np.zeros(channels)
        self._products = np.zeros((channels, channels))

    def add(self, values: np.ndarray) -> np.ndarray:
        """Add positions, shape (C, positions), float32 or float64; returns them shifted."""
        if self._shift is None and values.shape[1]:
            self._shift = values.mean(axis=1, dtype=np.float64).astype(values.dtype)
        shifted = values if self._shift is None else values - self._shift[:, np.newaxis]
        self.count += values.shape[1]
        self._sum += shifted.sum(axis=1, dtype=np.float64)
        add_products(self._products, shifted, shifted)
        return shifted

    @property
    def offset(self) -> np.ndarray:
        """Mean of the shifted values, shape (C,)."""
        return self._sum / self.count

    def result(self) -> Moments | None:
        """What was added so far; ``None`` where that is nothing."""
        if not self.count or self._shift is None:
            return None
        offset = self.offset
        second = self._products / self.count - np.outer(offset, offset)
        return Moments(self._shift + offset, (second + second.T) / 2, self.count)


class PairAccumulator:
    """Adds up :class:`SiteStatistics` from the original's and the rewrite's values side by side."""

    def __init__(self, channels: int) -> None:
        self._original = MomentsAccumulator(channels)
        self._rewritten = MomentsAccumulator(channels)
        self._products = np.zeros((channels, channels))

    def add(self, original: np.ndarray, rewritten: np.ndarray) -> None:
        """Add the same positions of both, each of shape (C, positions), float32 or float64."""
        add_products(self._products, self._original.add(original), self._rewritten.add(rewritten))

    def result(self) -> SiteStatistics | None:
        """What was added so far; ``None`` where that is nothing."""
        original, rewritten = self._original.result(), self._rewritten.result()
        if original is None or rewritten is None:
            return None
        cross = self._products / original.count
        cross -= np.outer(self._original.offset, self._rewritten.offset)
        return SiteStatistics(
            original.mean,
            rewritten.mean,
            original.second,
            cross,
            rewritten.second,
            original.count,
        )


def add_products(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Add ``left @ right.T`` to ``total``, float64; the factors have shape (C, positions)."""
    for start in range(0, left.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        a = left[:, columns]
        # numpy computes a @ a.T at half the price, but only if both are the same array.
        total += a @ (a if right is left else right[:, columns]).T
