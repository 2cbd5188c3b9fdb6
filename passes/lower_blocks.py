"""Writing K in whole blocks of channels, and what follows it as one dense convolution."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnx_igpc.passes.lowering import Lowering
from onnx_igpc.sites.cover import Cover, covers
from onnx_igpc.sites.stages import second_matrix
from onnx_igpc.sites.subgraph import IgpcSubgraph
from onnx_igpc.sites.writer import SiteWriter


class LowerBlocks(Lowering):
    """Write y = (I + L P) K x + b as a K of whole blocks and one dense convolution.

    Rules:

    * Applies where there is an L and the input has two whole blocks of channels or more.
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
        k = cover.write(writer, site.input)
        after = np.where(cover.rows >= 0, second_matrix(site)[:, cover.rows], 0.0)
        writer.conv(k, "folded", after, bias=site.bias, output=site.output)

    def _cover(self, site: IgpcSubgraph) -> Cover | None:
        """The cheapest cover, if it is cheaper than the dense layer."""
        C, F = site.layout.in_channels, site.layout.out_channels

        def macs(cover: Cover) -> int:
            return cover.weights + F * cover.groups * cover.size

        best = min(covers(site, self.block), key=macs, default=None)
        return best if best is not None and macs(best) < C * F else None
