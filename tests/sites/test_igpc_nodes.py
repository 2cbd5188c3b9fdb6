"""Details of the written nodes: constants stored once, biases in their own type and order."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_igpc.layout.permutations import invert_permutation
from tests.helpers import GraphBuilder, node_named, pointwise_model, tensor_named
from tests.passes.graphs import group


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_bias_is_put_into_the_order_of_k(dtype: type[np.generic]) -> None:
    """V1 without L interleaves the output, and K adds the bias before that."""
    before = pointwise_model(16, 32, dtype=dtype)
    grouped = group(before, 8, "v1")
    order = grouped.layouts["conv_node"].output_interleave
    assert order is not None
    written = tensor_named(grouped.model, "conv_node/igpc/K.bias")
    expected = tensor_named(before, "conv_b")[list(invert_permutation(order))]
    assert written.dtype == dtype
    np.testing.assert_array_equal(written, expected)


def test_a_bias_is_split_among_the_paths() -> None:
    before = pointwise_model(17, 40)
    model = group(before, 8).model
    parts = [tensor_named(model, f"conv_node/igpc/K{index}.bias") for index in (1, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), tensor_named(before, "conv_b"))


def test_kernels_have_the_dimensions_of_the_dense_one() -> None:
    for dims in (1, 2, 3):
        model = group(pointwise_model(40, 24, dims=dims), 8).model
        kernels = [t for t in model.graph.initializer if t.name.endswith(".weight")]
        assert len(kernels) == 3
        assert all(list(tensor.dims[2:]) == [1] * dims for tensor in kernels)
        for node in model.graph.node:
            if "/igpc/" in node.name and node.op_type == "Conv":
                shape = next(a.ints for a in node.attribute if a.name == "kernel_shape")
                assert list(shape) == [1] * dims


def test_equal_indices_are_stored_once_for_layers_that_share() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 35, 5, 5])
    builder.conv("x", "a", 35, 35)
    builder.add("Conv", ["a", "a_w"], "b")
    builder.add("Relu", ["b"], "y")
    builder.output("y")
    model = group(builder.model()).model
    stored = [
        tuple(numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.name.endswith(".indices")
    ]
    assert len(stored) == len(set(stored)) == len(group(one_layer()).nodes("Gather"))
    gathers = [n for n in model.graph.node if n.op_type == "Gather"]
    assert len(gathers) == 2 * len(stored)


def one_layer() -> onnx.ModelProto:
    builder = GraphBuilder()
    builder.input("x", [1, 35, 5, 5])
    builder.conv("x", "a", 35, 35)
    builder.add("Relu", ["a"], "y")
    builder.output("y")
    return builder.model()


def test_strides_go_to_k_alone() -> None:
    model = group(pointwise_model(32, 32, stride=2)).model
    strides = {
        label: [
            list(a.ints)
            for a in node_named(model, f"conv_node/igpc/{label}").attribute
            if a.name == "strides"
        ]
        for label in ("K", "L")
    }
    assert strides == {"K": [[2, 2]], "L": []}
