"""Cutting tensors up and putting them together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from onnx_igpc.torch_bridge.node import Node, Run, numbers
from onnx_igpc.torch_bridge.registry import Inputs, register_operator


@register_operator("Concat", moves_data=True)
def concat(node: Node) -> Run:
    axis = node.get_int("axis", 1)  # required since opset 4; 1 before that
    return lambda *parts: torch.cat(parts, axis)


@register_operator("Split", inputs=Inputs(host=(1,)), moves_data=True)
def split(node: Node) -> Run:
    axis = node.get_int("axis", 0)
    count = node.get_int("num_outputs", len(node.outputs))
    known = node.attributes.get("split") if node.version < 13 else node.constant_list(1)

    def run(x: torch.Tensor, sizes: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        parts = known if sizes is None else sizes.tolist()
        if parts is None:
            parts = -(-x.shape[axis] // count)
        return torch.split(x, parts, axis)

    return run if len(node.outputs) > 1 else lambda *arguments: run(*arguments)[0]


@register_operator("Slice", inputs=Inputs(host=(1, 2, 3, 4)), moves_data=True)
def slice_(node: Node) -> Run:
    if node.version < 10:
        starts, ends = node.get_ints("starts"), node.get_ints("ends")
        axes = node.attributes.get("axes") or range(len(starts))
        return partial(_cut, starts=starts, ends=ends, axes=axes, steps=[1] * len(starts))
    fixed = [node.constant_list(index) for index in range(1, 5)]

    def run(x: torch.Tensor, *bounds: torch.Tensor | None) -> torch.Tensor:
        given = (*bounds, *[None] * (4 - len(bounds)))
        starts, ends, axes, steps = map(numbers, fixed, given)
        return _cut(x, starts, ends, axes or range(len(starts)), steps or [1] * len(starts))

    return run


def _cut(
    x: torch.Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int],
) -> torch.Tensor:
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step > 0:
            index: list[slice] = [slice(None)] * (axis % x.dim()) + [slice(start, end, step)]
            x = x[tuple(index)]
        else:
            # PyTorch slices forward only; Python knows which elements a backward slice takes.
            taken = range(x.shape[axis])[slice(start, end, step)]
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.long, device=x.device))
    return x


@register_operator("DepthToSpace", moves_data=True)
def depth_to_space(node: Node) -> Run:
    block = node.get_int("blocksize")
    column_first = node.get_string("mode", "DCR") == "CRD"

    def run(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        if column_first:
            return torch.pixel_shuffle(x, block)
        parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(n, c // block**2, h * block, w * block)

    return run


@register_operator("SpaceToDepth", moves_data=True)
def space_to_depth(node: Node) -> Run:
    block = node.get_int("blocksize")
    column_first = node.get_string("mode", "DCR") == "CRD"

    def run(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        if column_first:
            return torch.pixel_unshuffle(x, block)
        parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * block**2, h // block, w // block)

    return run


@register_operator("Trilu", since=14, inputs=Inputs(host=(1,)))
def trilu(node: Node) -> Run:
    upper = bool(node.get_int("upper", 1))
    known = node.constant_list(1)

    def run(x: torch.Tensor, diagonal: torch.Tensor | None = None) -> torch.Tensor:
        offset = int(known[0] if known else 0 if diagonal is None else diagonal.item())
        return x.triu(offset) if upper else x.tril(offset)

    return run


@register_operator("ReverseSequence", since=10, inputs=Inputs(structural=(1,)))
def reverse_sequence(node: Node) -> Run:
    time, batch = node.get_int("time_axis", 0), node.get_int("batch_axis", 1)

    def run(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(x.shape[time], device=x.device)
        ends = lengths.unsqueeze(-1)
        index = torch.where(steps < ends, ends - 1 - steps, steps)  # [batch, time]
        if time < batch:
            index = index.T
        shape = [x.shape[axis] if axis in (time, batch) else 1 for axis in range(x.dim())]
        return x.gather(time, index.reshape(shape).expand(x.shape))

    return run
