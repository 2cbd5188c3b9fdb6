"""Recognising the sites of a file, whatever was done to it since they were written."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_igpc.fitting import IgpcWeights, igpc_matrix
from onnx_igpc.lowering.subgraph import find_subgraphs
from onnx_igpc.model_io import OpenModel
from tests.helpers import pointwise_model, tensor_named
from tests.lowering_cases import LAYOUTS, network, rewritten, sites_of


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
