"""Writing a site as batched matrix products."""

from __future__ import annotations

import numpy as np

from onnx_igpc.layout.group_layout import GroupedStage
from onnx_igpc.passes.lowering import Lowering
from onnx_igpc.sites.stages import l_inputs, transpose_step
from onnx_igpc.sites.subgraph import IgpcSubgraph
from onnx_igpc.sites.writer import SiteWriter


class LowerMatMul(Lowering):
    """Write K and L as products of stacked matrices, one for each group.

    Rules:

    * Applies where all groups of K are of one size, and those of L, K reads its input in order, and
      the site has no strides and no padding.
    * x as (batch, groups, channels per group, pixels) times K's blocks gives K's rows, and so does L.
      Between them stands a Transpose where the interleave is one, and a Gather elsewhere.
    * What is added is one value for each filter; the sum is added to it before the last Reshape.
    * Batch and spatial sizes may be dynamic: the last Reshape takes them from the site's input.
    """

    label = "matmul"

    def refusal(self, site: IgpcSubgraph, opset: int) -> str | None:
        layout = site.layout
        if not site.moves_nothing:
            return "it has strides or padding"
        if len(layout.k.paths) > 1 or (layout.l is not None and len(layout.l.paths) > 1):
            return "its groups are of several sizes"
        if layout.k.paths[0].inputs != tuple(range(layout.in_channels)):
            return "K reads copied or reordered channels"
        return None

    def write(self, site: IgpcSubgraph, writer: SiteWriter) -> None:
        layout = site.layout
        k_rows, F = layout.k.out_channels, layout.out_channels
        y = k = self._stage(writer, site.input, "K", layout.k, site.k[0])
        if layout.l is not None:
            (order,) = l_inputs(site)
            step = transpose_step(order)
            if step is not None:
                matrix = self._reshape(writer, k, "interleave/matrix", (k_rows // step, step))
                rows = writer.node("Transpose", [matrix], "interleave/transpose", perm=[0, 2, 1, 3])
            else:
                rows = self._reshape(writer, k, "interleave/rows", (k_rows,))
                if order != tuple(range(k_rows)):
                    rows = writer.gather(rows, "interleave", order)
            y = self._stage(writer, rows, "L", layout.l, site.l[0])
        y = self._reshape(writer, y, "y/rows", (F,))
        if layout.l is not None and layout.has_sum:
            y = writer.add(y, self._reshape(writer, k, "k/rows", (F,)))
        if layout.output_interleave is not None:
            y = writer.gather(y, "output_order", layout.output_interleave)
        if site.bias is not None:
            y = writer.add(y, writer.weights("bias", site.bias.reshape(-1, 1)), "bias")
        self._as_map(writer, site, y)

    def _stage(
        self, writer: SiteWriter, x: str, label: str, stage: GroupedStage, weights: np.ndarray
    ) -> str:
        (path,) = stage.paths
        shape = (path.groups, path.channels_per_group)
        stacked = weights.reshape(path.groups, path.filters_per_group, path.channels_per_group)
        x = self._reshape(writer, x, f"{label}/groups", shape)
        return writer.node("MatMul", [writer.weights(f"{label}.weight", stacked), x], label)

    def _reshape(self, writer: SiteWriter, x: str, label: str, sizes: tuple[int, ...]) -> str:
        """(batch, *sizes, pixels)."""
        return writer.node(
            "Reshape", [x, writer.integers(f"{label}.shape", [0, *sizes, -1])], label
        )

    def _as_map(self, writer: SiteWriter, site: IgpcSubgraph, y: str) -> None:
        """(batch, F, pixels) as (batch, F, height, width)."""
        shape = writer.node("Shape", [site.input], "shape")
        bounds = [2, 2 + site.spatial_rank]
        pixels = writer.slice(shape, "pixels", *bounds)
        first = writer.integers("map.shape", [0, site.layout.out_channels])
        shape = writer.node("Concat", [first, pixels], "map/shape", axis=0)
        writer.node("Reshape", [y, shape], "map", site.output)
