"""Gathers taken over by what makes their input or reads their output."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.passes import AbsorbGathers
from onnx_igpc.report.tree import Permutation
from tests.helpers import GraphBuilder, node_named, tensor_named
from tests.passes.absorbing import (
    NEWEST,
    C,
    Layers,
    absorbed,
    finish,
    floats,
    gather,
    grouped,
    ints,
    start,
    vector,
)


def gate(b: GraphBuilder, x: str) -> str:
    """Squeeze and excite."""
    pooled = b.add("GlobalAveragePool", [x], "pooled")
    b.activation(b.conv(pooled, "squeeze", C, 3, bias=True), "squeezed", "Relu")
    b.activation(b.conv("squeezed", "excite", 3, C, bias=True), "gate", "Sigmoid")
    return b.add("Mul", [x, "gate"], "excited")


def hard_swish(b: GraphBuilder, x: str) -> str:
    shifted = b.add("Add", [x, floats(b, "three", 3.0)], "shifted")
    b.activation(shifted, "clipped", "Relu6")
    b.add("Mul", [x, "clipped"], "product")
    return b.add("Div", ["product", floats(b, "six", 6.0)], "swished")


def residual(b: GraphBuilder, x: str) -> str:
    b.activation(b.conv(x, "inner", C, C, bias=True), "bent", "Relu")
    return b.add("Add", [x, "bent"], "sum")


def norm_behind_identity(b: GraphBuilder, x: str) -> str:
    b.batch_norm(x, "bn", C)
    kept = b.add("Reshape", ["bn_scale", ints(b, "flat", C)], "scale")
    b.nodes.insert(-2, b.nodes.pop())
    b.nodes[-1].input[1] = kept
    return "bn"


def resized_by_shape(b: GraphBuilder, x: str) -> str:
    """Shape reads the tensor too, and does not mind."""
    b.add("Shape", [x], "shape")
    b.output("shape", elem_type=TensorProto.INT64)
    return b.add("Resize", [x, "", floats(b, "scales", 1, 1, 2, 2)], "resized")


ABSORBED: dict[str, Layers] = {
    "nothing between": lambda b, x: x,
    "relu": lambda b, x: b.add("Relu", [x], "a"),
    "relu6": lambda b, x: b.activation(x, "a", "Relu6"),
    "swish": lambda b, x: b.activation(x, "a", "Swish"),
    "hard swish": hard_swish,
    "identity": lambda b, x: b.add("Identity", [b.add("Dropout", [x], "d")], "i"),
    "mask": lambda b, x: mask_that_nobody_reads(b, x),
    "cast": lambda b, x: b.add("Cast", [b.add("Cast", [x], "c", to=11)], "d", to=1),
    "prelu": lambda b, x: b.add("PRelu", [x, vector(b, "slope", C, 1, 1)], "a"),
    "one slope": lambda b, x: b.add("PRelu", [x, vector(b, "slope", 1)], "a"),
    "batch norm": lambda b, x: b.batch_norm(x, "bn", C),
    "batch norm behind identity": norm_behind_identity,
    "instance norm": lambda b, x: b.add(
        "InstanceNormalization", [x, vector(b, "scale", C), vector(b, "shift", C)], "n"
    ),
    "depthwise": lambda b, x: b.conv(x, "dw", C, C, kernel=3, group=C, bias=True, pads=[1] * 4),
    "max pool": lambda b, x: b.add("MaxPool", [x], "p", kernel_shape=[2, 2]),
    "average pool": lambda b, x: b.add("AveragePool", [x], "p", kernel_shape=[2, 2]),
    "global pool": lambda b, x: b.add("GlobalAveragePool", [x], "p"),
    "mean": lambda b, x: b.add("ReduceMean", [x], "p", axes=[-1, 2]),
    "pad": lambda b, x: b.add("Pad", [x, ints(b, "pads", 0, 0, 1, 1, 0, 0, 2, 0)], "p"),
    "resize": resized_by_shape,
    "sizes": lambda b, x: b.add("Resize", [x, "", "", ints(b, "sizes", 1, C, 9, 7)], "p"),
    "scalar": lambda b, x: b.add("Mul", [vector(b, "half"), x], "m"),
    "per channel": lambda b, x: b.add("Add", [x, vector(b, "v", C, 1, 1)], "m"),
    "per channel with batch": lambda b, x: b.add("Sub", [vector(b, "v", 1, C, 1, 1), x], "m"),
    "per position": lambda b, x: b.add("Mul", [x, vector(b, "v", 6, 1)], "m"),
    "same for all channels": lambda b, x: b.add("Mul", [x, vector(b, "v", 1, 6, 6)], "m"),
    "gate": gate,
    "residual": residual,
    "another dense reader": lambda b, x: b.output(b.conv(x, "side", C, 2)) and x,
}


@pytest.mark.parametrize("layers", ABSORBED)
def test_what_is_absorbed(layers: str) -> None:
    builder = start()
    found = absorbed(finish(builder, ABSORBED[layers](builder, "origin")))
    assert found.result.changed == ["g"]
    assert not found.gathers
    assert "origin" + "_node" in found.absorb.permuted
    if layers not in ("gate", "residual", "another dense reader"):
        assert found.deviation == 0.0, "no sum is added up in another order"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("opset", [9, 11, 13, 17, NEWEST])
def test_every_opset(opset: int, dtype: type[np.generic]) -> None:
    builder = start(opset, dtype)
    builder.batch_norm("origin", "bn", C)
    builder.activation("bn", "act", "Relu6")
    builder.conv("act", "dw", C, C, kernel=3, group=C, pads=[1] * 4)
    if opset < 11:
        builder.add("Pad", ["dw"], "padded", pads=[0, 0, 1, 1, 0, 0, 1, 1])
    else:
        pads = ints(builder, "pads", 0, 0, 1, 1, 0, 0, 1, 1)
        if opset < 18:
            builder.add("Pad", ["dw", pads], "padded")
        else:
            builder.initializers.pop()
            pads = ints(builder, "pads", 1, 1, 1, 1)
            builder.add("Pad", ["dw", pads, "", ints(builder, "axes", -1, 2)], "padded")
    if opset == 9:
        builder.add("Upsample", ["padded", floats(builder, "scales", 1, 1, 2, 2)], "up")
    else:
        roi = floats(builder, "roi") if opset < 13 else ""
        builder.add("Resize", ["padded", roi, floats(builder, "scales", 1, 1, 2, 2)], "up")
    found = absorbed(finish(builder, builder.activation("up", "act2", "Swish")))
    assert found.result.changed == ["g"]


def mask_that_nobody_reads(b: GraphBuilder, x: str) -> str:
    b.nodes.append(helper.make_node("Dropout", [x], ["d", "mask"], "drop"))
    return "d"


def test_values_and_names() -> None:
    builder = start()
    builder.batch_norm("origin", "bn", C)
    before = finish(builder, builder.add("Relu", ["bn"], "act"))
    before = onnx.shape_inference.infer_shapes(before)
    found = absorbed(before)
    order = list(tensor_named(before, "g_order"))
    assert [entry.order for entry in found.absorb.permutations] == [order]
    names = {"origin/permuted": "origin", "bn/permuted": "bn", "act/permuted": "act"}
    assert found.absorb.permutations[0].tensors == names
    renamed = {(("", former), name) for name, former in names.items()}
    assert {*found.absorb.renamed.items()} == renamed | {(("", "g"), "act/permuted")}
    assert found.absorb.permuted == ["origin_node", "bn_node", "act_node", "K_node"]
    weight = tensor_named(found.model, "origin_node/permuted_weight")
    assert np.array_equal(weight, tensor_named(before, "origin_w")[order])
    assert node_named(found.model, "K_node").input[0] == "act/permuted"
    shapes = {entry.name: entry.type for entry in before.graph.value_info}
    for entry in found.model.graph.value_info:
        assert entry.type == shapes[names.get(entry.name, entry.name)]
    assert not {"g", "origin", "act"} & {entry.name for entry in found.model.graph.value_info}
    left = {tensor.name for tensor in found.model.graph.initializer}
    assert not {"origin_w", "origin_b", "bn_scale", "g_order"} & left


def test_shared_constants_are_copied_once() -> None:
    builder = start()
    builder.add("PRelu", ["origin", vector(builder, "slope", C, 1, 1)], "a")
    builder.add("PRelu", ["a", "slope"], "b")
    builder.conv("x", "side", 4, C, kernel=3)
    builder.nodes[-1].input[1] = "origin_w"
    builder.add("PRelu", ["side", "slope"], "z")
    builder.output("z")
    found = absorbed(finish(builder, "b"))
    assert found.result.changed == ["g"]
    a, b = node_named(found.model, "a_node"), node_named(found.model, "b_node")
    assert a.input[1] == b.input[1] == "a_node/permuted_operand2"
    assert node_named(found.model, "z_node").input[1] == "slope"


def test_two_readers_with_two_orders() -> None:
    """The first takes its order; the second has other indices then, and stays."""
    builder = start()
    for index in "12":
        grouped(builder, gather(builder, "origin", f"g{index}"), f"K{index}")
        builder.output(builder.add("Neg", [f"K{index}"], f"y{index}"))
    found = absorbed(builder.model())
    assert found.result.changed == ["g1"]
    assert found.gathers == ["g2"]
    assert "g2" in found.absorb.permuted


def test_two_readers_with_one_order() -> None:
    builder = start()
    order = [int(i) for i in builder.generator.permutation(C)]
    for index, part in (("1", order), ("2", order), ("3", order[:6])):
        gather(builder, "origin", f"g{index}", part)
        builder.conv(f"g{index}", f"K{index}", len(part), 6, group=3)
        builder.output(builder.add("Neg", [f"K{index}"], f"y{index}"))
    found = absorbed(builder.model())
    assert found.result.changed == ["g1", "g2"]
    assert list(tensor_named(found.model, "g3/permuted_indices")) == [0, 1, 2, 3, 4, 5]


def test_a_chain_of_sites() -> None:
    """Each order is absorbed by the convolution before; a second order adds to the first."""
    builder = start()
    x = "origin"
    for index in "123":
        k = grouped(builder, gather(builder, x, f"g{index}"), f"K{index}")
        x = builder.add("Relu", [builder.conv(k, f"L{index}", C, C, bias=True)], f"a{index}")
    found = absorbed(finish(builder, gather(builder, builder.add("Neg", [x], "n"), "g4")))
    assert sorted(found.result.changed) == ["g", "g1", "g2", "g3", "g4"]
    assert not found.gathers


def test_behind_a_site() -> None:
    """The order of a site's output goes into the dense convolution behind it."""
    builder = start()
    gather(builder, grouped(builder, "origin", "K"), "g")
    builder.batch_norm("g", "bn", C)
    builder.conv("bn", "dw", C, C, kernel=3, group=C)
    builder.output(builder.conv("dw", "last", C, 5))
    found = absorbed(builder.model())
    assert found.result.changed == ["g"]
    assert found.absorb.permuted == ["bn_node", "dw_node", "last_node"]
    assert found.absorb.renamed["", "g"] == "K"
    assert {name for p in found.absorb.permutations for name in p.tensors} == {
        *("K", "bn/permuted", "dw/permuted")
    }


def test_whole_groups_move_through_a_grouped_convolution() -> None:
    builder = start()
    grouped(builder, "origin", "L")
    order = [8, 11, 9, 10, 0, 1, 2, 3, 7, 6, 5, 4]
    grouped(builder, gather(builder, "L", "g", order), "K", groups=4)
    builder.output(builder.add("Neg", ["K"], "y"))
    found = absorbed(builder.model())
    assert found.result.changed == ["g"]
    orders = {tuple(p.order): set(p.tensors) for p in found.absorb.permutations}
    assert orders == {
        tuple(order): {"L/permuted"},
        (8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7): {"origin/permuted"},
    }


def test_orders_add_to_those_of_an_earlier_run() -> None:
    first = absorbed(finish(start(), "origin"))
    builder = GraphBuilder(seed=5)
    again = first.model
    order = [int(i) for i in builder.generator.permutation(C)]
    again.graph.initializer.append(onnx.numpy_helper.from_array(np.array(order), "h_order"))
    node = helper.make_node("Gather", ["origin/permuted", "h_order"], ["h"], name="g", axis=1)
    again.graph.node.insert(1, node)
    node_named(again, "K_node").input[0] = "h"
    earlier = first.absorb.permutations
    opened = AbsorbGathers({"g"}, permutations=earlier)
    assert opened.run(OpenModel(again)).changed == ["g"]
    combined = [earlier[0].order[i] for i in order]
    assert opened.permutations == [Permutation({"origin/permuted_2": "origin"}, combined)]


@pytest.mark.parametrize("weights", ["constant", "input"])
def test_other_places_of_weights(weights: Any) -> None:
    builder = start()
    builder.weights = weights
    builder.conv("origin", "dw", C, C, kernel=3, group=C, bias=True)
    found = absorbed(finish(builder, builder.batch_norm("dw", "bn", C)))
    assert found.result.changed == ["g"]


@pytest.mark.parametrize("dims", [1, 3])
def test_other_numbers_of_dimensions(dims: int) -> None:
    builder = GraphBuilder()
    builder.input("x", [2, 4, *[5] * dims])
    builder.conv("x", "origin", 4, C, dims=dims, kernel=3)
    operand = vector(builder, "v", C, *[1] * dims)
    gather(builder, builder.add("Add", ["origin", operand], "sum"), "g")
    builder.output(builder.conv("g", "K", C, C, dims=dims, group=3))
    assert absorbed(builder.model()).result.changed == ["g"]
