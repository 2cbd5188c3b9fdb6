"""The cost of sub-graphs and functions, and of nodes by their scope."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.graph.cost import count
from tests.helpers import GraphBuilder, pointwise_model


def test_nodes_that_break_the_standard_are_unknown_and_no_crash() -> None:
    model = pointwise_model(8, 8)
    model.graph.node[0].attribute.append(helper.make_attribute("surprise", 1))
    cost = count(model)
    assert "conv" in cost.unknown
    assert cost.parameters == 8 * 8 + 8 + 8 * 9
    broken = _if_model(True)
    del broken.graph.node[0].attribute[:]
    assert count(broken).macs == 2 * 25, "y, whose shape is declared"


def _branch(name: str, F: int) -> onnx.GraphProto:
    inner = GraphBuilder(seed=F)
    inner.conv("x", f"{name}_y", 4, F)
    inner.add("ReduceMean", [f"{name}_y"], f"{name}_out", axes=[1], keepdims=1)
    inner.output(f"{name}_out")
    return inner.graph(name)


def _if_model(condition: bool | None) -> onnx.ModelProto:
    builder = GraphBuilder()
    builder.input("x", [1, 4, 5, 5])
    if condition is None:
        builder.input("cond", [], TensorProto.BOOL)
    else:
        builder.initializer("cond", np.array(condition))
    builder.add("If", ["cond"], "chosen", then_branch=_branch("a", 2), else_branch=_branch("b", 3))
    builder.output(builder.conv("chosen", "y", 1, 2))
    return builder.model()


def test_if_counts_the_branch_with_more_macs() -> None:
    cost = count(_if_model(None))
    assert cost.parameters == 8 + 12 + 2
    assert cost.macs == (12 + 2) * 25
    assert {name: node.macs for name, node in cost.nodes.items()} == {
        "a_y": 200,
        "b_y": 300,
        "y": 50,
    }
    assert cost.notes == ("of If 'chosen' the branch with more MACs is counted",)


def test_if_with_a_known_condition_costs_its_branch_and_holds_both() -> None:
    cost = count(_if_model(True))
    assert (cost.parameters, cost.macs, cost.notes) == (22, 10 * 25, ())


def test_loop_counts_its_body_once() -> None:
    body = GraphBuilder()
    body.inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 4, 5, 5]),
    ]
    body.add("Identity", ["go"], "go_on")
    body.conv("state", "next", 4, 4)
    body.output("go_on", [], TensorProto.BOOL)
    body.output("next")
    builder = GraphBuilder()
    builder.input("x", [1, 4, 5, 5])
    builder.initializer("trips", np.array(3))
    builder.add("Loop", ["trips", "", "x"], "last", body=body.graph("body"))
    builder.output(builder.conv("last", "y", 4, 1), [1, 1, 5, 5])
    cost = count(builder.model())
    assert (cost.parameters, cost.macs) == (16 + 4, (16 + 4) * 25)
    assert cost.notes == ("the body of Loop 'last' is counted once",)


def test_function_bodies_are_counted_at_every_call() -> None:
    weight = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32))
    convolution = helper.make_node("Conv", ["z", "inner_w"], ["out"])
    strides = convolution.attribute.add(name="strides", ref_attr_name="strides")
    strides.type = onnx.AttributeProto.INTS
    function = helper.make_function(
        "local",
        "Block",
        ["z"],
        ["out"],
        [helper.make_node("Constant", [], ["inner_w"], value=weight), convolution],
        [helper.make_opsetid("", 17)],
        ["strides"],
    )
    builder = GraphBuilder()
    builder.functions.append(function)
    builder.input("x", [1, 4, 8, 8])
    builder.add("Block", ["x"], "a", domain="local", strides=[1, 1])
    builder.add("Block", ["a"], "b", domain="local", strides=[2, 2])
    builder.output("b")
    cost = count(builder.model())
    assert cost.parameters == 16
    assert cost.macs == 16 * (64 + 16)
    assert {name: (n.weights, n.macs) for name, n in cost.nodes.items()} == {"out": (16, 16 * 80)}


def test_equal_names_in_two_scopes_stay_apart() -> None:
    model = _if_model(None)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                attribute.g.node[0].output[0] = attribute.g.node[1].input[0] = "same"
    keys = set(count(model).nodes)
    assert keys == {"chosen.then_branch/same", "chosen.else_branch/same", "y"}


def test_nodes_are_found_by_their_scope() -> None:
    cost = count(_if_model(None))
    inner = cost.node("chosen.then_branch", "a_y")
    assert inner is not None
    assert (inner.weights, inner.macs) == (8, 200)
    assert cost.node("", "a_y") is None
    assert cost.node("", "y") == cost.nodes["y"]


def test_parameters_of_several_nodes_count_shared_tensors_once() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 5])
    builder.conv("x", "a", 8, 8, bias=True)
    builder.add("Conv", ["a", "a_w"], "b")
    builder.output("b")
    cost = count(builder.model())
    assert cost.parameters_of([("", "a"), ("", "b")]) == 64 + 8
    assert cost.parameters_of([("", "b")]) == 64
    assert cost.parameters_of([("", "none")]) == 0


def test_the_model_is_not_changed() -> None:
    model = _if_model(None)
    before = model.SerializeToString()
    count(model)
    assert model.SerializeToString() == before
