"""Writing everything after K as one dense convolution."""

from __future__ import annotations

from onnx_igpc.passes.lowering import Lowering
from onnx_igpc.sites.stages import second_matrix, write_k
from onnx_igpc.sites.subgraph import IgpcSubgraph
from onnx_igpc.sites.writer import SiteWriter


class LowerFoldedSum(Lowering):
    """Write y = (I + L P) K x + b as K and one dense convolution.

    Rules:

    * Applies where there is an L: interleave, L, the sum and an order of the output become one matrix
      of shape (F, rows of K), so that no Gather and no Add are left behind K.
    * K stays as it is, but has no bias: all that is added is added at the end.
    """

    label = "folded-sum"
    exact = False

    def refusal(self, site: IgpcSubgraph, opset: int) -> str | None:
        return None if site.layout.l is not None else "there is no L"

    def write(self, site: IgpcSubgraph, writer: SiteWriter) -> None:
        k = write_k(writer, site)
        writer.conv(k, "folded", second_matrix(site), bias=site.bias, output=site.output)
