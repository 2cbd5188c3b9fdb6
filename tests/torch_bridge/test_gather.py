"""Gather with a constant index takes a way of its own: values, gradients and their memory format."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnx_igpc.torch_bridge import to_torch
from onnx_igpc.torch_bridge.reordering import take
from tests.helpers import GraphBuilder

CHANNELS = 6


def gathering(index: list[int], axis: int) -> onnx.ModelProto:
    graph = GraphBuilder()
    shape: list[int | str | None] = ["n", CHANNELS, CHANNELS, CHANNELS]
    x = graph.input("x", shape)
    order = graph.initializer("order", np.array(index, np.int64))
    shape[axis] = len(index)
    graph.output(graph.add("Gather", [x, order], "y", axis=axis), shape)
    return graph.model()


def gradient(index: list[int], axis: int, weights: torch.Tensor) -> torch.Tensor:
    """Of the sum of ``weights * y``, as NumPy adds it up."""
    found = np.zeros((2, CHANNELS, CHANNELS, CHANNELS), np.float32)
    # The axis first, in both: add.at adds where an index is repeated.
    np.add.at(np.moveaxis(found, axis, 0), index, np.moveaxis(weights.numpy(), axis, 0))
    return torch.from_numpy(found)


@given(
    index=st.permutations(range(CHANNELS)) | st.lists(st.integers(0, CHANNELS - 1), min_size=1),
    axis=st.sampled_from((1, 2, 3)),
    layout=st.sampled_from((torch.contiguous_format, torch.channels_last)),
)
def test_values_and_gradients(index: list[int], axis: int, layout: torch.memory_format) -> None:
    module = to_torch(gathering(index, axis))
    x = torch.randn(2, CHANNELS, CHANNELS, CHANNELS).contiguous(memory_format=layout)
    y = module(x.requires_grad_())
    np.testing.assert_array_equal(y.detach().numpy(), np.take(x.detach().numpy(), index, axis))
    weights = torch.randn(y.shape)
    (y * weights).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, gradient(index, axis, weights))


@pytest.mark.parametrize("index", [[3, 0, 5, 1, 4, 2], [2, 0], [1, 1, 4, 0, 5, 2, 3]])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channels_stay_where_they_are_in_memory(
    index: list[int], layout: torch.memory_format
) -> None:
    """Tensors of two formats in one operation would make a training step slow."""
    x = torch.randn(2, CHANNELS, 4, 4).contiguous(memory_format=layout).requires_grad_()
    y = take(x, torch.tensor(index), 1)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    for tensor in (y, gradient):
        assert tensor.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("index", [[3, 0, 5, 1, 4, 2], [1, 0], [1, 1, 4, 0, 5, 2, 3]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_of_16_bits(index: list[int], dtype: torch.dtype) -> None:
    x = torch.randn(2, CHANNELS, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    y = take(x.requires_grad_(), torch.tensor(index), 1, sorted(index) == list(range(len(index))))
    assert torch.equal(y, x[:, index])
    weights = torch.arange(y.numel()).reshape(y.shape).to(dtype)
    (gradient,) = torch.autograd.grad(y, x, weights)
    expected = torch.zeros_like(x).index_add(1, torch.tensor(index), weights)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("index", [[3, 0, 5, 1, 4, 2], [2, 0], [1, 1, 4]])
def test_gradients_of_gradients(index: list[int]) -> None:
    module = to_torch(gathering(index, 1)).double()
    x = torch.randn(1, CHANNELS, CHANNELS, CHANNELS, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradgradcheck(lambda each: module(each) ** 2, x)


def test_it_can_be_compiled_in_one_piece() -> None:
    module = to_torch(gathering([3, 0, 5, 1, 4, 2], 1))
    x = torch.randn(1, CHANNELS, CHANNELS, CHANNELS)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
