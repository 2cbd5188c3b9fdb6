"""What no Gather is absorbed by, and why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_igpc.passes import AbsorbGathers
from tests.helpers import GraphBuilder
from tests.passes.absorbing import (
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


def quantized(b: GraphBuilder, x: str) -> str:
    scale = b.initializer("q_scale", np.array(0.1, np.float32))
    zero = b.initializer("q_zero", np.array(3, np.uint8))
    b.add("QuantizeLinear", [x, scale, zero], "q")
    return b.add("DequantizeLinear", ["q", scale, zero], "dq")


def second_output(b: GraphBuilder, x: str) -> str:
    b.nodes.append(helper.make_node("MaxPool", [x], ["p", "places"], "pool", kernel_shape=[2, 2]))
    b.output("places", elem_type=TensorProto.INT64)
    return "p"


def runtime_weight(b: GraphBuilder, x: str) -> str:
    b.input("w", [C, 1, 1, 1])
    return b.add("Conv", [x, "w"], "dw", group=C)


def in_branch(b: GraphBuilder, x: str) -> str:
    def branch(name: str) -> onnx.GraphProto:
        inner = GraphBuilder()
        inner.add("Neg", [x], name)
        inner.output(name, [1, C, 6, 6])
        return inner.graph(name)

    b.input("condition", [], TensorProto.BOOL)
    b.add("If", ["condition"], "z", then_branch=branch("then"), else_branch=branch("else"))
    b.output("z", [1, C, 6, 6])
    return x


REFUSED: dict[str, tuple[Layers, str]] = {
    "softmax": (lambda b, x: b.add("Softmax", [x], "s", axis=1), "Softmax 's_node' may depend"),
    "an output": (lambda b, x: b.output(x), "'origin' is an output of the graph"),
    "the input": (
        lambda b, x: (
            b.output(x) and b.add("Add", [b.input("u", [1, C, 6, 6]), vector(b, "v")], "m")
        ),
        "'u' is an input of the graph",
    ),
    "groups": (
        lambda b, x: grouped(b, x, "L"),
        "Conv 'L_node' has 3 groups, which the order would",
    ),
    "a grouped reader": (
        lambda b, x: b.output(grouped(b, x, "side")) and x,
        "Conv 'side_node' has 3 groups",
    ),
    "multiplied": (
        lambda b, x: b.conv(b.conv(x, "up", C, 2 * C, group=C), "down", 2 * C, C, group=4),
        "4 groups",
    ),
    "lrn": (lambda b, x: b.add("LRN", [x], "n", size=3), "LRN 'n_node' may depend"),
    "concat": (
        lambda b, x: b.add("Concat", [b.conv(x, "l", C, 6), b.conv(x, "r", C, 6)], "c", axis=1),
        "Concat 'c_node' may depend",
    ),
    "quantized": (quantized, "DequantizeLinear 'dq_node' quantizes"),
    "reduced": (
        lambda b, x: b.add("Add", [x, b.add("ReduceMean", [x], "m", axes=[-3])], "sum"),
        "ReduceMean 'm_node' reduces channels",
    ),
    "flattened": (
        lambda b, x: b.add("Add", [x, b.add("ReduceMean", [x], "m", axes=[0], keepdims=0)], "sum"),
        "drops dimensions",
    ),
    "two outputs": (second_output, "MaxPool 'pool' has a second output"),
    "run time": (runtime_weight, "Conv 'dw_node' has no constant weight"),
    "a branch": (in_branch, "lies in another scope"),
    "own gather": (
        lambda b, x: b.add("Gather", [x, ints(b, "own", *range(C))], "own_g", axis=1),
        "Gather 'own_g_node' is the model's own",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    layers, reason = REFUSED[case]
    builder = start()
    found = absorbed(finish(builder, layers(builder, "origin")))
    assert reason in found.result.kept["g"]
    assert found.result.kept["g"].endswith("which the order would mix (behind it)")


def test_channels_that_are_padded_or_resized() -> None:
    for node, values in (("Pad", ints), ("Resize", floats)):
        builder = start()
        numbers = (0, 3, 0, 0, 0, -3, 0, 0) if node == "Pad" else (1, 0.5, 1, 1)
        setting = values(builder, "setting", *numbers)
        inputs = ["origin", setting] if node == "Pad" else ["wide", "", setting]
        if node == "Resize":
            builder.conv("origin", "wide", C, 2 * C)
        found = absorbed(finish(builder, builder.add(node, inputs, "p")))
        assert "channels (before it)" in found.result.kept["g"]


def test_a_quantization_annotation_refuses() -> None:
    before = finish(start(), "origin")
    before.graph.quantization_annotation.add(tensor_name="origin")
    assert "quantization annotation" in absorbed(before).result.kept["g"]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7], [3, 2, 1]])
def test_only_permutations(order: list[int]) -> None:
    builder = start()
    gather(builder, "origin", "g", order)
    builder.output(builder.conv("g", "K", len(order), 3, group=3))
    found = absorbed(builder.model())
    assert "replicates" in found.result.kept["g"] or "another number" in found.result.kept["g"]


def test_nodes_to_leave() -> None:
    before = finish(start(), "origin")
    found = absorbed(before, AbsorbGathers({"g"}, leave={"origin_node"}))
    assert "belongs to a site of an earlier run" in found.result.kept["g"]
