"""Folding a site back into the one dense convolution that computes the same."""

from __future__ import annotations

from onnx_igpc.passes.lowering import Lowering
from onnx_igpc.sites.subgraph import IgpcSubgraph
from onnx_igpc.sites.writer import SiteWriter


class LowerDense(Lowering):
    """Write the matrix M of the site as one dense convolution.

    Rules:

    * Applies to every site: y = M x + b with M of shape (F, C), rounded to the site's dtype.
    * Strides, padding and all other attributes of K are kept.
    """

    label = "dense"
    exact = False

    def refusal(self, site: IgpcSubgraph, opset: int) -> str | None:
        return None

    def write(self, site: IgpcSubgraph, writer: SiteWriter) -> None:
        writer.conv(
            site.input, "dense", site.matrix(), bias=site.bias, moving=True, output=site.output
        )
