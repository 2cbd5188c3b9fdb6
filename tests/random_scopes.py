"""Layers of random networks that have a scope of their own: branches, loops, functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.helpers import GraphBuilder

if TYPE_CHECKING:
    from tests.random_models import Network

Layer = Callable[[str, int], tuple[str, int]]


def scoped_layers(network: Network) -> list[Layer]:
    """An If, a Loop and a call of a function, to be appended to ``network``."""
    return [
        lambda x, C: _branches(network, x, C),
        lambda x, C: _loop(network, x, C),
        lambda x, C: _call(network, x, C),
    ]


def _inner(network: Network, prefix: str, weights: str = "") -> Network:
    """A network of an inner scope, whose names other scopes may use as well."""
    outer = network.builder
    form = weights or network.draw(st.sampled_from(["initializer", "constant"]))
    seed = network.draw(st.integers(0, 99))
    builder = GraphBuilder(outer.opset, outer.dtype, form, seed)  # type: ignore[arg-type]
    return type(network)(network.draw, builder, prefix)


def _branches(network: Network, x: str, C: int) -> tuple[str, int]:
    """If: both branches read values of the graph around them, and use one another's names."""
    name, F = network.fresh("if"), network.draw(st.integers(1, 30))
    graphs = {}
    for branch in ("then_branch", "else_branch"):
        inner = _inner(network, f"{name}_")
        inner.values = [(x, C)]
        for _ in range(network.draw(st.integers(0, 2))):
            inner.step(inner.layers())
        if network.seldom() and (C, F) in network.shared:
            inner.shared[C, F] = network.shared[C, F]
        last, _ = inner.pointwise(*inner.values[-1], F)
        inner.builder.outputs.append(onnx.ValueInfoProto(name=last))
        _type_outputs(inner)
        graphs[branch] = inner.builder.graph(branch)
    if network.flip():
        condition = network.builder.input(network.fresh("flag"), [], TensorProto.BOOL)
    else:
        value = np.array(network.flip())
        condition = network.builder.initializer(network.fresh("condition"), value)
    return network.builder.add("If", [condition], name, **graphs), F


def _loop(network: Network, x: str, C: int) -> tuple[str, int]:
    """Loop: two rounds of a layer that keeps the channels, bounded by a Tanh."""
    name = network.fresh("loop")
    inner = _inner(network, f"{name}_")
    builder = inner.builder
    builder.input(f"{name}_state", [None, C, None, None])
    builder.input(f"{name}_go", [1], TensorProto.BOOL)
    builder.input(f"{name}_turn", [], TensorProto.INT64)
    state, _ = inner.pointwise(f"{name}_state", C, C)
    builder.add("Identity", [f"{name}_go"], f"{name}_again")
    builder.add("Tanh", [state], f"{name}_next")
    builder.output(f"{name}_again", [1], TensorProto.BOOL)
    builder.output(f"{name}_next", [None, C, None, None])
    turns = network.builder.initializer(network.fresh("turns"), np.array(2))
    go = network.builder.initializer(network.fresh("go"), np.array(True))
    return network.builder.add("Loop", [turns, go, x], name, body=builder.graph("body")), C


def _call(network: Network, x: str, C: int) -> tuple[str, int]:
    """One or two calls of a function that holds its weights or is given them."""
    name, F = network.fresh("call"), network.draw(st.integers(1, 30))
    inner = _inner(network, "inner_", "constant")
    last, made = inner.pointwise("inner_x", C, F)
    if network.flip():
        last, made = inner.batch_norm(last, made)
    rounds = network.draw(st.integers(1, 2))
    if rounds == 2:
        last, made = inner.pointwise(last, made, C)
    inner.builder.add("LeakyRelu", [last], "inner_y", alpha=0.1)
    given = []
    if network.flip():
        given = [node for node in inner.builder.nodes if node.op_type == "Constant"][:1]
        inner.builder.nodes.remove(given[0])
    inputs = [node.output[0] for node in given]
    opset = helper.make_opsetid("", network.builder.opset)
    function = f"F{name}"
    network.builder.functions.append(
        helper.make_function(
            "local", function, ["inner_x", *inputs], ["inner_y"], inner.builder.nodes, [opset]
        )
    )
    weights = [
        network.builder.initializer(f"{name}_given", onnx.numpy_helper.to_array(n.attribute[0].t))
        for n in given
    ]
    y = network.builder.add(function, [x, *weights], name, domain="local")
    if rounds == 2:
        y = network.builder.add(function, [y, *weights], f"{name}_2", domain="local")
    return y, made


def _type_outputs(inner: Network) -> None:
    """Outputs of a branch need a type; its shape may stay open."""
    kind = inner.builder.elem_type
    for output in inner.builder.outputs:
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind, None))
