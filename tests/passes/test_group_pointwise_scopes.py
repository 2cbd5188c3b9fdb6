"""Pointwise convolutions in sub-graphs and function bodies, and equal names in several of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_igpc import CompressResult, compress
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.traversal import scopes
from onnx_igpc.planning.options import Published
from tests.helpers import GraphBuilder, run
from tests.untouched import assert_untouched

C = 20


def compressed(before: onnx.ModelProto, sites: int) -> CompressResult:
    """Compress; every site must be rewritten, pass its check and be counted."""
    result = compress(before, Published(4))
    report = result.report
    assert len(report.rewritten) == sites, [site.reason for site in report.sites]
    assert f"{sites} of {sites} compute M x + b" in report.checks["sites"]
    assert_untouched(before, result.model, report)
    assert report.totals.parameters.after == count(result.model).parameters
    for site in report.rewritten:
        assert site.k is not None
        assert site.l is not None
        assert site.parameters.before == C * C + C
        assert site.parameters.after == site.k.weights + site.l.weights + C
        assert site.macs.before == 25 * C * C
        assert site.macs.after == 25 * (site.k.weights + site.l.weights)
    return result


def branch(name: str, *, outer_weight: bool = False, **options: Any) -> onnx.GraphProto:
    """A branch that reads ``x`` of the main graph: Conv, then Relu."""
    builder = GraphBuilder(seed=len(name), **options)
    builder.conv("x", f"{name}_conv", C, C, bias=True)
    if outer_weight:
        builder.nodes[-1].input[1] = "outer_w"
    builder.add("Relu", [f"{name}_conv"], f"{name}_out")
    builder.output(f"{name}_out", [1, C, 5, 5])
    return builder.graph(name)


def conditional(then: onnx.GraphProto, other: onnx.GraphProto, **options: Any) -> GraphBuilder:
    builder = GraphBuilder(**options)
    builder.input("x", [1, C, 5, 5])
    builder.input("condition", [], TensorProto.BOOL)
    builder.add("If", ["condition"], "chosen", then_branch=then, else_branch=other)
    builder.add("Neg", ["chosen"], "y")
    builder.output("y", [1, C, 5, 5])
    return builder


@pytest.mark.parametrize("weights", ["initializer", "constant"])
@pytest.mark.parametrize("opset", [11, 17])
def test_branches_with_weights_of_their_own(weights: Any, opset: int) -> None:
    options = {"weights": weights, "opset": opset}
    before = conditional(branch("then", **options), branch("else", **options), opset=opset).model()
    result = compressed(before, 2)
    feeds = {"x": np.ones((1, C, 5, 5), np.float32), "condition": np.array(True)}
    assert run(result.model, feeds)["y"].shape == (1, C, 5, 5)
    assert not result.model.graph.initializer, "new weights lie where the old ones did"


def test_branches_with_the_same_names_inside() -> None:
    """Scopes that cannot see each other may use one name for different things."""
    twin = branch("same")
    twin.initializer[0].raw_data = (-run_array(twin.initializer[0])).tobytes()
    before = conditional(branch("same"), twin).model()
    result = compressed(before, 2)
    for _, graph in named_subgraphs(result.model):
        assert all("/igpc/" in t.name or t.name == "same_conv_b" for t in graph.initializer)


def run_array(tensor: onnx.TensorProto) -> np.ndarray:
    return onnx.numpy_helper.to_array(tensor)


def named_subgraphs(model: onnx.ModelProto) -> list[tuple[str, onnx.GraphProto]]:
    return [
        (scope.path, scope.holder)
        for scope in scopes(model)
        if scope.path and isinstance(scope.holder, onnx.GraphProto)
    ]


def test_a_weight_of_the_outer_graph_that_both_branches_share() -> None:
    then, other = (branch(name, outer_weight=True) for name in ("then", "else"))
    for graph in (then, other):
        del graph.initializer[0]
    builder = conditional(then, other)
    builder.initializer("outer_w", builder.random(C, C, 1, 1))
    before = builder.model()
    result = compressed(before, 2)
    assert result.report.sites[1].shares_weight_with == result.report.sites[0].name
    assert result.report.removed == ["outer_w"]
    kernels = [t.name for t in result.model.graph.initializer if t.name.endswith(".weight")]
    assert len(kernels) == 2, "in the graph that both branches see"


def test_a_weight_that_one_branch_reads_otherwise_stays() -> None:
    then = branch("then", outer_weight=True)
    del then.initializer[0]
    other = GraphBuilder()
    other.add("Add", ["x", "mean_w"], "else_out")
    other.nodes.insert(
        0, helper.make_node("ReduceMean", ["outer_w"], ["mean_w"], axes=[0, 1, 2, 3], keepdims=0)
    )
    other.output("else_out", [1, C, 5, 5])
    builder = conditional(then, other.graph("else"))
    builder.initializer("outer_w", builder.random(C, C, 1, 1))
    before = builder.model()
    result = compressed(before, 1)
    assert "outer_w" in {tensor.name for tensor in result.model.graph.initializer}
    feeds = {"x": np.ones((1, C, 5, 5), np.float32), "condition": np.array(False)}
    np.testing.assert_array_equal(run(result.model, feeds)["y"], run(before, feeds)["y"])


def test_the_body_of_a_loop() -> None:
    body = GraphBuilder()
    body.conv("state", "conv", C, C, bias=True)
    body.add("Relu", ["conv"], "next")
    body.add("Identity", ["go_on"], "still")
    body.inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, C, 5, 5]),
    ]
    body.output("still", [], TensorProto.BOOL)
    body.output("next", [1, C, 5, 5])
    builder = GraphBuilder()
    builder.input("x", [1, C, 5, 5])
    builder.initializers += [
        helper.make_tensor("trips", TensorProto.INT64, [], [2]),
        helper.make_tensor("true", TensorProto.BOOL, [], [True]),
    ]
    builder.add("Loop", ["trips", "true", "x"], "looped", body=body.graph("body"))
    builder.add("Neg", ["looped"], "y")
    builder.output("y", [1, C, 5, 5])
    result = compressed(builder.model(), 1)
    assert run(result.model)["y"].shape == (1, C, 5, 5)


def function(domain: str, *, strides: bool = False) -> onnx.FunctionProto:
    """A function with the weight inside: x -> Conv ``conv`` -> Relu."""
    body = GraphBuilder(weights="constant", seed=len(domain))
    body.conv("x", "conv", C, C, bias=True)
    body.add("Relu", ["conv"], "out")
    if strides:
        conv = next(node for node in body.nodes if node.op_type == "Conv")
        conv.attribute.add(name="strides", ref_attr_name="steps", type=onnx.AttributeProto.INTS)
    return helper.make_function(
        domain,
        "Block",
        ["x"],
        ["out"],
        body.nodes,
        [helper.make_opsetid("", 17)],
        ["steps"] if strides else [],
    )


def calling(*functions: onnx.FunctionProto, **attributes: Any) -> GraphBuilder:
    """x through every function in turn, then a Conv ``conv`` of the main graph and a Relu."""
    builder = GraphBuilder()
    builder.functions = list({each.domain: each for each in functions}.values())
    value = builder.input("x", [1, C, 5, 5])
    for index, each in enumerate(functions):
        value = builder.add("Block", [value], f"call{index}", domain=each.domain, **attributes)
    builder.conv(value, "conv", C, C, bias=True)
    builder.add("Relu", ["conv"], "y")
    builder.output("y", [1, C, 5, 5])
    return builder


def test_functions_of_one_name_and_the_main_graph_with_the_same_names_inside() -> None:
    before = calling(function("a"), function("bc")).model()
    result = compressed(before, 3)
    assert run(result.model)["y"].shape == (1, C, 5, 5)
    assert all(entry.name != "conv_w" for entry in result.model.graph.initializer)


def test_a_function_that_is_called_twice_costs_twice() -> None:
    twice = function("a")
    result = compress(calling(twice, twice).model(), Published(4))
    inside = next(site for site in result.report.sites if "function" in site.name)
    assert inside.macs.before == 2 * 25 * C * C
    assert run(result.model)["y"].shape == (1, C, 5, 5)


def test_attributes_that_the_caller_gives_are_left_to_the_caller() -> None:
    before = calling(function("a", strides=True), steps=[1, 1]).model()
    result = compress(before, Published(4))
    kept = result.report.kept
    assert [site.reason for site in kept] == ["attributes are parameters of the function"]
    assert_untouched(before, result.model, result.report)
