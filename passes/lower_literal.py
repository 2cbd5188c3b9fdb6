"""The lowering that changes nothing."""

from __future__ import annotations

from onnx_igpc.passes.lowering import Lowering
from onnx_igpc.sites.subgraph import IgpcSubgraph
from onnx_igpc.sites.writer import SiteWriter


class LowerLiteral(Lowering):
    """Leave the site as compress wrote it.

    Rules:

    * Applies to every site, and writes nothing: the nodes stay byte for byte.
    """

    label = "literal"

    def refusal(self, site: IgpcSubgraph, opset: int) -> str | None:
        return None

    def write(self, site: IgpcSubgraph, writer: SiteWriter) -> None:
        return
