"""Operators that look at shapes, change them, or make tensors from them; and casts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from onnx import TensorProto

from onnx_igpc.errors import ModelError
from onnx_igpc.torch_bridge.node import Node, Run, numbers
from onnx_igpc.torch_bridge.registry import Inputs, register_operator
from onnx_igpc.torch_bridge.tensors import COMPUTE_TYPES, to_tensor


@register_operator("Shape", gives_host=True)
def shape(node: Node) -> Run:
    start, end = node.get_int("start", 0), node.attributes.get("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


@register_operator("Size", gives_host=True)
def size(node: Node) -> Run:
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


@register_operator("Identity", moves_data=True)
def identity(node: Node) -> Run:
    return lambda x: x


@register_operator("Reshape", inputs=Inputs(host=(1,)), moves_data=True)
def reshape(node: Node) -> Run:
    keep_zero = bool(node.get_int("allowzero", 0))
    known = node.get_ints("shape") if node.version < 5 else node.constant_list(1)

    def run(x: torch.Tensor, target: torch.Tensor | None = None) -> torch.Tensor:
        sizes: Sequence[int] = known if target is None and known is not None else target.tolist()  # type: ignore[union-attr]
        if not keep_zero and 0 in sizes:
            sizes = [n or x.shape[i] for i, n in enumerate(sizes)]
        return x.reshape(sizes)

    return run


@register_operator("Flatten", moves_data=True)
def flatten(node: Node) -> Run:
    axis = node.get_int("axis", 1)

    def run(x: torch.Tensor) -> torch.Tensor:
        if axis == 1 and x.dim() > 1:
            return x.flatten(1)
        split = axis % x.dim() if axis < 0 else axis
        return x.reshape(torch.Size(x.shape[:split]).numel(), -1)

    return run


def _axes(node: Node, input_since: int) -> list[int] | None:
    """The axes of Squeeze and Unsqueeze: an attribute once, now an input."""
    if node.version < input_since:
        return node.attributes.get("axes")
    return node.constant_list(1)


@register_operator("Squeeze", inputs=Inputs(host=(1,)), moves_data=True)
def squeeze(node: Node) -> Run:
    known = _axes(node, 13)

    def run(x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
        chosen = known if axes is None else axes.tolist()
        return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))

    return run


@register_operator("Unsqueeze", inputs=Inputs(host=(1,)), moves_data=True)
def unsqueeze(node: Node) -> Run:
    known = _axes(node, 13)

    def run(x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
        chosen = numbers(known, axes)
        rank = x.dim() + len(chosen)
        for axis in sorted(a % rank for a in chosen):
            x = x.unsqueeze(axis)
        return x

    return run


@register_operator("Transpose", moves_data=True)
def transpose(node: Node) -> Run:
    order = node.attributes.get("perm")
    if order is None:
        return lambda x: x.permute(*reversed(range(x.dim())))
    return lambda x: x.permute(order)


@register_operator("Expand", since=8, inputs=Inputs(host=(1,)), moves_data=True)
def expand(node: Node) -> Run:
    known = node.constant_list(1)

    def run(x: torch.Tensor, target: torch.Tensor | None = None) -> torch.Tensor:
        sizes = numbers(known, target)
        # Both sides broadcast: a 1 in the target keeps the size of the input.
        return x.expand(torch.broadcast_shapes(x.shape, tuple(sizes)))  # type: ignore[no-untyped-call]

    return run


@register_operator("Tile", since=6, inputs=Inputs(host=(1,)), moves_data=True)
def tile(node: Node) -> Run:
    known = node.constant_list(1)

    def run(x: torch.Tensor, repeats: torch.Tensor | None = None) -> torch.Tensor:
        counts = numbers(known, repeats)
        return x.repeat(counts) if counts else x

    return run


@register_operator("Cast", moves_data=True)
def cast(node: Node) -> Run:
    target = node.attributes["to"]
    onnx_type = TensorProto.DataType.Value(target.decode()) if node.version < 6 else target
    if onnx_type not in COMPUTE_TYPES:
        name = TensorProto.DataType.Name(onnx_type)
        raise node.refuse(f"the PyTorch bridge cannot hold values of type {name}")
    dtype = COMPUTE_TYPES[onnx_type]
    return lambda x: x.to(dtype)


@register_operator("CastLike", since=15, inputs=Inputs(structural=(1,)), moves_data=True)
def cast_like(node: Node) -> Run:
    return lambda x, like: x.to(like.dtype)


@register_operator("ConstantOfShape", since=9, inputs=Inputs(host=(0,)), gives_host=True)
def constant_of_shape(node: Node) -> Run:
    value = node.attributes.get("value")
    fill = torch.zeros(1) if value is None else to_tensor(value)
    number, dtype = fill.item(), fill.dtype
    known = node.constant_list(0)

    def run(target: torch.Tensor | None) -> torch.Tensor:
        sizes = numbers(known, target)
        return torch.full(sizes, number, dtype=dtype)

    return run


@register_operator("Range", since=11, inputs=Inputs(host=(0, 1, 2)), gives_host=True)
def arange(node: Node) -> Run:
    def run(start: torch.Tensor, limit: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        dtype = start.dtype
        return torch.arange(start.item(), limit.item(), delta.item(), dtype=dtype)

    return run


@register_operator("EyeLike", since=9)
def eye_like(node: Node) -> Run:
    offset, onnx_type = node.get_int("k", 0), node.attributes.get("dtype")
    if onnx_type is not None and onnx_type not in COMPUTE_TYPES:
        raise ModelError(f"EyeLike node {node.name!r} makes a type PyTorch cannot hold")
    dtype = None if onnx_type is None else COMPUTE_TYPES[onnx_type]

    def run(x: torch.Tensor) -> torch.Tensor:
        ones = torch.ones(x.shape, dtype=dtype or x.dtype, device=x.device)
        return ones.triu(offset).tril(offset)

    return run


@register_operator("OneHot", since=9, inputs=Inputs(structural=(0, 2), host=(1,)))
def one_hot(node: Node) -> Run:
    axis = node.get_int("axis", -1)
    known = node.constant_list(1)

    def run(
        indices: torch.Tensor, depth: torch.Tensor | None, values: torch.Tensor
    ) -> torch.Tensor:
        classes = int(known[0] if known else depth.reshape(-1)[0].item())  # type: ignore[union-attr]
        position = axis % (indices.dim() + 1)
        wanted = indices.long()
        inside = (wanted >= -classes) & (wanted < classes)
        counted = torch.arange(classes, device=indices.device)
        shape = [1] * (indices.dim() + 1)
        shape[position] = classes
        hit = (wanted % classes).unsqueeze(position) == counted.reshape(shape)
        return torch.where(hit & inside.unsqueeze(position), values[1], values[0])

    return run
