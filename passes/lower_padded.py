"""Writing K in whole blocks of channels, and all channels that L reads and adds by one Gather."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnx_igpc.layout import compose_gathers
from onnx_igpc.lowering.cover import Cover, covers
from onnx_igpc.lowering.stages import l_inputs, stage_order
from onnx_igpc.lowering.subgraph import IgpcSubgraph
from onnx_igpc.lowering.writer import SiteWriter
from onnx_igpc.passes.lowering import Lowering


class LowerPadded(Lowering):
    """Write y = K x + L P K x + b as a K of whole blocks, one Gather and a wider L that adds K x itself.

    Rules:

    * Applies where there is an L whose groups are of one size, and where K's groups can be merged
      into even ones over consecutive channels, a multiple of ``block`` each, so that no row reads
      two of them. Each group is filled with zero rows up to a multiple of ``block``.
    * Of all numbers of groups, the one with the fewest weights and then the fewest rows is taken, if
      K has fewer weights then than the dense layer has.
    * One Gather gives each group of L the rows that it reads and, with the sum, the rows that are
      added to its filters, whose weights are those of an identity. No Concat or Add is left.
    """

    def __init__(self, block: int, sites: Collection[str] | None = None) -> None:
        super().__init__(sites)
        self.block = block
        self.label = f"padded-{block}"

    def refusal(self, site: IgpcSubgraph, opset: int) -> str | None:
        if site.layout.l is None:
            return "there is no L"
        if len(site.layout.l.paths) > 1:
            return "L has groups of several sizes"
        if self._cover(site) is None:
            return f"K has no even groups of whole blocks of {self.block} channels"
        return None

    def write(self, site: IgpcSubgraph, writer: SiteWriter) -> None:
        layout, cover = site.layout, self._cover(site)
        assert layout.l is not None
        assert site.l is not None
        assert cover is not None
        (path,) = layout.l.paths
        position = np.zeros(layout.k.out_channels, dtype=np.int64)
        made = cover.rows
        position[made[made >= 0]] = np.flatnonzero(made >= 0)
        reads = np.asarray(l_inputs(site)[0]).reshape(path.groups, -1)
        weights = site.l[0].reshape(path.groups, path.filters_per_group, -1)
        if layout.has_sum:
            added = np.arange(path.filters).reshape(path.groups, -1)
            reads = np.concatenate([reads, added], axis=1)
            identity = np.broadcast_to(
                np.eye(path.filters_per_group), (path.groups, *[path.filters_per_group] * 2)
            )
            weights = np.concatenate([weights, identity], axis=2)
        order = compose_gathers([int(each) for each in position], reads.reshape(-1).tolist())
        k = writer.conv(site.input, "K", cover.kernel(site), groups=cover.groups, moving=True)
        rows = k if order == tuple(range(len(made))) else writer.gather(k, "rows", order)
        final = layout.output_interleave
        y = writer.conv(
            rows,
            "L",
            weights.reshape(path.filters, -1),
            groups=path.groups,
            bias=stage_order(site, site.bias),
            output=site.output if final is None else None,
        )
        if final is not None:
            writer.gather(y, "output_order", final, site.output)

    def _cover(self, site: IgpcSubgraph) -> Cover | None:
        C, F = site.layout.in_channels, site.layout.out_channels
        whole = [cover for cover in covers(site, self.block) if not cover.splits_rows]
        best = min(
            whole, key=lambda cover: (cover.weights, cover.size * cover.groups), default=None
        )
        return best if best is not None and best.weights < C * F else None
