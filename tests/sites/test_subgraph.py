"""Recognising the sites of a file, whatever was done to it since they were written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_igpc.fitting.weights import IgpcWeights, igpc_matrix
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering.catalogue import lower
from onnx_igpc.report.digest import read_digest, write_digest
from onnx_igpc.sites.subgraph import find_subgraphs
from tests.helpers import (
    GraphBuilder,
    WeightForm,
    pointwise_model,
    random_feeds,
    run,
    tensor_named,
)
from tests.lowering_cases import (
    LAYOUTS,
    add_function_with_dead,
    lowered,
    network,
    possible,
    rewritten,
    sites_of,
)
from tests.passes.graphs import copy_of
from tests.passes.test_group_pointwise_scopes import branch, conditional


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_layout_and_weights_are_those_in_the_file(case: str) -> None:
    C, F, ch, scheme = LAYOUTS[case]
    before = network(C, F)
    model = rewritten(before, ch, scheme)
    (site,) = sites_of(model)
    assert site.name == "conv_node"
    assert (site.input, site.output) == ("before", "conv")
    assert site.layout.scheme == scheme
    assert (site.layout.in_channels, site.layout.out_channels) == (C, F)
    np.testing.assert_array_equal(
        site.matrix(), igpc_matrix(site.layout, IgpcWeights(site.k, site.l))
    )
    assert site.bias is not None
    np.testing.assert_array_equal(site.bias, tensor_named(before, "conv_b"))
    assert (site.dtype, site.spatial_rank) == (np.float32, 2)
    assert {*site.nodes} == {n.name for n in model.proto.graph.node if "/igpc/" in n.name}


def test_a_model_without_a_digest_has_no_sites() -> None:
    assert find_subgraphs(OpenModel(pointwise_model(32, 32))) == ([], [])


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_stages_of_the_paper_are_subgraphs_of_their_own(case: str) -> None:
    C, F, ch, scheme = LAYOUTS[case]
    model = rewritten(network(C, F), ch, scheme, form="paper")
    sites = sites_of(model)
    stages = ["conv_node/K", "conv_node/L"] if F <= C else ["conv_node/K"]
    assert [site.name for site in sites] == stages
    assert all(site.layout.l is None for site in sites)
    assert sites[0].layout.in_channels == C
    for label in stages:
        for lowering, able in possible(model).items():
            if label in able:
                lowered(model, lowering, [label])


def test_weights_are_those_after_training() -> None:
    model = rewritten(network(32, 32), 8)
    before = sites_of(model)[0].matrix()
    for tensor in model.proto.graph.initializer:
        if "/igpc/" in tensor.name and tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor) * np.float32(2)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    found = sites_of(model)[0].matrix()
    np.testing.assert_allclose(np.trace(found), _trace(model), rtol=1e-4)
    assert not np.allclose(found, before)
    lowered(model, "dense")


def _trace(model: OpenModel) -> float:
    """The trace of M, by running the site on unit vectors: x -> K x + L P K x + b."""
    (site,) = sites_of(model)
    C = site.layout.in_channels
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model.proto)
    del tapped.graph.node[: next(i for i, n in enumerate(tapped.graph.node) if "/igpc/" in n.name)]
    del tapped.graph.input[:], tapped.graph.output[:]
    for entries, name in ((tapped.graph.input, site.input), (tapped.graph.output, site.output)):
        entries.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [C, C, 1, 1])
        )
    unit = np.eye(C, dtype=np.float32).reshape(C, C, 1, 1)
    made = run(tapped, {site.input: unit})[site.output]
    assert site.bias is not None
    return float(np.trace(made[:, :, 0, 0].T.astype(np.float64)) - site.bias.sum())


def test_sites_with_one_weight_are_lowered_to_one_weight() -> None:
    builder = GraphBuilder()
    builder.input("x", [2, 32, 6, 6])
    builder.conv("x", "a", 32, 32, bias=True)
    builder.activation("a", "act", "Relu")
    builder.add("Conv", ["act", "a_w", "a_b"], "b")
    builder.conv("b", "last", 32, 32, kernel=3, group=32)
    builder.output("last")
    model = rewritten(builder.model(), 8)
    assert [site.name for site in sites_of(model)] == ["a_node", "b_node"]
    after, _ = lowered(model, "dense")
    dense = [node for node in after.proto.graph.node if "/lowered/" in node.name]
    assert [*dense[0].input[1:]] == [*dense[1].input[1:]]


def test_a_gather_that_was_merged_with_another() -> None:
    """V1 orders the output of a layer with more filters than channels; the next one reads before."""
    builder = GraphBuilder()
    builder.input("x", [2, 16, 6, 6])
    builder.conv("x", "a", 16, 36, bias=True)
    builder.conv("a", "b", 36, 20, bias=True)
    builder.conv("b", "last", 20, 20, kernel=3, group=20)
    builder.output("last")
    model = rewritten(builder.model(), 8, "v1", exclude=["b_node"])
    first = sites_of(model)[0]
    model = rewritten(model.proto, 8, "v2", exclude=["a_node"])
    merged = [t.name for t in model.proto.graph.initializer if "merged" in t.name]
    a, b = sites_of(model)
    assert merged, "a Gather read another one's input"
    assert b.input == first.nodes[0] + "_output" or b.input != "a"
    for label, able in possible(model).items():
        for name in sorted(able):
            lowered(model, label, [name])
        if able:
            lowered(model, label, sorted(able))
    assert a.name == "a_node"


@pytest.mark.parametrize("weights", ["initializer", "constant"])
@pytest.mark.parametrize("opset", [11, 17])
def test_sites_in_branches(weights: WeightForm, opset: int) -> None:
    options: dict[str, Any] = {"weights": weights, "opset": opset}
    before = conditional(branch("then", **options), branch("else", **options), opset=opset).model()
    model = rewritten(before, 4, include_heads=True)
    sites = sites_of(model)
    assert len({site.refs[0].scope.path for site in sites}) == 2
    for label, able in possible(model).items():
        after = OpenModel(copy_of(model.proto))
        lower(after, dict.fromkeys(able, label))
        onnx.checker.check_model(after.proto, full_check=True)
        for condition in (True, False):
            feeds = {**random_feeds(before), "condition": np.array(condition)}
            expected = run(model.proto, feeds)["y"]
            np.testing.assert_allclose(run(after.proto, feeds)["y"], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["K.weight", "interleave.indices", "K_output"])
def test_what_nothing_read_before_stays(name: str) -> None:
    """Dead values of another scope, by the names that lowering leaves without a reader."""
    model = rewritten(network(32, 32), 8)
    taken = f"conv_node/igpc/{name}"
    function = add_function_with_dead(model, taken)
    lower(model, {"conv_node": "dense"})
    made = {output for node in model.proto.graph.node for output in node.output}
    stored = {tensor.name for tensor in model.proto.graph.initializer}
    assert taken not in made | stored, "the site's own is gone"
    assert list(model.proto.functions) == [function]


def damaged(model: OpenModel, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(each for each in model.proto.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("remove", "the nodes that the digest names are not in the model"),
        ("rename", "several nodes are named 'conv_node/igpc/K'"),
        ("kernel", "Conv 'conv_node/igpc/L' has strides or padding"),
        ("axis", "Gather 'conv_node/igpc/interleave' does not gather channels"),
        ("run time", "Conv 'conv_node/igpc/L' reads what is computed at run time"),
        ("read", "'conv_node/igpc/K_output' inside it is read by other nodes as well"),
        ("add", "Add 'conv_node/igpc/add' does not add K's output to L's"),
        ("filters", "it makes 32 filters, where the digest says 31"),
        ("index", "Gather 'conv_node/igpc/interleave' gathers more than 32 channels"),
        ("bias", "Conv 'conv_node/igpc/L' has a bias that does not fit its filters"),
        (
            "order",
            "Add 'conv_node/igpc/add' reads 'conv_node/igpc/L_output', which is not made before it",
        ),
        ("one input", "Add 'conv_node/igpc/add' lacks inputs"),
        ("two outputs", "Conv 'conv_node/igpc/K' has 2 outputs"),
        ("rank", "Conv 'conv_node/igpc/K' is not pointwise"),
    ],
)
def test_what_is_not_what_the_digest_says(damage: str, reason: str) -> None:
    model = rewritten(network(32, 32), 8)
    graph = model.proto.graph
    node = {each.name.removeprefix("conv_node/igpc/"): each for each in graph.node}
    if damage == "remove":
        for each in graph.node:
            each.name = each.name.replace("/igpc/", "/other/")
    elif damage == "rename":
        graph.node[0].name = "conv_node/igpc/K"
    elif damage == "kernel":
        node["L"].attribute.add(name="pads", type=onnx.AttributeProto.INTS).ints.extend([1] * 4)
    elif damage == "axis":
        next(a for a in node["interleave"].attribute if a.name == "axis").i = 2
    elif damage == "run time":
        graph.input.append(
            onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [32, 8, 1, 1])
        )
        node["L"].input[1] = "w"
    elif damage == "read":
        graph.output.append(onnx.ValueInfoProto(name="conv_node/igpc/K_output"))
    elif damage == "add":
        node["add"].input[1] = node["L"].output[0]
    elif damage == "index":
        damaged(model, node["interleave"].input[1], lambda indices: indices + 1)
    elif damage == "bias":
        damaged(model, node["L"].input[2], lambda bias: bias[1:])
    elif damage == "order":
        graph.node.insert(0, node["add"])
        del graph.node[[each.name for each in graph.node].index(node["add"].name, 1)]
    elif damage == "one input":
        del node["add"].input[1]
    elif damage == "two outputs":
        node["K"].output.append("another")
    elif damage == "rank":
        damaged(model, node["K"].input[1], lambda weight: weight[:, 0, 0, 0])
    elif damage == "filters":
        digest = read_digest(model.proto)
        assert digest is not None
        digest.sites[0].out_channels = 31
        write_digest(model.proto, digest)
    assert find_subgraphs(model) == ([], [("conv_node", reason)])
