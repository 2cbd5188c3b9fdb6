"""Merging neighbouring groups into larger ones that are whole blocks of channels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from onnx_igpc.layout.group_layout import GroupedStage, GroupPath
from onnx_igpc.passes.lowering import Lowering
from onnx_igpc.sites.stages import write_after_k, write_k
from onnx_igpc.sites.subgraph import IgpcSubgraph
from onnx_igpc.sites.writer import SiteWriter

Merged = tuple[GroupedStage, tuple[np.ndarray, ...]]


class LowerMergedGroups(Lowering):
    """Merge neighbouring groups until their channels and filters are multiples of a block.

    Rules:

    * In each stage whose groups are all of one size, the least number of neighbouring groups that makes
      channels and filters per group multiples of ``block`` becomes one group, with zeros for the
      channels of its other members; the order of channels and filters stays.
    * Applies where some stage changes by that and still has several groups, or has one group and no
      more multiply-accumulates than ``growth`` times those of before.
    * Everything else stays as it is.
    """

    def __init__(
        self, block: int, sites: Collection[str] | None = None, growth: float = 8.0
    ) -> None:
        super().__init__(sites)
        self.block = block
        self.growth = growth
        self.label = f"merged-{block}"

    def refusal(self, site: IgpcSubgraph, opset: int) -> str | None:
        k, l_stage = self._merged(site)
        if k is None and l_stage is None:
            return f"no stage has groups that can be merged to blocks of {self.block} channels"
        return None

    def write(self, site: IgpcSubgraph, writer: SiteWriter) -> None:
        k, l_stage = self._merged(site)
        layout = site.layout
        if k is not None:
            site = replace(site, k=k[1])
            layout = replace(layout, k=k[0])
        if l_stage is not None:
            site = replace(site, l=l_stage[1])
            layout = replace(layout, l=l_stage[0])
        site = replace(site, layout=layout)
        write_after_k(writer, site, write_k(writer, site))

    def _merged(self, site: IgpcSubgraph) -> tuple[Merged | None, Merged | None]:
        l_stage = site.layout.l
        return self._stage(site.layout.k, site.k), (
            self._stage(l_stage, site.l) if l_stage else None
        )

    def _stage(self, stage: GroupedStage, weights: tuple[np.ndarray, ...]) -> Merged | None:
        if len(stage.paths) > 1:
            return None
        (path,) = stage.paths
        count = self._count(path)
        if count is None:
            return None
        width, filters = path.channels_per_group, path.filters_per_group
        blocks = weights[0].reshape(path.groups // count, count, filters, width)
        merged = np.zeros((path.groups // count, count, filters, count, width))
        for index in range(count):
            merged[:, index, :, index] = blocks[:, index]
        kernel = merged.reshape(path.filters, count * width)
        made = replace(
            path,
            groups=path.groups // count,
            channels_per_group=count * width,
            filters_per_group=count * filters,
        )
        return replace(stage, paths=(made,)), (kernel,)

    def _count(self, path: GroupPath) -> int | None:
        """How many groups become one; ``None`` if they are whole blocks already, or cannot be."""
        for count in range(1, path.groups + 1):
            channels, filters = count * path.channels_per_group, count * path.filters_per_group
            if path.groups % count or channels % self.block or filters % self.block:
                continue
            return count if 1 < count <= self.growth else None
        return None
