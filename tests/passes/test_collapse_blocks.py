"""A residual block replaced by one convolution: what is computed, named, removed and left alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.passes import CollapseBlocks
from onnx_igpc.passes.collapse_blocks import BlockWeights
from onnx_igpc.sites.find import SiteFilter, find_sites
from tests.calibration_graphs import images, residual_model
from tests.helpers import run

CHANNELS = 8


def random_weights(seed: int = 0) -> BlockWeights:
    random = np.random.default_rng(seed)
    return BlockWeights(random.normal(size=(CHANNELS, CHANNELS)), random.normal(size=CHANNELS))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_written_graph_computes_what_the_weights_say(dtype: type[np.generic]) -> None:
    model, weights = residual_model(CHANNELS, dtype=dtype, blocks=1), random_weights()
    done = CollapseBlocks({"sum0_node": weights}).run(opened := OpenModel(model))
    onnx.checker.check_model(opened.proto, full_check=True)
    x = images(4, CHANNELS).astype(dtype)
    expected = np.einsum("fc,nchw->nf", weights.matrix, x.astype(np.float64)) / 36 + weights.bias
    tolerance = 2e-2 if dtype is np.float16 else 1e-4
    np.testing.assert_allclose(
        run(opened.proto, {"x": x})["y"], expected, rtol=tolerance, atol=tolerance
    )
    assert done.changed == ["sum0_node"]
    assert [node.op_type for node in opened.proto.graph.node] == [
        "Conv",
        "GlobalAveragePool",
        "Flatten",
    ]
    (block,) = done.blocks
    assert opened.proto.graph.node[0].name == block.node
    assert {"a0_node", "b0_bn_node", "d0_node", "a0_w", "b0_bn_scale"} <= set(done.removed)


def test_everything_else_stays_as_it_was() -> None:
    model = residual_model(CHANNELS, blocks=3)
    model.graph.node[0].doc_string = "first"
    before = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
    nodes = {node.name: node.SerializeToString() for node in model.graph.node}
    opened = OpenModel(model)
    done = CollapseBlocks({"sum1_node": random_weights()}).run(opened)
    assert done.kept == dict.fromkeys(("sum0_node", "sum2_node"), "no weights were given for it")
    left = {tensor.name: tensor for tensor in opened.proto.graph.initializer}
    for name, values in left.items():
        if name in before:
            assert values.SerializeToString() == before[name]
    assert set(before) - set(left) <= set(done.removed)
    for node in opened.proto.graph.node:
        assert node.name == done.blocks[0].node or node.SerializeToString() == nodes[node.name]
    (made,) = [node for node in opened.proto.graph.node if node.name == done.blocks[0].node]
    assert (list(made.input)[:1], list(made.output)) == (["sum0"], ["sum1"])
    matrix = numpy_helper.to_array(left[made.input[1]])
    np.testing.assert_allclose(
        matrix.reshape(CHANNELS, CHANNELS), random_weights().matrix, rtol=1e-6
    )


def test_it_stands_where_the_addition_stood_and_carries_its_notes() -> None:
    model = residual_model(CHANNELS, blocks=1)
    (added,) = [node for node in model.graph.node if node.op_type == "Add"]
    added.doc_string = "the sum"
    added.metadata_props.add(key="from", value="layer 7")
    CollapseBlocks({"sum0_node": random_weights()}).run(opened := OpenModel(model))
    made = opened.proto.graph.node[0]
    assert made.doc_string == "the sum"
    assert [(entry.key, entry.value) for entry in made.metadata_props] == [("from", "layer 7")]


def test_sites_that_were_found_with_a_filter_decide_what_is_a_block() -> None:
    opened = OpenModel(residual_model(CHANNELS))
    found = find_sites(GraphView(opened), SiteFilter(exclude="a0*"))
    weights = {"sum0_node": random_weights(), "sum1_node": random_weights()}
    assert CollapseBlocks(weights, found).run(opened).changed == ["sum1_node"]
