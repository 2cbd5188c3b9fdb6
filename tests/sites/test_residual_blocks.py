"""Which additions are residual blocks, and what belongs to them."""

from __future__ import annotations

import onnx
import pytest

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import SiteFilter, find_sites
from onnx_igpc.sites.residual_blocks import ResidualBlock, find_blocks
from tests.calibration_graphs import residual_model
from tests.helpers import GraphBuilder


def blocks_of(model: onnx.ModelProto, **chosen: str) -> list[ResidualBlock]:
    return find_blocks(find_sites(GraphView(OpenModel(model)), SiteFilter(**chosen)))


def test_each_block_has_what_it_adds_and_nothing_else() -> None:
    first, second = blocks_of(residual_model(8))
    assert (first.name, first.input, first.output) == ("sum0_node", "x", "sum0")
    assert (second.name, second.input, second.output) == ("sum1_node", "sum0", "sum1")
    assert (first.channels, first.spatial_rank) == (8, 2)
    assert [site.name for site in second.sites] == ["a1_node", "b1_node"]
    assert [ref.name for ref in second.inner] == [
        f"{name}_node" for name in ("a1", "a1_act", "d1", "b1", "b1_bn")
    ]


def test_a_convolution_that_is_not_to_be_rewritten_keeps_its_block() -> None:
    assert [each.name for each in blocks_of(residual_model(8), exclude="a0*")] == ["sum1_node"]
    assert [each.name for each in blocks_of(residual_model(8), include="?1*")] == ["sum1_node"]


def test_what_is_read_elsewhere_as_well_stays() -> None:
    model = residual_model(8)
    model.graph.output.append(onnx.ValueInfoProto(name="d0"))
    assert [each.name for each in blocks_of(model)] == ["sum1_node"]


def built(inner: str) -> onnx.ModelProto:
    """x -> ``base`` -> one addition of the kind that is asked for -> y."""
    graph = GraphBuilder(17)
    graph.input("x", ["batch", 8, 6, 6])
    x = graph.conv("x", "base", 8, 8, kernel=3, pads=[1] * 4)
    if inner == "branch first":
        branch = graph.conv(graph.conv(x, "a", 8, 16), "b", 16, 8)
        y = graph.add("Add", [branch, x], "sum")
    elif inner == "in another":
        y = graph.add("Add", [graph.conv(x, "a", 8, 8), x], "inside")
        y = graph.add("Add", [x, graph.conv(y, "b", 8, 8)], "sum")
    elif inner == "nothing pointwise":
        y = graph.add("Add", [graph.conv(x, "a", 8, 8, kernel=3, pads=[1] * 4), x], "sum")
    elif inner == "one position":
        pooled = graph.add("GlobalAveragePool", [x], "pooled")
        y = graph.add("Add", [x, graph.conv(pooled, "a", 8, 8)], "sum")
    elif inner == "something else, too":
        early = graph.add("Mul", [graph.conv(x, "a", 8, 8), "x"], "early")
        y = graph.add("Add", [x, early], "sum")
    else:
        y = graph.add("Add", [x, graph.initializer("c", graph.random(8, 1, 1))], "sum")
    graph.add("Relu", [y], "y")
    graph.output("y")
    return graph.model()


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("branch first", ["sum_node"]),
        ("in another", ["inside_node"]),
        ("nothing pointwise", []),
        ("one position", []),
        ("something else, too", []),
        ("a constant", []),
    ],
)
def test_what_is_a_block(inner: str, expected: list[str]) -> None:
    assert [each.name for each in blocks_of(built(inner))] == expected
