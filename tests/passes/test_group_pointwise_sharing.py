"""Weights that several convolutions share: rewritten once, and shared still."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from onnx_igpc import compress
from onnx_igpc.graph.cost import count
from onnx_igpc.planning.options import Published
from onnx_igpc.sites.find import SiteFilter
from tests.helpers import GraphBuilder, WeightForm, node_named, run
from tests.passes.graphs import group
from tests.untouched import assert_untouched


def two_layers(weights: WeightForm = "initializer", *, through: str = "") -> GraphBuilder:
    """Two convolutions of one weight and bias, each with a BatchNorm of its own; ``y`` adds them.

    ``through`` is what the second reads the weight through; both do where it is a Transpose.
    """
    builder = GraphBuilder(weights=weights)
    builder.input("x", [1, 20, 5, 5])
    builder.conv("x", "a", 20, 20, bias=True)
    weight, bias = "a_w", "a_b"
    if through:
        attributes = {"perm": [0, 1, 2, 3]} if through == "Transpose" else {}
        weight = builder.add(through, ["a_w"], "seen_w", **attributes)
        if through == "Transpose":
            builder.add(through, ["a_w"], "seen_by_a", **attributes)
            conv = next(node for node in builder.nodes if node.op_type == "Conv")
            conv.input[1] = "seen_by_a"
            builder.nodes.sort(key=lambda node: node.op_type == "Conv")
    builder.add("Conv", ["x", weight, bias], "b")
    made = [builder.batch_norm(name, f"{name}_bn", 20) for name in ("a", "b")]
    builder.add("Add", made, "y")
    builder.output("y")
    return builder


def kernels(model: object, name: str) -> list[str]:
    nodes = model.graph.node  # type: ignore[attr-defined]
    return [n.input[1] for n in nodes if n.op_type == "Conv" and n.name.startswith(f"{name}/")]


@pytest.mark.parametrize("weights", ["initializer", "constant", "input"])
@pytest.mark.parametrize("through", ["", "Identity", "Transpose"])
def test_shared_weights_are_rewritten_once_and_stay_shared(
    weights: WeightForm, through: str
) -> None:
    before = two_layers(weights, through=through).model()
    result = compress(before, Published(4))
    shared = kernels(result.model, "a_node")
    assert shared == kernels(result.model, "b_node")
    first, second = result.report.sites
    assert (first.shares_weight_with, second.shares_weight_with) == (None, "a_node")
    stored = [name for name in shared if name.endswith(".weight")]
    assert len(stored) == len(set(stored)) == 2
    assert_untouched(before, result.model, result.report)
    old = {"a_w", "seen_w"}
    assert not old & {name for node in result.model.graph.node for name in node.input}


def test_shared_layers_compute_the_same_matrix() -> None:
    """Without the BatchNorms both give the same values, which those of the first layer are."""
    builder = GraphBuilder()
    builder.input("x", [1, 35, 5, 5])
    builder.conv("x", "a", 35, 27, bias=True)
    builder.add("Conv", ["x", "a_w", "a_b"], "b")
    builder.add("Sub", ["a", "b"], "zero")
    builder.output("zero")
    model = group(builder.model()).model
    assert np.abs(run(model)["zero"]).max() == 0


def test_parameters_that_are_shared_count_once() -> None:
    before = two_layers().model()
    result = compress(before, Published(4))
    totals = result.report.totals
    assert totals.parameters.before == count(before).parameters == 20 * 20 + 20 + 4 * 20
    assert totals.parameters.after == count(result.model).parameters
    stored = sum(
        numpy_helper.to_array(tensor).size
        for tensor in result.model.graph.initializer
        if tensor.name.endswith(".weight") or tensor.name == "a_b"
    )
    assert totals.pointwise_parameters.before == 20 * 20 + 20
    assert totals.pointwise_parameters.after == stored


def test_a_weight_that_another_layer_keeps_stays() -> None:
    before = two_layers().model()
    result = compress(before, Published(4), sites=SiteFilter(exclude=("b_node",)))
    assert [site.status for site in result.report.sites] == ["rewritten", "kept"]
    assert node_named(result.model, "b_node") == node_named(before, "b_node")
    assert "a_w" in {tensor.name for tensor in result.model.graph.initializer}
    assert_untouched(before, result.model, result.report)
    # What is stored now is both: the report says so, since it counts what was written.
    assert result.report.totals.parameters.after == count(result.model).parameters


def test_a_bias_of_two_layers_that_is_split_for_each() -> None:
    """In V1 without L the bias is put into K's order: the shared one loses both its readers."""
    builder = GraphBuilder()
    builder.input("x", [1, 16, 5, 5])
    builder.conv("x", "a", 16, 32, bias=True)
    builder.conv("x", "b", 16, 32)
    builder.nodes[-1].input.append("a_b")
    builder.add("Concat", ["a", "b"], "joined", axis=1)
    builder.add("Relu", ["joined"], "y")
    builder.output("y")
    result = compress(builder.model(), Published(8, scheme="v1"))
    assert "a_b" in result.report.removed
    assert_untouched(builder.model(), result.model, result.report)
    assert "2 of 2 compute M x + b" in result.report.checks["sites"]


def test_a_weight_that_something_else_reads_stays() -> None:
    builder = two_layers()
    builder.add("ReduceMean", ["a_w"], "mean", axes=[0, 1, 2, 3], keepdims=0)
    builder.output("mean")
    before = builder.model()
    result = compress(before, Published(4))
    np.testing.assert_array_equal(run(result.model)["mean"], run(before)["mean"])
    assert_untouched(before, result.model, result.report)
