"""Rewritten models to lower, and everything that must hold whatever the lowering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from hypothesis import reject

from onnx_igpc import compress
from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.lowering.catalogue import LoweredSite, applicable, lower, site_opset
from onnx_igpc.passes import GroupPointwise
from onnx_igpc.report.digest import write_digest
from onnx_igpc.report.tree import RewriteReport, SiteReport
from onnx_igpc.sites.subgraph import IgpcSubgraph, find_subgraphs
from tests.helpers import GraphBuilder, options_of, random_feeds, run
from tests.passes.graphs import copy_of

LAYOUTS = {
    "same channels": (32, 32, 8, "v1"),
    "V1 interleaves the output": (16, 32, 8, "v1"),
    "divisor that is no multiple of ch": (33, 33, 4, "v1"),
    "replicated channels": (20, 20, 8, "v2"),
    "uneven filters in K and L": (35, 27, 8, "v2"),
    "fewer filters than groups": (27, 4, 2, "v2"),
    "no L, uneven": (17, 40, 8, "v2"),
    "dense L": (40, 12, 16, "v2"),
    "L without interleave": (40, 20, 16, "v2"),
}
"""C, F, ch and scheme."""


def network(C: int, F: int, *, dims: int = 2, **options: Any) -> onnx.ModelProto:
    """x -> 3x3 Conv ``first`` -> Relu -> 1x1 Conv ``conv`` -> Relu -> depthwise ``last`` -> y.

    Further options go to the graph builder, or as attributes to ``conv``.
    """
    attributes = {
        key: options.pop(key) for key in list(options) if key in ("strides", "pads", "auto_pad")
    }
    batch, bias = options.pop("batch", 2), options.pop("bias", True)
    builder = GraphBuilder(**options)
    builder.input("x", [batch, 3, *[6] * dims])
    builder.conv("x", "first", 3, C, dims=dims, kernel=3, pads=[1] * 2 * dims)
    builder.add("Relu", ["first"], "before")
    builder.conv("before", "conv", C, F, bias=bias, dims=dims, **attributes)
    builder.add("Relu", ["conv"], "behind")
    builder.conv("behind", "last", F, F, dims=dims, kernel=3, group=F, pads=[1] * 2 * dims)
    builder.add("Neg", ["last"], "y")
    builder.output("y")
    return builder.model()


def rewritten(model: onnx.ModelProto, ch: int, scheme: str = "v2", **options: Any) -> OpenModel:
    """The model with its pointwise convolutions rewritten, with random weights."""
    options = {"channels_per_group": ch, "scheme": scheme, "init": "random", **options}
    result = compress(model, **options_of(**options))
    assert result.report.rewritten, "a test of a lowering needs a site"
    return OpenModel(result.model)


def add_function_with_dead(model: OpenModel, name: str) -> onnx.FunctionProto:
    """Give the model a local function ``Turn`` that makes a value ``name`` and does not read it.

    A function may use the names of the main graph for values of its own. Returns a copy of it.
    """
    body = GraphBuilder(weights="constant")
    body.stored(name, np.ones(2, np.float32))
    body.add("Neg", ["inner"], "turned")
    opset = onnx.helper.make_opsetid("", 17)
    function = onnx.helper.make_function(
        "local", "Turn", ["inner"], ["turned"], body.nodes, [opset]
    )
    model.proto.functions.append(function)
    model.proto.opset_import.append(onnx.helper.make_opsetid("local", 1))
    return function


def rewritten_as(model: onnx.ModelProto, layout: GroupLayout, weights: IgpcWeights) -> OpenModel:
    """The model with its pointwise convolution ``conv`` rewritten in just this way.

    The digest says what compress would say, but for layouts it would not choose, too.
    """
    opened = OpenModel(copy_of(model))
    group = GroupPointwise(lambda site: layout, lambda site, *_: (weights, None))
    result = group.run(opened)
    if not result.rewritten:
        reject()
    (rewrite,) = result.rewritten
    report = SiteReport("conv_node", layout.in_channels, layout.out_channels, "rewritten")
    report.input, report.output = rewrite.input, rewrite.output
    report.nodes, report.layout = list(rewrite.nodes), layout
    write_digest(opened.proto, RewriteReport(sites=[report]))
    return opened


def sites_of(model: OpenModel) -> list[IgpcSubgraph]:
    """The recognised sites, which are all of them."""
    found, unknown = find_subgraphs(model)
    assert not unknown
    assert found
    return found


def possible(model: OpenModel) -> dict[str, set[str]]:
    """For each lowering the sites that it applies to."""
    sites = sites_of(model)
    able: dict[str, set[str]] = {}
    for site in sites:
        for label, reason in applicable(site, site_opset(model, site)).items():
            assert reason is None or reason.strip()
            able.setdefault(label, set())
            if reason is None:
                able[label].add(site.name)
    return able


def lowered(
    model: OpenModel, label: str, sites: Sequence[str] | None = None
) -> tuple[OpenModel, list[LoweredSite]]:
    """A copy of ``model`` with its sites (all, or those named) written in one way, and checked.

    The graph is valid, outputs are as before, and what is not named is byte-equal.
    """
    copy = OpenModel(copy_of(model.proto))
    names = [site.name for site in sites_of(model)] if sites is None else list(sites)
    done = lower(copy, dict.fromkeys(names, label))
    onnx.checker.check_model(copy.proto, full_check=True)
    assert [site.name for site in done] == names
    _assert_others_untouched(model, copy, done)
    _assert_same_outputs(model.proto, copy.proto)
    return copy, done


def _assert_others_untouched(
    before: OpenModel, after: OpenModel, done: Sequence[LoweredSite]
) -> None:
    named = {site.name for site in done}
    gone = {name for site in sites_of(before) if site.name in named for name in site.nodes}
    new = {name for site in done for name in site.nodes}
    old_graph, new_graph = before.proto.graph, after.proto.graph

    def others(graph: onnx.GraphProto, mine: set[str]) -> list[onnx.NodeProto]:
        """All nodes but those of the sites and the constants that only sites read."""
        read = {name for node in graph.node if node.name not in mine for name in node.input}
        constants = ("Constant", "Cast")
        return [
            node
            for node in graph.node
            if node.name not in mine and (node.op_type not in constants or node.output[0] in read)
        ]

    assert others(old_graph, gone) == others(new_graph, new)
    stored = {tensor.name for tensor in old_graph.initializer}
    kept = {tensor.name for tensor in new_graph.initializer}
    assert list(new_graph.input) == [
        entry for entry in old_graph.input if entry.name not in stored or entry.name in kept
    ]
    assert old_graph.output == new_graph.output
    old = {tensor.name: tensor for tensor in old_graph.initializer}
    for tensor in new_graph.initializer:
        assert "/igpc/lowered/" in tensor.name or tensor == old[tensor.name]
    read = {name for node in new_graph.node for name in node.input}
    assert kept <= read, "what nothing reads any more is gone"
    made = {name for node in new_graph.node for name in node.output}
    assert {entry.name for entry in new_graph.value_info} <= made
    assert list(before.proto.metadata_props) == list(after.proto.metadata_props)


def _assert_same_outputs(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    feeds = random_feeds(before)
    expected, found = run(before, feeds), run(after, feeds)
    for name, values in expected.items():
        half = values.dtype == np.float16
        scale = float(np.abs(values.astype(np.float64)).max()) or 1.0
        assert found[name].dtype == values.dtype
        error = np.abs(found[name].astype(np.float64) - values.astype(np.float64)).max()
        assert error <= (2e-2 if half else 1e-5) * scale
