"""Writing a regular interleave as Reshape, Transpose, Reshape."""

from __future__ import annotations

from dataclasses import replace

from onnx_igpc.passes.lowering import Lowering
from onnx_igpc.sites.stages import l_inputs, transpose_step, write_after_k, write_k
from onnx_igpc.sites.subgraph import IgpcSubgraph
from onnx_igpc.sites.writer import SiteWriter


class LowerTranspose(Lowering):
    """Interleave channels by Reshape, Transpose, Reshape in the place of a Gather.

    Rules:

    * Applies where L is one grouped convolution that reads K's rows with a stride s that divides
      their number: rows 0, s, 2 s, ..., then 1, s + 1, and so on. Rows are then a matrix whose
      transpose is wanted.
    * Batch and spatial sizes may be dynamic: the last Reshape takes its shape from K's output.
    * K, L and the sum stay as they are.
    """

    label = "transpose"

    def refusal(self, site: IgpcSubgraph, opset: int) -> str | None:
        if site.layout.l is None:
            return "there is no L"
        if len(site.layout.l.paths) > 1:
            return "L has groups of several sizes"
        if transpose_step(l_inputs(site)[0]) is None:
            return "the interleave is no transpose of rows"
        return None

    def write(self, site: IgpcSubgraph, writer: SiteWriter) -> None:
        (order,) = l_inputs(site)
        step = transpose_step(order)
        assert step is not None
        k = write_k(writer, site)
        shape = writer.node("Shape", [k], "interleave/shape")
        matrix = writer.integers("interleave/matrix.shape", [0, len(order) // step, step, -1])
        x = writer.node("Reshape", [k, matrix], "interleave/matrix")
        x = writer.node("Transpose", [x], "interleave/transpose", perm=[0, 2, 1, 3])
        x = writer.node("Reshape", [x, shape], "interleave/rows")
        write_after_k(writer, in_order(site), k, shuffled=x)


def in_order(site: IgpcSubgraph) -> IgpcSubgraph:
    """The site with an L of one path that reads what is interleaved already."""
    stage = site.layout.l
    assert stage is not None
    (path,) = stage.paths
    path = replace(path, inputs=tuple(range(len(path.inputs))))
    stage = replace(stage, in_channels=len(path.inputs), paths=(path,))
    return replace(site, layout=replace(site.layout, l=stage, interleave=None))
