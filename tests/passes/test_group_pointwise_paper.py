"""The paper's form: BatchNorm and activation after K and after L, and nothing after the Add."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnx_igpc import compress
from onnx_igpc.graph.cost import FIXED_TENSORS_KEY, count
from onnx_igpc.planning.options import Published
from tests.helpers import GraphBuilder, node_named, pointwise_model, random_feeds, run, tensor_named
from tests.passes.graphs import group, igpc, stage
from tests.untouched import assert_untouched

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Relu6": lambda x: np.clip(x, 0, 6),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Swish": lambda x: x / (1 + np.exp(-x)),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Tanh": np.tanh,
    "Elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    "LeakyRelu": lambda x: np.where(x > 0, x, 0.01 * x),
}
# A BatchNorm that has just begun only divides by the root of 1 + epsilon.
STARTED = 1 / np.sqrt(1 + 1e-5)


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    ("kind", "opset"), [*((kind, 17) for kind in ACTIVATIONS), ("Swish", 7), ("Relu6", 7)]
)
def test_unit_after_k_and_after_l(kind: str, batch_norm: bool, opset: int) -> None:
    before = pointwise_model(
        35, 27, activation=kind, batch_norm=batch_norm, opset=opset, head=True, weights="constant"
    )
    grouped = group(before, form="paper", heads=True)
    layout, weights = grouped.layouts["conv_node"], grouped.weights["conv_node"]
    feeds = random_feeds(before)
    scale = STARTED if batch_norm else 1.0
    k = ACTIVATIONS[kind](scale * stage(layout.k, weights.k, feeds["x"].astype(np.float64)))
    assert layout.l is not None
    assert layout.interleave is not None
    l_out = ACTIVATIONS[kind](scale * stage(layout.l, weights.l, k[:, list(layout.interleave)]))
    found = run(grouped.model, feeds)["y"]
    np.testing.assert_allclose(found, k + l_out, atol=1e-4, rtol=1e-4)
    assert grouped.result.rewritten[0].activation is not None


@pytest.mark.parametrize(("C", "F", "scheme"), [(16, 32, "v1"), (16, 40, "v2"), (17, 40, "v2")])
def test_without_l_there_is_one_unit(C: int, F: int, scheme: str) -> None:
    before = pointwise_model(C, F, batch_norm=True, head=True)
    grouped = group(before, 8, scheme, "paper", heads=True)
    feeds = random_feeds(before)
    expected = igpc(grouped.layouts["conv_node"], grouped.weights["conv_node"], feeds["x"])
    found = run(grouped.model, feeds)["y"]
    np.testing.assert_allclose(found, np.maximum(expected * STARTED, 0), atol=1e-4, rtol=1e-4)
    assert ops(grouped.model).count("BatchNormalization") == 1
    assert "Add" not in ops(grouped.model)


def test_nothing_follows_the_add() -> None:
    grouped = group(pointwise_model(32, 32, batch_norm=True, activation="Swish"), form="paper")
    maker = node_named(grouped.model, "act")
    assert maker.op_type == "Add"
    reader = next(node for node in grouped.model.graph.node if "act" in node.input)
    assert reader.name == "last_node"
    assert ops(grouped.model).count("Sigmoid") == 2


def test_batch_norm_starts_anew_with_the_attributes_of_the_old() -> None:
    before = pointwise_model(32, 32, batch_norm=True)
    norm = node_named(before, "bn_node")
    norm.attribute.append(onnx.helper.make_attribute("epsilon", 1e-3))
    norm.attribute.append(onnx.helper.make_attribute("momentum", 0.99))
    model = group(before, form="paper").model
    for label in ("K", "L"):
        made = node_named(model, f"conv_node/igpc/{label}_bn")
        assert made.attribute == norm.attribute
        values = [tensor_named(model, name) for name in made.input[1:]]
        for value, start in zip(values, (1, 0, 0, 1), strict=True):
            np.testing.assert_array_equal(value, np.full(32, start, np.float32))
    names = {tensor.name for tensor in model.graph.initializer}
    assert not {"bn_scale", "bn_shift", "bn_mean", "bn_var", "conv_w", "conv_b"} & names


@pytest.mark.parametrize("scheme", ["v1", "v2"])
def test_k_and_l_have_biases_of_their_own_that_start_at_zero(scheme: str) -> None:
    model = group(pointwise_model(40, 24), 8, scheme, "paper").model
    biases = [
        node.input[2]
        for node in model.graph.node
        if "/igpc/" in node.name and len(node.input) > 2 and node.op_type == "Conv"
    ]
    assert len(biases) == len(set(biases)) == (2 if scheme == "v1" else 3)
    assert all(not tensor_named(model, name).any() for name in biases)
    without = group(pointwise_model(40, 24, bias=False), 8, scheme, "paper").model
    assert all(len(n.input) == 2 for n in without.graph.node if n.op_type == "Conv")


def test_an_activation_that_reads_more_than_the_layer_stays() -> None:
    """Squeeze and excite: the Sigmoid goes into the unit, the product with another tensor stays."""
    builder = GraphBuilder()
    builder.input("x", [1, 32, 5, 5])
    gate = builder.activation(builder.conv("x", "conv", 32, 32), "gate", "Sigmoid")
    builder.add("Mul", ["x", gate], "y")
    builder.output("y")
    before = builder.model()
    grouped = group(before, form="paper")
    assert node_named(grouped.model, "y") == node_named(before, "y")
    assert node_named(grouped.model, "gate").op_type == "Add"
    assert ops(grouped.model).count("Sigmoid") == 2


def test_an_activation_whose_input_is_read_elsewhere_is_not_taken() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 32, 5, 5])
    builder.activation(builder.conv("x", "conv", 32, 32), "act", "Relu")
    builder.add("Add", ["conv", "act"], "y")
    builder.output("y")
    before = builder.model()
    model = group(before, form="paper").model
    assert node_named(model, "conv").op_type == "Add"
    assert ops(model).count("Relu") == 1


def test_slopes_of_prelu_are_read_by_both_units() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 32, 5, 5])
    builder.conv("x", "conv", 32, 32)
    builder.add("PRelu", ["conv", builder.stored("slope", builder.random(32, 1, 1))], "act")
    builder.add("Neg", ["act"], "y")
    builder.output("y")
    model = group(builder.model(), form="paper").model
    assert [node.input[1] for node in model.graph.node if node.op_type == "PRelu"] == ["slope"] * 2
    assert run(model)["y"].shape == (1, 32, 5, 5)


def test_a_batch_norm_that_gives_out_its_statistics_stays() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 32, 5, 5])
    builder.batch_norm(builder.conv("x", "conv", 32, 32), "bn", 32)
    norm = builder.nodes[-1]
    norm.output.extend(["new_mean", "new_var"])
    norm.attribute.append(onnx.helper.make_attribute("training_mode", 1))
    builder.output("bn", [1, 32, 5, 5])
    for name in ("new_mean", "new_var"):
        builder.output(name, [32])
    before = builder.model()
    model = group(before, form="paper", heads=True).model
    assert node_named(model, "bn") == norm


def test_fixed_tensors_of_a_batch_norm_are_fixed_again() -> None:
    """The published networks without gamma: what takes its place is no parameter either."""
    before = pointwise_model(32, 32, batch_norm=True)
    before.metadata_props.add(key=FIXED_TENSORS_KEY, value=json.dumps(["bn_scale"]))
    result = compress(before, Published(8, form="paper"))
    entry = next(e for e in result.model.metadata_props if e.key == FIXED_TENSORS_KEY)
    fixed = [f"conv_node/igpc/{label}_bn.scale" for label in ("K", "L")]
    assert json.loads(entry.value) == ["bn_scale", *fixed]
    kernels = 2 * 32 * 8
    # Two kernels with a bias each, beta of two BatchNorms, and the depthwise convolution.
    assert count(result.model).parameters == kernels + 2 * 32 + 2 * 32 + 32 * 9


@pytest.mark.parametrize("scheme", ["v1", "v2"])
@pytest.mark.parametrize("kind", [None, "Relu", "Swish"])
def test_the_whole_of_compress(kind: str | None, scheme: str) -> None:
    before = pointwise_model(40, 24, batch_norm=True, activation=kind)
    result = compress(before, Published(8, scheme=scheme, form="paper"))
    assert "1 of 1 compute K x and L x" in result.report.checks["sites"]
    assert_untouched(before, result.model, result.report)
    site = result.report.sites[0]
    replaced = {None: [], "Relu": ["act_node"], "Swish": ["act_gate_node", "act_node"]}[kind]
    assert site.replaced == ["conv_node", "bn_node", *replaced]
    assert site.activation == kind
    assert site.error is None


def test_names_that_hold_the_word_bias_do_no_harm() -> None:
    before = pointwise_model(40, 24)
    node_named(before, "conv_node").name = "block.bias.conv"
    result = compress(before, Published(8, form="paper"))
    assert [site.status for site in result.report.sites[:1]] == ["rewritten"]
