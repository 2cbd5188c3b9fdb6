"""K covered by even groups of whole blocks of channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnx_igpc.fitting.weights import stage_matrix
from onnx_igpc.sites.subgraph import IgpcSubgraph
from onnx_igpc.sites.writer import SiteWriter


@dataclass(frozen=True, eq=False)
class Cover:
    """K as even groups, of which group g reads the g-th slice of the input's channels.

    ``parts`` has for each group the rows of K that read channels of its slice; the parts of a row
    that reads several slices add up to it. Every group makes ``size`` rows, those beyond its parts
    being zero. ``matrix`` is K itself, shape (rows of K, C).
    """

    groups: int
    channels: int
    size: int
    parts: tuple[np.ndarray, ...]
    matrix: np.ndarray

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

    def write(self, writer: SiteWriter, x: str, bias: np.ndarray | None = None) -> str:
        """K as the cover has it; ``bias`` has one value for each row of K."""
        made = np.zeros((self.groups, self.size, self.channels))
        for group, part in enumerate(self.parts):
            start = group * self.channels
            made[group, : len(part)] = self.matrix[part, start : start + self.channels]
        if bias is not None:
            bias = np.where(self.rows >= 0, bias[self.rows], 0.0)
        kernel = made.reshape(-1, self.channels)
        return writer.conv(x, "K", kernel, groups=self.groups, bias=bias, moving=True)


def covers(site: IgpcSubgraph, block: int) -> Iterator[Cover]:
    """The covers of two groups or more whose channels and rows per group are multiples of ``block``."""
    C = site.layout.in_channels
    ones = tuple(np.ones_like(values) for values in site.k)
    reads, matrix = stage_matrix(site.layout.k, ones) > 0, stage_matrix(site.layout.k, site.k)
    for groups in range(2, C // block + 1):
        if C % (groups * block):
            continue
        slices = np.split(reads, groups, axis=1)
        parts = tuple(np.flatnonzero(each.any(axis=1)) for each in slices)
        size = -(-max(len(part) for part in parts) // block) * block
        yield Cover(groups, C // groups, size, parts, matrix)
