"""Absorbing the Gathers of rewritten sites, in any scope, and the check of the whole model."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_igpc.errors import CheckFailedError
from onnx_igpc.evaluation.equivalence import check_reordered
from onnx_igpc.fitting.fit import random_weights
from onnx_igpc.graph.cost import FIXED_TENSORS_KEY, count, fixed_tensors
from onnx_igpc.graph.model import OpenModel, snapshot
from onnx_igpc.graph.traversal import scopes
from onnx_igpc.layout.extended import extended_layout, with_input_order
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.passes import AbsorbGathers, GroupPointwise
from onnx_igpc.sites.find import Rewritable
from onnx_igpc.sites.rewrite import Rewritten
from tests.helpers import GraphBuilder, run, tensor_named
from tests.passes.absorbing import C, absorbed, finish, gather, grouped, start

F = 24
Planner = Callable[[Rewritable], GroupLayout]


def low_rank(site: Rewritable) -> GroupLayout:
    """K in four groups of any channels, L dense."""
    assert site.in_channels is not None
    assert site.out_channels is not None
    order = np.random.default_rng(len(site.name)).permutation(site.in_channels)
    groups = [(part.tolist(), 2) for part in np.array_split(order, 4)]
    return extended_layout(site.in_channels, site.out_channels, groups)


def published(site: Rewritable) -> GroupLayout:
    """V2 with channels in another order."""
    assert site.in_channels is not None
    assert site.out_channels is not None
    order = np.random.default_rng(3).permutation(site.in_channels)
    layout = plan_layout(site.in_channels, site.out_channels, 8)
    return with_input_order(layout, [int(i) for i in order])


def version_1(site: Rewritable) -> GroupLayout:
    assert site.in_channels is not None
    assert site.out_channels is not None
    return plan_layout(site.in_channels, site.out_channels, 8, "v1")


def network() -> onnx.ModelProto:
    """Two pointwise convolutions, each followed by a depthwise one with BatchNorm and activation."""
    builder = GraphBuilder()
    builder.input("x", [1, 3, 8, 8])
    builder.conv("x", "stem", 3, F, kernel=3, pads=[1] * 4)
    x = "stem"
    for index in "12":
        builder.batch_norm(x, f"bn{index}", F)
        builder.activation(f"bn{index}", f"act{index}", "Swish")
        builder.conv(f"act{index}", f"dw{index}", F, F, kernel=3, group=F, pads=[1] * 4)
        x = builder.conv(f"dw{index}", f"pw{index}", F, F if index == "1" else 2 * F, bias=True)
    builder.activation(x, "last", "Relu")
    builder.conv("last", "head", 2 * F, 5, kernel=3)
    builder.output("head")
    return builder.model()


def grouped_sites(model: onnx.ModelProto, plan: Planner) -> tuple[OpenModel, list[Rewritten]]:
    opened = OpenModel(model)
    rewriting = GroupPointwise(
        plan, lambda site, layout, scale: (random_weights(layout, 0, site.name, False), None)
    )
    result = rewriting.run(opened)
    return opened, result.rewritten


def absorb_all(opened: OpenModel, rewritten: list[Rewritten]) -> AbsorbGathers:
    absorb = AbsorbGathers({name for site in rewritten for name in site.nodes})
    absorb.run(opened)
    onnx.checker.check_model(opened.proto, full_check=True)
    return absorb


@pytest.mark.parametrize(("plan", "left"), [(low_rank, 0), (published, 2), (version_1, 1)])
def test_sites(plan: Planner, left: int) -> None:
    opened, rewritten = grouped_sites(network(), plan)
    before = snapshot(opened)
    absorb = absorb_all(opened, rewritten)
    nodes = opened.proto.graph.node
    assert sum(node.op_type == "Gather" for node in nodes) == left
    assert check_reordered(before, opened).startswith("same outputs")
    assert count(opened).parameters == count(before).parameters
    cost = count(opened)
    values = {name for node in nodes for name in node.output}
    for rewrite in map(absorb.updated, rewritten):
        assert isinstance(rewrite, Rewritten)
        assert {rewrite.input, rewrite.output} <= values
        assert all(cost.node("", name) for name in rewrite.convolutions)
        assert set(rewrite.nodes) <= {node.name for node in nodes}
        for stage in rewrite.stages.values():
            assert {stage.input, stage.output} <= values


def test_a_site_reads_its_input_in_the_stated_order() -> None:
    opened, rewritten = grouped_sites(network(), low_rank)
    absorb = absorb_all(opened, rewritten)
    orders = {name: p for p in absorb.permutations for name in p.tensors}
    assert rewritten
    for before in rewritten:
        after = absorb.updated(before)
        assert isinstance(after, Rewritten)
        now = after.input
        assert now != before.input
        assert orders[now].tensors[now] == before.input
        assert tuple(orders[now].order) == before.layout.k.input_order


def test_in_a_branch_and_in_a_function() -> None:
    body = start()
    layers = gather(body, body.activation("origin", "act", "Swish"), "g")
    inner = grouped(body, layers, "K")
    branches = []
    for name in ("then", "else"):
        nodes = [*body.nodes, helper.make_node("Neg", [inner], [name])]
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, C, 6, 6])
        known = helper.make_tensor_value_info("act", TensorProto.FLOAT, [1, C, 6, 6])
        graph = helper.make_graph(nodes, name, [], [result], body.initializers, value_info=[known])
        branches.append(graph)
    outer = GraphBuilder()
    outer.input("x", [1, 4, 6, 6])
    outer.input("condition", [], TensorProto.BOOL)
    outer.add("If", ["condition"], "z", then_branch=branches[0], else_branch=branches[1])
    constants = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in body.initializers
    ]
    opset = [helper.make_opsetid("", 17)]
    outer.functions.append(
        helper.make_function("local", "Body", ["x"], [inner], [*constants, *body.nodes], opset)
    )
    outer.add("Body", ["x"], "y", domain="local")
    outer.output("y", [1, C, 6, 6])
    outer.output("z", [1, C, 6, 6])
    before = outer.model()
    opened = OpenModel(onnx.ModelProto.FromString(before.SerializeToString()))
    absorb = AbsorbGathers({"g"})
    assert absorb.run(opened).changed == ["g"] * 3
    onnx.checker.check_model(opened.proto)
    for scope in scopes(opened.proto):
        assert all(node.op_type != "Gather" for node in scope.holder.node)
    paths = {path for path, former in absorb.renamed if former == "origin"}
    assert paths == {"z.then_branch", "z.else_branch", "function local.Body"}
    branch = opened.proto.graph.node[0].attribute[0].g
    assert branch.value_info[0].name.startswith("act/permuted")
    for condition in (True, False):
        feeds = {"x": np.ones((1, 4, 6, 6), np.float32), "condition": np.array(condition)}
        for name, values in run(before, feeds).items():
            assert np.array_equal(values, run(opened.proto, feeds)[name])


def test_copies_of_fixed_tensors_are_fixed() -> None:
    builder = start()
    builder.initializer("slope", builder.random(C, 1, 1))
    before = finish(builder, builder.add("PRelu", ["origin", "slope"], "a"))
    before.metadata_props.add(key=FIXED_TENSORS_KEY, value=json.dumps(["slope"]))
    model = absorbed(before).model
    assert "a_node/permuted_operand2" in fixed_tensors(model)
    assert tensor_named(model, "a_node/permuted_operand2").shape == (C, 1, 1)


def test_a_mistaken_order_is_found() -> None:
    opened = OpenModel(finish(start(), "origin"))
    before = snapshot(opened)
    assert check_reordered(before, opened).endswith("(deviation below 1e-12)")
    weight = next(t for t in opened.proto.graph.initializer if t.name == "origin_w")
    values = onnx.numpy_helper.to_array(weight)[::-1]
    weight.raw_data = np.ascontiguousarray(values).tobytes()
    with pytest.raises(CheckFailedError, match="output 'y' deviates"):
        check_reordered(before, opened)
    weight.dims[0] = 1
    with pytest.raises(CheckFailedError, match="cannot be run"):
        check_reordered(before, opened)


def test_what_cannot_be_run_is_not_compared() -> None:
    builder = start()
    builder.add("Unknown", ["origin"], "y", domain="elsewhere")
    builder.output("y", [1])
    model = OpenModel(builder.model(check=False))
    assert check_reordered(model, model).startswith("not run: ")
