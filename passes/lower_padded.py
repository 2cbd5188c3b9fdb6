"""Writing K in whole blocks of channels, and all channels that L reads and adds by one Gather."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from onnx_igpc.layout.group_layout import GroupPath
from onnx_igpc.passes.lowering import Lowering
from onnx_igpc.sites.cover import Cover, covers
from onnx_igpc.sites.stages import l_inputs, stage_bias
from onnx_igpc.sites.subgraph import IgpcSubgraph
from onnx_igpc.sites.writer import SiteWriter


class LowerPadded(Lowering):
    """Write y = K x + L P K x + b as a K of whole blocks, one Gather and a wider L that adds K x itself.

    Rules:

    * Applies where K's groups can be merged into even ones over consecutive channels, a multiple of
      ``block`` each, so that no row reads two of them, and where the groups of an L are of one size.
      Each group is filled with zero rows up to a multiple of ``block``.
    * Of all numbers of groups, the one with the fewest weights and then the fewest rows is taken, if
      K has fewer weights then than the dense layer has.
    * One Gather gives each group of L the rows that it reads and, with the sum, the rows that are
      added to its filters, whose weights are those of an identity. No Concat or Add is left.
    * Where there is no L, the Gather leaves the zero rows out; K is not whole blocks already then.
    """

    def __init__(self, block: int, sites: Collection[str] | None = None) -> None:
        super().__init__(sites)
        self.block = block
        self.label = f"padded-{block}"

    def refusal(self, site: IgpcSubgraph, opset: int) -> str | None:
        if site.layout.l is not None and len(site.layout.l.paths) > 1:
            return "L has groups of several sizes"
        cover = self._cover(site)
        if cover is None:
            return f"K has no even groups of whole blocks of {self.block} channels"
        if site.layout.l is None and (cover.rows >= 0).all():
            return "K is whole blocks already, and there is no L"
        return None

    def write(self, site: IgpcSubgraph, writer: SiteWriter) -> None:
        layout, cover = site.layout, self._cover(site)
        assert cover is not None
        made = cover.rows
        position = np.zeros(layout.k.out_channels, dtype=np.int64)
        position[made[made >= 0]] = np.flatnonzero(made >= 0)
        final = layout.output_interleave
        if layout.l is None:
            k = cover.write(writer, site.input, stage_bias(site))
            rows = position if final is None else position[list(final)]
            writer.gather(k, "rows", rows.tolist(), site.output)
            return
        (path,) = layout.l.paths
        reads, weights = _widened(path, l_inputs(site)[0], site.l[0], layout.has_sum)
        order = position[reads.reshape(-1)].tolist()
        k = cover.write(writer, site.input)
        y = writer.conv(
            k if order == list(range(len(made))) else writer.gather(k, "rows", order),
            "L",
            weights.reshape(path.filters, -1),
            groups=path.groups,
            bias=stage_bias(site),
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


def _widened(
    path: GroupPath, inputs: Sequence[int], weights: np.ndarray, has_sum: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of K that each group of L reads, and its weights: with the sum, those it adds too."""
    reads = np.asarray(inputs).reshape(path.groups, -1)
    blocks = weights.reshape(path.groups, path.filters_per_group, -1)
    if not has_sum:
        return reads, blocks
    added = np.arange(path.filters).reshape(path.groups, -1)
    identity = np.eye(path.filters_per_group)
    identity = np.broadcast_to(identity, (path.groups, *identity.shape))
    return np.concatenate([reads, added], axis=1), np.concatenate([blocks, identity], axis=2)
