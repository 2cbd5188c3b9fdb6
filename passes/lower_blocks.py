"""Writing K in whole blocks of channels, as runtimes with a blocked layout want it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from onnx_igpc.fitting import stage_matrix
from onnx_igpc.lowering.stages import second_matrix
from onnx_igpc.lowering.subgraph import IgpcSubgraph
from onnx_igpc.lowering.writer import SiteWriter
from onnx_igpc.passes.lowering import Lowering


@dataclass(frozen=True, eq=False)
class _Cover:
    """K as even groups: group g reads the g-th slice of the input's channels.

    ``rows`` has the row of K of which each row is a part, -1 for zeros; ``weights`` has shape
    (groups * rows per group, channels per group). The parts of a row add up to it.
    """

    groups: int
    rows: np.ndarray
    weights: np.ndarray


class LowerBlocks(Lowering):
    """Write y = (I + L P) K x + b as a K of whole blocks and one dense convolution.

    Rules:

    * Applies where there is an L and the input channels are two blocks or more.
    * K's groups are merged into even ones over consecutive channels, a multiple of ``block`` each; a
      row that reads channels of several of them is written in parts, which the convolution behind
      adds up. Each group is filled with zero rows up to a multiple of ``block``.
    * Of all numbers of groups, the one with the fewest multiply-accumulates is taken, if that is fewer
      than the dense layer has.
    * Everything after K is one matrix, as in the folded sum; no Gather, Split, Concat or Add is left.
    """

    exact = False

    def __init__(self, block: int, sites: Collection[str] | None = None) -> None:
        super().__init__(sites)
        self.block = block
        self.label = f"blocks-{block}"

    def refusal(self, site: IgpcSubgraph, opset: int) -> str | None:
        if site.layout.l is None:
            return "there is no L"
        if self._cover(site) is None:
            return f"blocks of {self.block} channels would not be cheaper than the dense layer"
        return None

    def write(self, site: IgpcSubgraph, writer: SiteWriter) -> None:
        cover = self._cover(site)
        assert cover is not None
        k = writer.conv(site.input, "K", cover.weights, groups=cover.groups, moving=True)
        after = np.where(cover.rows >= 0, second_matrix(site)[:, cover.rows], 0.0)
        writer.conv(k, "folded", after, bias=site.bias, output=site.output)

    def _cover(self, site: IgpcSubgraph) -> _Cover | None:
        """The cheapest cover, if it is cheaper than the dense layer."""
        C, F = site.layout.in_channels, site.layout.out_channels
        counts = [g for g in range(2, C // self.block + 1) if C % (g * self.block) == 0]
        K = stage_matrix(site.layout.k, site.k)
        support = _support(site)
        best, least = None, C * F
        for groups in counts:
            width = C // groups
            parts = [
                np.flatnonzero(support[:, g * width : (g + 1) * width].any(axis=1))
                for g in range(groups)
            ]
            most = max(len(part) for part in parts)
            size = -(-most // self.block) * self.block
            macs = groups * size * (width + F)
            if macs < least:
                best, least = (groups, width, size, parts), macs
        if best is None:
            return None
        groups, width, size, parts = best
        rows = np.full((groups, size), -1)
        weights = np.zeros((groups, size, width))
        for g, part in enumerate(parts):
            rows[g, : len(part)] = part
            weights[g, : len(part)] = K[part, g * width : (g + 1) * width]
        return _Cover(groups, rows.reshape(-1), weights.reshape(groups * size, width))


def _support(site: IgpcSubgraph) -> np.ndarray:
    """Which channels each row of K may read, whatever its weights are; shape (rows, C)."""
    ones = tuple(np.ones_like(values) for values in site.k)
    return stage_matrix(site.layout.k, ones) > 0
