"""The last layer of a classifier, found from its class scores."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnx_igpc.torch_bridge.training.penultimate import LastLayer, find_last_layer
from tests.helpers import GraphBuilder


def feature(graph: GraphBuilder) -> str:
    """A tensor of [n, 8, 4, 4]."""
    return graph.activation(graph.conv(graph.input("x", ["n", 3, 4, 4]), "stem", 3, 8), "f", "Relu")


def flat(graph: GraphBuilder) -> str:
    return graph.add("Flatten", [graph.add("GlobalAveragePool", [feature(graph)], "p")], "flat")


def gemm(graph: GraphBuilder) -> str:
    names = [graph.initializer("w", graph.random(8, 5)), graph.initializer("b", graph.random(5))]
    return graph.add("Gemm", [flat(graph), *names], "scores")


def matmul_with_bias_and_softmax(graph: GraphBuilder) -> str:
    scores = graph.add("MatMul", [flat(graph), graph.initializer("w", graph.random(8, 5))], "m")
    scores = graph.add("Add", [graph.initializer("b", graph.random(5)), scores], "a")
    return graph.add("Softmax", [scores], "scores")


def weight_behind_a_transpose(graph: GraphBuilder) -> str:
    turned = graph.add("Transpose", [graph.initializer("w", graph.random(5, 8))], "turned")
    return graph.add("MatMul", [flat(graph), turned], "scores")


def pooled_conv(graph: GraphBuilder) -> str:
    pooled = graph.add("GlobalAveragePool", [feature(graph)], "pooled")
    return graph.add("Flatten", [graph.conv(pooled, "head", 8, 5)], "scores")


def conv_in_front_of_the_pooling(graph: GraphBuilder) -> str:
    scores = graph.activation(graph.conv(feature(graph), "head", 8, 5), "r", "Relu")
    return graph.add("GlobalAveragePool", [scores], "scores")


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (gemm, LastLayer("flat", frozenset({"w", "b"}), False)),
        (matmul_with_bias_and_softmax, LastLayer("flat", frozenset({"w", "b"}), False)),
        (weight_behind_a_transpose, LastLayer("flat", frozenset({"w", "turned"}), False)),
    ],
)
def test_of_vectors(build: Callable[[GraphBuilder], str], found: LastLayer) -> None:
    graph = GraphBuilder()
    graph.output(build(graph), ["n", 5])
    assert find_last_layer(graph.model(), "scores") == found


@pytest.mark.parametrize(
    ("build", "reads"), [(pooled_conv, "pooled"), (conv_in_front_of_the_pooling, "f")]
)
def test_of_maps(build: Callable[[GraphBuilder], str], reads: str) -> None:
    graph = GraphBuilder()
    graph.output(build(graph), None)
    layer = find_last_layer(graph.model(), "scores")
    assert layer is not None
    assert (layer.feature, layer.spatial) == (reads, True)
    assert "head_w" in layer.weights


def wide_conv(graph: GraphBuilder) -> str:
    scores = graph.conv(feature(graph), "head", 8, 5, kernel=3)
    return graph.add("GlobalAveragePool", [scores], "scores")


def two_branches(graph: GraphBuilder) -> str:
    x = flat(graph)
    parts = [
        graph.add("MatMul", [x, graph.initializer(name, graph.random(8, 5))], f"{name}_out")
        for name in ("one", "two")
    ]
    return graph.add("Add", parts, "scores")


def computed_weight(graph: GraphBuilder) -> str:
    x = flat(graph)
    return graph.add("MatMul", [x, graph.add("Transpose", [x], "turned")], "scores")


@pytest.mark.parametrize("build", [wide_conv, two_branches, computed_weight])
def test_none(build: Callable[[GraphBuilder], str]) -> None:
    graph = GraphBuilder()
    name = build(graph)
    graph.output(name, None)
    assert find_last_layer(graph.model(check=False), name) is None
