"""Which channels between two convolutions can be left out, and which cannot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import SiteFilter, find_sites
from onnx_igpc.sites.inner_channels import InnerChannels, find_inner_channels
from tests.calibration_graphs import hidden_sites_model, residual_model
from tests.helpers import GraphBuilder

C = 8
Layers = Callable[[GraphBuilder, str], str]


def found_in(model: onnx.ModelProto, **chosen: str) -> list[InnerChannels]:
    found = find_sites(GraphView(OpenModel(model)), SiteFilter(**chosen, include_heads=True))
    return find_inner_channels(found)


def built(between: Layers, *, kernel: int = 1, opset: int = 17) -> onnx.ModelProto:
    """x -> Conv ``make`` -> what ``between`` appends -> 1x1 Conv ``read`` -> y."""
    graph = GraphBuilder(opset)
    graph.input("x", ["batch", 4, 6, 6])
    value = graph.conv("x", "make", 4, C, bias=True, kernel=kernel, pads=[kernel // 2] * 4)
    graph.conv(between(graph, value), "read", C, 5)
    graph.activation("read", "y", "Relu")
    graph.output("y")
    return graph.model()


def depthwise(graph: GraphBuilder, x: str) -> str:
    return graph.conv(x, "dw", C, C, kernel=3, group=C, bias=True, pads=[1] * 4)


def slopes(graph: GraphBuilder, x: str) -> str:
    return graph.add("PRelu", [x, graph.initializer("slope", graph.random(C, 1, 1))], "prelu")


def shifted(graph: GraphBuilder, x: str) -> str:
    scaled = graph.add("Mul", [x, graph.initializer("m", graph.random(1, C, 1, 1))], "scaled")
    return graph.add("Add", [graph.initializer("a", graph.random(C, 1, 1)), scaled], "shifted")


def pooled(graph: GraphBuilder, x: str) -> str:
    return graph.add("GlobalAveragePool", [x], "pooled")


HANDED_ON: list[Layers] = [
    lambda graph, x: x,
    lambda graph, x: graph.activation(x, "act", "Swish"),
    lambda graph, x: graph.activation(x, "act", "Relu6"),
    lambda graph, x: graph.batch_norm(x, "bn", C),
    depthwise,
    slopes,
    shifted,
    pooled,
]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("between", HANDED_ON)
def test_channels_that_are_handed_on_one_by_one_are_found(between: Layers, kernel: int) -> None:
    (inner,) = found_in(built(between, kernel=kernel))
    assert (inner.name, inner.maker.name, inner.channels) == ("read_node", "make_node", C)
    assert inner.reader.out_channels == 5


def test_they_come_in_the_order_of_the_graph_and_residual_sums_are_not_among_them() -> None:
    inner = found_in(residual_model(8))
    assert [(each.name, each.maker.name) for each in inner] == [
        ("b0_node", "a0_node"),
        ("b1_node", "a1_node"),
    ]
    assert [each.channels for each in inner] == [16, 16]


def test_a_convolution_reads_some_channels_and_makes_others() -> None:
    model = built(lambda graph, x: graph.conv(x, "middle", C, C))
    assert [(each.name, each.maker.name) for each in found_in(model)] == [
        ("middle_node", "make_node"),
        ("read_node", "middle_node"),
    ]


def second_reader(graph: GraphBuilder, x: str) -> str:
    graph.output(graph.conv(x, "other", C, 3, kernel=3))
    return graph.activation(x, "act", "Relu")


def residual(graph: GraphBuilder, x: str) -> str:
    return graph.add("Add", [x, graph.conv("x", "beside", 4, C)], "sum")


def around(graph: GraphBuilder, x: str) -> str:
    return graph.add("Add", [x, graph.conv(x, "inside", C, C, kernel=3, pads=[1] * 4)], "sum")


def seen_outside(graph: GraphBuilder, x: str) -> str:
    return graph.output(graph.activation(x, "act", "Relu"))


def excited(graph: GraphBuilder, x: str) -> str:
    gate = graph.conv(graph.add("GlobalAveragePool", [x], "pool"), "gate", C, C)
    return graph.add("Mul", [x, graph.activation(gate, "open", "Sigmoid")], "excited")


def in_groups(graph: GraphBuilder, x: str) -> str:
    return graph.conv(x, "grouped", C, C, kernel=3, group=2, pads=[1] * 4)


def doubled(graph: GraphBuilder, x: str) -> str:
    halved = graph.conv(x, "half", C, C // 2, kernel=3, pads=[1] * 4)
    return graph.conv(halved, "double", C // 2, C, kernel=3, group=C // 2, pads=[1] * 4)


def reshaped(graph: GraphBuilder, x: str) -> str:
    shape = graph.initializer("shape", np.array([0, C, 6, 6], np.int64))
    return graph.add("Reshape", [x, shape], "reshaped")


def measured(graph: GraphBuilder, x: str) -> str:
    graph.output(graph.add("Shape", [x], "shape"), [4], onnx.TensorProto.INT64)
    return graph.activation(x, "act", "Relu")


def quantized(graph: GraphBuilder, x: str) -> str:
    scale = graph.initializer("scale", np.array(0.1, np.float32))
    zero = graph.initializer("zero", np.array(0, np.uint8))
    graph.add("QuantizeLinear", [x, scale, zero], "q")
    return graph.add("DequantizeLinear", ["q", scale, zero], "dq")


def joined(graph: GraphBuilder, x: str) -> str:
    halves = graph.initializer("halves", np.array([4, 4], np.int64))
    graph.nodes.append(onnx.helper.make_node("Split", [x, halves], ["l", "r"], "split", axis=1))
    return graph.add("Concat", ["r", "l"], "joined", axis=1)


def normalized(graph: GraphBuilder, x: str) -> str:
    return graph.add("Softmax", [x], "soft", axis=1)


def averaged(graph: GraphBuilder, x: str) -> str:
    return graph.add("Sub", [x, graph.add("ReduceMean", [x], "mean", axes=[1])], "centred")


def in_a_branch(graph: GraphBuilder, x: str) -> str:
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = GraphBuilder()
        inner.output(inner.add("Neg" if name == "then_branch" else "Abs", [x], f"{name}_out"), None)
        branches[name] = inner.graph(name)
    graph.add("If", [graph.initializer("flag", np.array(True))], "chosen", **branches)
    return graph.add("Add", [x, "chosen"], "sum")


@pytest.mark.parametrize(
    "between",
    [
        second_reader,
        residual,
        around,
        seen_outside,
        excited,
        in_groups,
        doubled,
        reshaped,
        measured,
        quantized,
        joined,
        normalized,
        averaged,
        in_a_branch,
    ],
)
def test_channels_that_something_else_needs_are_not_found(between: Layers) -> None:
    assert "read_node" not in [each.name for each in found_in(built(between))]


def test_a_map_of_one_channel_that_a_constant_spreads_has_no_channels_to_leave_out() -> None:
    def spread(graph: GraphBuilder, x: str) -> str:
        single = graph.conv("x", "single", 4, 1, kernel=3, pads=[1] * 4)
        return graph.add("Mul", [single, graph.initializer("m", graph.random(1, C, 1, 1))], "m8")

    assert "read_node" not in [each.name for each in found_in(built(spread))]


def test_channels_of_the_models_input_stay() -> None:
    graph = GraphBuilder()
    graph.conv(graph.activation(graph.input("x", ["batch", C, 6, 6]), "act", "Relu"), "y", C, 5)
    graph.output("y")
    assert found_in(graph.model()) == []


def test_a_single_channel_is_not_left_out() -> None:
    graph = GraphBuilder()
    graph.input("x", ["batch", 4, 6, 6])
    graph.conv(graph.conv("x", "make", 4, 1), "y", 1, 5)
    graph.output("y")
    assert found_in(graph.model()) == []


@pytest.mark.parametrize("excluded", ["make*", "read*"])
def test_pointwise_convolutions_that_the_filter_excludes_neither_make_nor_read(
    excluded: str,
) -> None:
    model = built(depthwise)
    assert len(found_in(model)) == 1
    assert found_in(model, exclude=excluded) == []


def test_a_spatial_convolution_makes_them_whatever_the_filter_includes() -> None:
    assert len(found_in(built(depthwise, kernel=3), include="read*")) == 1


def test_a_maker_that_may_not_be_rewritten_keeps_all_its_channels() -> None:
    model = built(depthwise)
    (weight,) = [each for each in model.graph.initializer if each.name == "make_w"]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    assert found_in(model) == []


def test_a_weight_that_is_computed_keeps_all_channels() -> None:
    def computed(graph: GraphBuilder, x: str) -> str:
        kernel = graph.initializer("kernel", graph.random(C, 4, 3, 3))
        zero = graph.add("ReduceMin", [graph.add("Relu", ["x"], "positive")], "zero", keepdims=0)
        graph.add("Add", [kernel, zero], "made_kernel")
        return graph.add("Conv", ["x", "made_kernel"], "made", pads=[1] * 4)

    assert "read_node" not in [each.name for each in found_in(built(computed))]


def test_a_quantization_annotation_keeps_its_channels() -> None:
    model = built(depthwise)
    model.graph.quantization_annotation.add(tensor_name="dw")
    assert found_in(model) == []


def test_convolutions_in_branches_and_functions_neither_make_nor_read() -> None:
    assert found_in(hidden_sites_model(C)) == []


def test_channels_inside_a_branch_stay() -> None:
    graph, branches = GraphBuilder(), {}
    graph.input("x", ["batch", 4, 6, 6])
    for name in ("then", "else"):
        inner = GraphBuilder()
        inner.conv(inner.conv("x", f"{name}_make", 4, C), f"{name}_read", C, 5)
        inner.output(f"{name}_read", ["batch", 5, 6, 6])
        branches[f"{name}_branch"] = inner.graph(name)
    graph.add("If", [graph.initializer("flag", np.array(True))], "y", **branches)
    graph.output("y", ["batch", 5, 6, 6])
    assert found_in(graph.model()) == []
