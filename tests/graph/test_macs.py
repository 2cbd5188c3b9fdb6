"""Multiply-accumulates by operator and shape; what is unknown is listed and not guessed."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx_igpc.errors import UsageError
from onnx_igpc.graph.cost import count
from tests.helpers import GraphBuilder, pointwise_model


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_macs_of_convolutions(dims: int, stride: int) -> None:
    cost = count(pointwise_model(8, 6, dims=dims, stride=stride))
    places = (5 if stride == 1 else 3) ** dims
    assert cost.nodes["conv"].macs == places * 8 * 6
    assert cost.nodes["last"].macs == places * 6 * 3**dims
    assert cost.macs == places * (48 + 6 * 3**dims)


def test_macs_of_transposed_convolution() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 4])
    builder.initializer("w", builder.random(8, 3, 2, 2))
    builder.output(builder.add("ConvTranspose", ["x", "w"], "y", strides=[2, 2], group=2))
    # Every input element meets the filters of its group: (F / groups) * kernel.
    assert count(builder.model()).macs == 8 * 5 * 4 * 3 * 4


def test_macs_of_matrix_products() -> None:
    builder = GraphBuilder()
    builder.input("x", ["batch", 10])
    builder.initializer("w", builder.random(7, 10))
    builder.add("Gemm", ["x", "w"], "dense", transB=1)
    builder.initializer("v", builder.random(7, 3))
    builder.add("MatMul", ["dense", "v"], "scores")
    builder.input("tall", [10, 4])
    builder.add("Gemm", ["tall", "v7"], "turned", transA=1)
    builder.initializer("v7", builder.random(10, 2))
    for name in ("scores", "turned"):
        builder.output(name)
    cost = count(builder.model())
    assert {name: node.macs for name, node in cost.nodes.items()} == {
        "dense": 70,
        "scores": 21,
        "turned": 4 * 10 * 2,
    }


def test_product_of_two_activations_costs_but_holds_no_weights() -> None:
    builder = GraphBuilder()
    builder.input("a", [2, 3, 4, 5])
    builder.input("b", [2, 3, 5, 6])
    builder.output(builder.add("MatMul", ["a", "b"], "y"))
    cost = count(builder.model())
    assert (cost.parameters, cost.macs) == (0, 2 * 3 * 4 * 5 * 6)


def test_input_shapes_scale_the_cost() -> None:
    builder = GraphBuilder()
    builder.input("x", ["n", 3, "side", "side"])
    builder.output(builder.conv("x", "y", 3, 4))
    model = builder.model()
    assert count(model).macs == 12 * 224 * 224
    cost = count(model, {"x": (2, 3, 10, 10)})
    assert cost.macs == 12 * 200
    assert dict(cost.input_shapes) == {"x": (2, 3, 10, 10)}
    for wrong in ({"x": (1, 4, 10, 10)}, {"x": (1, 3, 10)}, {"z": (1,)}):
        with pytest.raises(UsageError):
            count(model, wrong)


def test_a_shape_that_the_graph_computes_is_known() -> None:
    builder = GraphBuilder()
    builder.input("x", ["n", 6, "h", "w"])
    builder.add("Shape", ["x"], "shape")
    for name, values in (("two", [2]), ("three", [3]), ("half", [2])):
        builder.initializer(name, np.array(values))
    builder.add("Gather", ["shape", "two"], "height")
    builder.add("Gather", ["shape", "three"], "width")
    builder.add("Div", ["width", "half"], "half_width")
    builder.initializer("first", np.array([1, 12]))
    builder.add("Concat", ["first", "height", "half_width"], "target", axis=0)
    builder.add("Reshape", ["x", "target"], "folded")
    builder.output(builder.conv("folded", "y", 12, 4))
    cost = count(builder.model(check=False), {"x": (1, 6, 10, 8)})
    assert (cost.macs, cost.unknown) == (12 * 4 * 10 * 4, ())


def test_unknown_shapes_are_listed_and_not_guessed() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 4, 5, 5])
    builder.conv("x", "known", 4, 4)
    builder.input("target", [4], TensorProto.INT64)
    builder.add("Reshape", ["known", "target"], "reshaped")
    builder.output(builder.conv("reshaped", "lost", 4, 2))
    cost = count(builder.model(check=False))
    assert cost.unknown == ("lost",)
    assert cost.nodes["lost"].macs is None
    assert cost.nodes["lost"].weights == 8
    assert cost.macs == 16 * 25


def test_declared_shapes_help_where_inference_ends() -> None:
    builder = GraphBuilder()
    builder.input("x", ["n", 4, "h", "h"])
    builder.nodes.append(helper.make_node("Strange", ["x"], ["s"], domain="elsewhere"))
    builder.output(builder.conv("s", "y", 4, 2))
    model = builder.model(check=False)
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    assert count(model).unknown == ("y",)
    model.graph.value_info.append(
        helper.make_tensor_value_info("s", TensorProto.FLOAT, ["n", 4, "h", 3])
    )
    cost = count(model, {"x": (1, 4, 7, 7)})
    assert (cost.macs, cost.unknown) == (8 * 21, ())
    assert cost.notes == ("MACs of Strange are not counted",)


def test_a_function_that_calls_itself_is_unknown() -> None:
    builder = GraphBuilder()
    builder.functions.append(
        helper.make_function(
            "local",
            "Endless",
            ["a"],
            ["b"],
            [helper.make_node("Endless", ["a"], ["b"], domain="local")],
            [helper.make_opsetid("local", 1)],
        )
    )
    builder.input("x", [1, 4, 5, 5])
    builder.add("Endless", ["x"], "e", domain="local")
    builder.output(builder.conv("e", "y", 4, 4))
    cost = count(builder.model(check=False))
    assert (cost.parameters, cost.unknown) == (16, ("y",))
