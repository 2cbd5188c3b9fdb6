"""Filling the rows of K's groups up to a number that kernels like."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from onnx_igpc.layout.group_layout import GroupedStage, GroupPath
from onnx_igpc.passes.lowering import Lowering
from onnx_igpc.sites.stages import second_matrix, write_k
from onnx_igpc.sites.subgraph import IgpcSubgraph
from onnx_igpc.sites.writer import SiteWriter


class LowerWholeRows(Lowering):
    """Write y = L K x + b with a K whose groups make multiples of ``block`` rows.

    Rules:

    * Applies to low rank and all else without the sum whose L is one group, where a group of K makes
      another number of rows, and the filled K and L have fewer weights than the dense layer.
    * Each group of K is filled with zero rows, which L reads with zero weights. An interleave and an
      order of the output are taken over by L, so that no Gather is left behind K.
    """

    def __init__(self, block: int, sites: Collection[str] | None = None) -> None:
        super().__init__(sites)
        self.block = block
        self.label = f"rows-{block}"

    def refusal(self, site: IgpcSubgraph, opset: int) -> str | None:
        layout = site.layout
        if layout.l is None:
            return "there is no L"
        if layout.has_sum or len(layout.l.paths) > 1 or layout.l.paths[0].groups > 1:
            return "L is not one group, or K is added to it"
        filled = self._filled(layout.k)
        if filled == layout.k:
            return f"every group of K makes a multiple of {self.block} rows"
        if filled.weights + filled.out_channels * layout.out_channels >= layout.dense_weights:
            return f"filled up to {self.block} rows it would not be cheaper than the dense layer"
        return None

    def write(self, site: IgpcSubgraph, writer: SiteWriter) -> None:
        stage = self._filled(site.layout.k)
        kept = [_kept(*pair) for pair in zip(site.layout.k.paths, stage.paths, strict=True)]
        weights = []
        for path, rows, values in zip(stage.paths, kept, site.k, strict=True):
            weights.append(np.zeros(path.weight_shape))
            weights[-1][rows] = values
        filled = replace(site, k=tuple(weights), layout=replace(site.layout, k=stage))
        after = np.zeros((site.layout.out_channels, stage.out_channels))
        after[:, np.concatenate(kept)] = second_matrix(site)
        k = write_k(writer, filled)
        writer.conv(k, "L", after, bias=site.bias, output=site.output)

    def _filled(self, stage: GroupedStage) -> GroupedStage:
        paths = tuple(
            replace(path, filters_per_group=-(-path.filters_per_group // self.block) * self.block)
            for path in stage.paths
        )
        return replace(stage, paths=paths)


def _kept(path: GroupPath, filled: GroupPath) -> np.ndarray:
    """Which rows of the filled path are the path's own: bool[filters of the filled path]."""
    rows = np.arange(filled.filters) % filled.filters_per_group
    return np.asarray(rows < path.filters_per_group)
