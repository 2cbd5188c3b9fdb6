"""Convolutions that make an output of the model are heads, and kept."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.helpers import GraphBuilder
from tests.helpers import with_following_layers as following
from tests.sites.finding import only_site, reason_of, reasons


def _reshape(builder: GraphBuilder, value: str) -> str:
    return builder.add("Reshape", [value, builder.stored("s", np.array([1, -1]))], "y")


def _squeeze(builder: GraphBuilder, value: str) -> str:
    pooled = builder.add("ReduceMean", [value], "pooled", axes=[2, 3])
    return builder.add("Squeeze", [pooled, builder.stored("axes", np.array([2, 3]))], "y")


def _concat(builder: GraphBuilder, value: str) -> str:
    return builder.add("Concat", [value, "x"], "y", axis=1)


def _slice(builder: GraphBuilder, value: str) -> str:
    ends = [builder.stored(n, np.array([v])) for n, v in (("start", 0), ("end", 2), ("axis", 2))]
    return builder.add("Slice", [value, *ends], "y")


def _resize(builder: GraphBuilder, value: str) -> str:
    scales = builder.stored("scales", np.array([1, 1, 2, 2], np.float32))
    return builder.add("Resize", [value, "", scales], "y", mode="nearest")


def _split(builder: GraphBuilder, value: str) -> str:
    builder.nodes.append(helper.make_node("Split", [value], ["left", "y"], name="split", axis=1))
    return "y"


def _chain(builder: GraphBuilder, value: str) -> str:
    turned = builder.add("Transpose", [value], "turned", perm=[0, 2, 3, 1])
    return builder.add("Sigmoid", [_reshape(builder, turned)], "z")


@pytest.mark.parametrize("op_type", ["Flatten", "Identity", "Softmax", "LogSoftmax", "Sigmoid"])
def test_heads_through_operators_of_one_input(op_type: str) -> None:
    model = following(lambda builder, value: builder.add(op_type, [value], "y"))
    assert reason_of(only_site(model)) == f"head: only {op_type} before output 'y'"
    assert reasons(model, include_heads=True) == {"conv_node": None}


@pytest.mark.parametrize("add", [_reshape, _concat, _slice, _resize, _split])
def test_heads_through_operators_that_move_values(add: object) -> None:
    reason = reason_of(only_site(following(add)))  # type: ignore[arg-type]
    assert reason == f"head: only {str(add.__name__)[1:].title()} before output 'y'"  # type: ignore[attr-defined]


def test_heads_through_cast_squeeze_transpose_and_several() -> None:
    model = following(lambda b, v: b.add("Transpose", [v], "y", perm=[0, 2, 3, 1]))
    assert reason_of(only_site(model)) == "head: only Transpose before output 'y'"
    assert reason_of(only_site(following(_chain))) == (
        "head: only Transpose, Reshape, Sigmoid before output 'z'"
    )
    cast = GraphBuilder()
    cast.input("x", [1, 8, 1, 1])
    cast.conv("x", "conv", 8, 8)
    cast.add("Squeeze", ["conv", cast.stored("axes", np.array([2, 3]))], "flat")
    cast.add("Cast", ["flat"], "y", to=TensorProto.FLOAT16)
    cast.output("y", elem_type=TensorProto.FLOAT16)
    assert reason_of(only_site(cast.model())) == "head: only Squeeze, Cast before output 'y'"


def test_a_site_that_makes_an_output() -> None:
    model = following(lambda builder, value: value)
    assert reason_of(only_site(model)) == "head: it makes output 'conv'"


@pytest.mark.parametrize(
    "op_type", ["Relu", "GlobalAveragePool", "HardSwish", "LeakyRelu", "Tanh", "Neg"]
)
def test_no_head_before_operators_that_compute(op_type: str) -> None:
    model = following(lambda builder, value: builder.add(op_type, [value], "y"))
    assert reason_of(only_site(model)) is None


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Max"])
def test_no_head_before_operators_of_two_inputs(op_type: str) -> None:
    model = following(lambda builder, value: builder.add(op_type, [value, "x"], "y"))
    assert reason_of(only_site(model)) is None


def test_no_head_before_squeeze_of_a_mean() -> None:
    assert reason_of(only_site(following(_squeeze))) is None


def test_one_of_several_ways_to_an_output_makes_a_head() -> None:
    def add(builder: GraphBuilder, value: str) -> str:
        builder.add("Relu", [value], "busy")
        builder.conv("busy", "next", 32, 32, kernel=3)
        return builder.add("Sigmoid", [value], "y")

    assert reason_of(only_site(following(add))) == "head: only Sigmoid before output 'y'"


def test_a_head_inside_a_branch_is_a_head() -> None:
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = GraphBuilder()
        inner.output(inner.conv("x", f"{name}_y", 8, 8))
        branches[name] = inner.graph(name)
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 5])
    builder.input("cond", [], TensorProto.BOOL)
    builder.add("If", ["cond"], "chosen", **branches)
    builder.output(builder.add("Sigmoid", ["chosen"], "y"))
    found = reasons(builder.model())
    assert set(found.values()) == {"head: only Sigmoid before output 'y'"}
    builder.nodes[-1].op_type = "Relu"
    assert set(reasons(builder.model()).values()) == {None}
