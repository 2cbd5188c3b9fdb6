"""Channels left out between two convolutions: what is computed, named, counted and left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnx_igpc.fitting.narrowing import NarrowWeights
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.passes import NarrowChannels
from onnx_igpc.passes.narrow_channels import NarrowedChannels
from onnx_igpc.sites.find import SiteFilter, find_sites
from tests.calibration_graphs import residual_model
from tests.helpers import GraphBuilder, WeightForm, node_named, run, tensor_named
from tests.passes.graphs import copy_of

C, F = 8, 5
Layers = Callable[[GraphBuilder, str], str]


def random_weights(*kept: int, filters: int = F, seed: int = 0) -> NarrowWeights:
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(filters, len(kept)))
    return NarrowWeights(kept, matrix, random.normal(size=filters), 0.0)


def depthwise(graph: GraphBuilder, x: str) -> str:
    return graph.conv(x, "dw", C, C, kernel=3, group=C, bias=True, pads=[1] * 4)


def normalized(graph: GraphBuilder, x: str) -> str:
    return graph.activation(graph.batch_norm(x, "bn", C), "act", "Relu6")


def slopes(graph: GraphBuilder, x: str) -> str:
    return graph.add("PRelu", [x, graph.stored("slope", graph.random(C, 1, 1))], "prelu")


def shifted(graph: GraphBuilder, x: str) -> str:
    scaled = graph.add("Mul", [x, graph.stored("m", graph.random(1, C, 1, 1))], "scaled")
    shifted = graph.add("Add", [graph.stored("a", graph.random(C, 1, 1)), scaled], "shifted")
    return graph.add("Sub", [shifted, graph.stored("s", graph.random(6))], "columns")


def gated(graph: GraphBuilder, x: str) -> str:
    return graph.activation(x, "gated", "Swish")


def everything(graph: GraphBuilder, x: str) -> str:
    for layer in (normalized, depthwise, shifted, slopes, gated):
        x = layer(graph, x)
    return graph.add("MaxPool", [x], "pool", kernel_shape=[2, 2])


def built(
    between: Layers,
    dtype: type[np.generic] = np.float32,
    *,
    kernel: int = 3,
    opset: int = 17,
    weights: WeightForm = "initializer",
) -> onnx.ModelProto:
    """x -> Conv ``make`` -> what ``between`` appends -> 1x1 Conv ``read`` -> y."""
    graph = GraphBuilder(opset, dtype, weights)
    graph.input("x", ["batch", 4, 6, 6])
    value = graph.conv("x", "make", 4, C, bias=True, kernel=kernel, pads=[kernel // 2] * 4)
    graph.conv(between(graph, value), "read", C, F)
    graph.add("Neg", ["read"], "y")
    graph.output("y")
    return graph.model()


def chain() -> onnx.ModelProto:
    """x -> pointwise ``p0`` -> depthwise ``d0`` -> ``p1`` -> ``d1`` -> ``p2`` -> y."""
    graph = GraphBuilder()
    x = graph.input("x", ["batch", 4, 6, 6])
    for index, (read, made) in enumerate([(4, C), (C, 6)]):
        x = graph.activation(graph.conv(x, f"p{index}", read, made), f"act{index}", "Relu")
        x = graph.conv(x, f"d{index}", made, made, kernel=3, group=made, bias=True, pads=[1] * 4)
    graph.conv(x, "p2", 6, F, bias=True)
    graph.add("Neg", ["p2"], "y")
    graph.output("y")
    return graph.model()


CHAIN = {
    "p1_node": random_weights(0, 3, 6, filters=6),
    "p2_node": random_weights(1, 2, 4, 5, seed=1),
}


def zeroed(model: onnx.ModelProto, weights: Mapping[str, NarrowWeights]) -> onnx.ModelProto:
    """The model with all its channels, of which each reader takes those that are to stay."""
    changed = copy_of(model)
    for name, narrow in weights.items():
        node = node_named(changed, name)
        kernel = tensor_named(model, node.input[1])
        given = [narrow.dense(kernel.shape[1]).reshape(kernel.shape), narrow.bias]
        del node.input[1:]
        for part, values in zip(("weight", "bias"), given, strict=True):
            tensor = numpy_helper.from_array(values.astype(kernel.dtype), f"{name}/given_{part}")
            changed.graph.initializer.append(tensor)
            node.input.append(tensor.name)
    return changed


def narrowed(
    model: onnx.ModelProto, weights: Mapping[str, NarrowWeights]
) -> tuple[onnx.ModelProto, NarrowedChannels]:
    """Run the pass on a copy, and check what must be so in any case."""
    opened = OpenModel(copy_of(model))
    result = NarrowChannels(weights).run(opened)
    onnx.checker.check_model(opened.proto, full_check=True)
    assert operators(opened.proto) == operators(model)
    made, wanted = run(opened.proto)["y"], run(zeroed(model, weights))["y"]
    tolerance = 2e-2 if made.dtype == np.float16 else 1e-4
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(made, wanted, rtol=tolerance, atol=tolerance)
    return opened.proto, result


def operators(model: onnx.ModelProto) -> list[tuple[str, str, list[str], list[str]]]:
    """The nodes but for constants: names, what they read of each other and what they make."""
    made = {name for node in model.graph.node if node.input for name in node.output}
    return [
        (node.op_type, node.name, [each for each in node.input if each in made], list(node.output))
        for node in model.graph.node
        if node.op_type != "Constant"
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "between", [normalized, depthwise, slopes, shifted, gated, everything, lambda graph, x: x]
)
def test_it_computes_what_the_original_does_with_the_weights_that_are_given(
    between: Layers, dtype: type[np.generic]
) -> None:
    model, result = narrowed(built(between, dtype), {"read_node": random_weights(0, 2, 3, 7)})
    assert result.changed == ["read_node"]
    assert tensor_named(model, node_named(model, "make").input[1]).shape == (4, 4, 3, 3)
    assert tensor_named(model, node_named(model, "read").input[1]).shape == (F, 4, 1, 1)
    assert {tensor_named(model, name).dtype for name in node_named(model, "read").input[1:]} == {
        np.dtype(dtype)
    }


@given(st.sets(st.integers(0, C - 1), min_size=1), st.integers(0, 99), st.booleans())
@settings(max_examples=15, deadline=None)
def test_any_channels_can_be_kept(kept: set[int], seed: int, spatial: bool) -> None:
    weights = random_weights(*sorted(kept), seed=seed)
    model, result = narrowed(built(everything, kernel=3 if spatial else 1), {"read_node": weights})
    assert len(tensor_named(model, node_named(model, "make").input[1])) == len(kept)
    assert result.narrowed[0].weights is weights


@pytest.mark.parametrize("weights", ["initializer", "constant", "input"])
@pytest.mark.parametrize("opset", [8, 13])
def test_weights_in_every_form(weights: WeightForm, opset: int) -> None:
    model = built(everything, opset=opset, weights=weights)
    changed, result = narrowed(model, {"read_node": random_weights(1, 4)})
    assert {"make_w", "make_b", "dw_w", "dw_b", "read_w", "m", "slope"} <= {
        name.removesuffix("_node") for name in result.removed
    }
    listed = {value.name for value in model.graph.input}
    assert listed - {value.name for value in changed.graph.input} == set(result.inputs_removed)


def test_what_was_done_is_told() -> None:
    _, result = narrowed(residual_model(8, blocks=1), {"b0_node": random_weights(3, 9, filters=8)})
    (done,) = result.narrowed
    assert (done.name, done.maker, done.output, done.channels) == ("b0_node", "a0_node", "b0", 16)
    assert done.weights.kept == (3, 9)
    assert set(result.removed) == {"a0_w", "a0_b", "d0_w", "b0_w"}


@pytest.mark.parametrize("kept", [(5,), (1, 5), (0, 2, 4, 6)])
def test_depthwise_convolutions_have_a_group_for_each_channel_that_stays(
    kept: tuple[int, ...],
) -> None:
    before = built(depthwise)
    model, _ = narrowed(before, {"read_node": random_weights(*kept)})
    node = node_named(model, "dw")
    assert [each.i for each in node.attribute if each.name == "group"] == [len(kept)]
    for own, former in zip(node.input[1:], ("dw_w", "dw_b"), strict=True):
        np.testing.assert_array_equal(
            tensor_named(model, own), tensor_named(before, former)[list(kept)]
        )


def test_shapes_that_the_graph_states_follow() -> None:
    before = onnx.shape_inference.infer_shapes(built(everything))
    model, _ = narrowed(before, {"read_node": random_weights(0, 3, 5)})

    def channels(proto: onnx.ModelProto) -> dict[str, int]:
        infos = proto.graph.value_info
        return {each.name: each.type.tensor_type.shape.dim[1].dim_value for each in infos}

    stated = channels(before)
    assert {"make", "dw", "gated_gate", "pool", "read"} <= stated.keys()
    assert channels(model) == {name: F if name == "read" else 3 for name in stated}
    onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True)


def test_multiplications_fall_in_all_that_takes_part() -> None:
    before = built(depthwise, kernel=1)
    model, _ = narrowed(before, {"read_node": random_weights(1, 6)})
    old, new = (count(OpenModel(each)) for each in (before, model))
    assert old.macs == 36 * (4 * C + 9 * C + C * F)
    assert new.macs == 36 * (4 * 2 + 9 * 2 + 2 * F)


def test_everything_else_stays_byte_for_byte() -> None:
    before = residual_model(8, blocks=3)
    before.graph.doc_string = "blocks"
    node_named(before, "b1").doc_string = "projects"
    node_named(before, "d1").metadata_props.add(key="from", value="layer 7")
    model, result = narrowed(before, {"b1_node": random_weights(0, 5, 11, filters=8)})
    touched = {"a1_node", "d1_node", "b1_node"}
    for old, new in zip(before.graph.node, model.graph.node, strict=True):
        if old.name not in touched:
            assert new.SerializeToString() == old.SerializeToString()
        else:
            assert (old.doc_string, old.metadata_props) == (new.doc_string, new.metadata_props)
    kept = {each.name: each.SerializeToString() for each in model.graph.initializer}
    for tensor in before.graph.initializer:
        assert tensor.name in result.removed or kept[tensor.name] == tensor.SerializeToString()
    assert all(name[:2] in ("a1", "b1", "d1") for name in result.removed)
    stripped = [copy_of(each) for each in (before, model)]
    for each in stripped:
        del each.graph.node[:], each.graph.initializer[:]
    assert stripped[0].SerializeToString() == stripped[1].SerializeToString()


def test_a_weight_that_another_convolution_shares_stays_for_it() -> None:
    before = residual_model(8)
    node_named(before, "a1").input[1] = "a0_w"
    node_named(before, "d1").input[1] = "d0_w"
    model, result = narrowed(before, {"b0_node": random_weights(2, 3, filters=8)})
    assert set(result.removed) == {"a0_b", "b0_w"}
    assert node_named(model, "a1").input[1] == "a0_w"
    assert tensor_named(model, "a0_w").shape == (16, 8, 1, 1)


def test_a_convolution_loses_channels_on_both_sides_in_one_run() -> None:
    model, result = narrowed(chain(), CHAIN)
    assert result.changed == ["p1_node", "p2_node"]
    shapes = {
        name: tensor_named(model, node_named(model, name).input[1]).shape
        for name in ("p0", "d0", "p1", "d1", "p2")
    }
    assert shapes == {
        "p0": (3, 4, 1, 1),
        "d0": (3, 1, 3, 3),
        "p1": (4, 3, 1, 1),
        "d1": (4, 1, 3, 3),
        "p2": (F, 4, 1, 1),
    }


def test_the_order_in_which_weights_are_given_does_not_matter() -> None:
    model, result = narrowed(chain(), dict(reversed(CHAIN.items())))
    assert result.changed == [each.name for each in result.narrowed] == ["p1_node", "p2_node"]
    assert model == narrowed(chain(), CHAIN)[0]


def test_both_convolutions_of_a_chain_can_be_narrowed_in_two_runs() -> None:
    names = list(CHAIN)
    first, _ = narrowed(chain(), {names[0]: CHAIN[names[0]]})
    second, _ = narrowed(first, {names[1]: CHAIN[names[1]]})
    np.testing.assert_array_equal(run(second)["y"], run(narrowed(chain(), CHAIN)[0])["y"])


def test_readers_that_are_not_there_are_told_and_nothing_is_done_for_them() -> None:
    model, opened = built(depthwise), OpenModel(built(depthwise))
    weights = {"make_node": random_weights(0, filters=C), "gone": random_weights(0)}
    result = NarrowChannels(weights).run(opened)
    assert not result
    assert result.kept == dict.fromkeys(
        ("make_node", "gone"), "none of the channels that it reads can be left out"
    )
    assert opened.proto == model


def test_sites_that_were_found_with_a_filter_decide_what_is_left_out() -> None:
    opened = OpenModel(residual_model(8))
    found = find_sites(GraphView(opened), SiteFilter(exclude="a0*"))
    weights = {name: random_weights(0, 1, filters=8) for name in ("b0_node", "b1_node")}
    result = NarrowChannels(weights, found).run(opened)
    assert (result.changed, list(result.kept)) == (["b1_node"], ["b0_node"])
