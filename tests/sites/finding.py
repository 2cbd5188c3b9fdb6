"""The sites of a model, and why those are kept that are."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import Kept, Rewritable, SiteFilter, find_sites
from tests.helpers import GraphBuilder

Site = Rewritable | Kept


def reason_of(site: Site) -> str | None:
    return site.reason if isinstance(site, Kept) else None


def sites_of(model: onnx.ModelProto, site_filter: SiteFilter | None = None) -> list[Site]:
    return list(find_sites(GraphView(OpenModel(model)), site_filter).all)


def only_site(model: onnx.ModelProto, site_filter: SiteFilter | None = None) -> Site:
    (site,) = sites_of(model, site_filter)
    return site


def reasons(
    model: onnx.ModelProto,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    include_heads: bool = False,
) -> dict[str, str | None]:
    chosen = SiteFilter(tuple(include), tuple(exclude), include_heads)
    return {site.name: reason_of(site) for site in sites_of(model, chosen)}


def site_with_weight(builder: GraphBuilder, weight: str, bias: str = "") -> Site:
    """The convolution ``conv`` of 6 channels that reads the value ``weight``; no head."""
    builder.input("x", ["n", 6, 5, 5])
    builder.add("Conv", ["x", weight, bias] if bias else ["x", weight], "conv", kernel_shape=[1, 1])
    builder.output(builder.add("Relu", ["conv"], "y"), ["n", 4, 5, 5])
    return only_site(builder.model())
