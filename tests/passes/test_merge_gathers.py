"""Merging Gathers of channels, and what must not be merged."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import pytest

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.passes import MergeGathers, PassResult
from tests.helpers import GraphBuilder, WeightForm, random_feeds, run, tensor_named
from tests.passes.graphs import copy_of


def chain(
    *indices: list[int], axis: int = 1, weights: WeightForm = "initializer", opset: int = 17
) -> GraphBuilder:
    """x -> Gather ``g0`` -> Gather ``g1`` ... -> Neg y."""
    builder = GraphBuilder(opset, weights=weights)
    value = builder.input("x", [1, 6, 8, 8])
    for position, each in enumerate(indices):
        stored = builder.stored(f"i{position}", np.asarray(each, np.int64))
        value = builder.add("Gather", [value, stored], f"g{position}", axis=axis)
    builder.add("Neg", [value], "y")
    builder.output("y")
    return builder


def merged(
    before: onnx.ModelProto, nodes: Collection[str] | None = None
) -> tuple[onnx.ModelProto, PassResult]:
    opened = OpenModel(copy_of(before))
    result = MergeGathers(nodes).run(opened)
    onnx.checker.check_model(opened.proto, full_check=True)
    feeds = random_feeds(before)
    for name, values in run(before, feeds).items():
        np.testing.assert_array_equal(run(opened.proto, feeds)[name], values)
    return opened.proto, result


def gathers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Gather"]


# Integers in Constant nodes came with opset 9.
@pytest.mark.parametrize(
    ("weights", "opset"), [("initializer", 7), ("initializer", 17), ("constant", 17)]
)
def test_two_become_one(weights: WeightForm, opset: int) -> None:
    before = chain([5, 3, 1, 0], [3, 0, 0, 2, 1], weights=weights, opset=opset)
    model, result = merged(before.model())
    assert [node.name for node in gathers(model)] == ["g1_node"]
    assert gathers(model)[0].input[0] == "x"
    assert result.changed == ["g1_node"]
    if opset >= 9:
        assert list(tensor_named(model, gathers(model)[0].input[1])) == [0, 5, 5, 1, 3]
    left = {tensor.name for tensor in model.graph.initializer} | {
        node.output[0] for node in model.graph.node
    }
    assert not {"i0", "i1", "g0"} & left


@pytest.mark.parametrize("length", [3, 4, 5])
def test_a_chain_becomes_one(length: int) -> None:
    turn = [1, 2, 3, 4, 5, 0]
    model, result = merged(chain(*[turn] * length).model())
    assert len(gathers(model)) == 1
    indices = tensor_named(model, gathers(model)[0].input[1])
    assert list(indices) == [(i + length) % 6 for i in range(6)]
    assert len(model.graph.initializer) == 1
    assert sorted(set(result.changed)) == sorted(result.changed), "each is named once"


def test_only_the_named_nodes_are_rewritten() -> None:
    before = chain([5, 4, 3, 2, 1, 0], [1, 0, 2, 3, 4, 5], [2, 1, 0]).model()
    model, result = merged(before, {"g1_node"})
    assert result.changed == ["g1_node"]
    assert [node.name for node in gathers(model)] == ["g1_node", "g2_node"]
    assert gathers(model)[1] == before.graph.node[2]


def test_the_first_stays_where_something_else_reads_it() -> None:
    builder = chain([5, 3, 1, 0], [3, 0])
    builder.add("Abs", ["g0"], "z")
    builder.output("z")
    model, _ = merged(builder.model())
    assert len(gathers(model)) == 2
    assert {node.input[0] for node in gathers(model)} == {"x"}


def not_merged() -> dict[str, onnx.ModelProto]:
    matrix = chain([5, 3, 1, 0])
    matrix.initializer("square", np.array([[0, 1], [2, 3]], np.int64))
    matrix.nodes.insert(1, onnx.helper.make_node("Gather", ["g0", "square"], ["h"], axis=1))
    matrix.nodes[-1].input[0] = "h"
    return {
        "another axis": chain([5, 3, 1, 0], [3, 0], axis=2).model(),
        "negative": chain([-1, 3, 1, 0], [3, 0]).model(),
        "negative in the second": chain([1, 3, 1, 0], [-1, 0]).model(),
        "not one-dimensional": matrix.model(),
    }


@pytest.mark.parametrize("case", not_merged())
def test_what_is_not_merged(case: str) -> None:
    before = not_merged()[case]
    model, result = merged(before)
    assert not result
    assert model == before
