"""K covered by even groups of whole blocks of channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnx_igpc.fitting import stage_matrix
from onnx_igpc.lowering.subgraph import IgpcSubgraph


@dataclass(frozen=True, eq=False)
class Cover:
    """K as even groups, of which group g reads the g-th slice of the input's channels.

    ``parts`` has for each group the rows of K that read channels of its slice; the parts of a row
    that reads several slices add up to it. Every group makes ``size`` rows, those beyond its parts
    being zero.
    """

    groups: int
    channels: int
    size: int
    parts: tuple[np.ndarray, ...]

    @property
    def rows(self) -> np.ndarray:
        """The row of K of which each row made is a part, -1 for zeros; shape (groups * size,)."""
        rows = np.full((self.groups, self.size), -1)
        for group, part in enumerate(self.parts):
            rows[group, : len(part)] = part
        return rows.reshape(-1)

    @property
    def splits_rows(self) -> bool:
        """Whether a row of K is written in several parts."""
        everything = np.concatenate(self.parts)
        return len(np.unique(everything)) < len(everything)

    @property
    def weights(self) -> int:
        """How many weights there are, zeros included."""
        return self.groups * self.size * self.channels

    def kernel(self, site: IgpcSubgraph) -> np.ndarray:
        """The weights, float64 of shape (groups * size, channels per group)."""
        K = stage_matrix(site.layout.k, site.k)
        made = np.zeros((self.groups, self.size, self.channels))
        for group, part in enumerate(self.parts):
            start = group * self.channels
            made[group, : len(part)] = K[part, start : start + self.channels]
        return made.reshape(-1, self.channels)


def covers(site: IgpcSubgraph, block: int) -> Iterator[Cover]:
    """The covers of two groups or more whose channels and rows per group are multiples of ``block``."""
    C = site.layout.in_channels
    ones = tuple(np.ones_like(values) for values in site.k)
    reads = stage_matrix(site.layout.k, ones) > 0
    for groups in range(2, C // block + 1):
        if C % (groups * block):
            continue
        slices = np.split(reads, groups, axis=1)
        parts = tuple(np.flatnonzero(each.any(axis=1)) for each in slices)
        size = -(-max(len(part) for part in parts) // block) * block
        yield Cover(groups, C // groups, size, parts)
