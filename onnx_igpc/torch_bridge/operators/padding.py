"""Pad and CenterCropPad."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from onnx_igpc.torch_bridge.node import Node, Run, numbers
from onnx_igpc.torch_bridge.registry import Inputs, register_operator


@register_operator("Pad", inputs=Inputs(host=(1, 2, 3)))
def pad(node: Node) -> Run:
    mode = node.get_string("mode", "constant")
    if node.version < 11:
        fixed = node.get_ints("pads" if node.version > 1 else "paddings")
        value = node.get_float("value", 0.0)
        return lambda x: apply_pads(x, fixed, range(x.dim()), mode, value)
    known = node.constant_list(1)
    number = node.constant_list(2)
    axes = node.constant_list(3)

    def run(
        x: torch.Tensor,
        pads: torch.Tensor | None,
        value: torch.Tensor | None = None,
        axis_list: torch.Tensor | None = None,
    ) -> torch.Tensor:
        amounts = numbers(known, pads)
        fill = number[0] if number else 0 if value is None else value.item()
        chosen = axes if axis_list is None else axis_list.tolist()
        return apply_pads(x, amounts, range(x.dim()) if chosen is None else chosen, mode, fill)

    return run


def apply_pads(
    x: torch.Tensor, pads: Sequence[int], axes: Sequence[int], mode: str, value: float
) -> torch.Tensor:
    """Pad ``axes`` of ``x`` by ``pads`` (all fronts, then all ends; negative numbers crop)."""
    front = [0] * x.dim()
    behind = [0] * x.dim()
    for position, axis in enumerate(axes):
        front[axis] = pads[position]
        behind[axis] = pads[position + len(axes)]
    if mode == "constant":
        padded = [i for i in range(x.dim()) if front[i] or behind[i]]
        first = padded[0] if padded else x.dim()
        layout = [n for i in range(x.dim() - 1, first - 1, -1) for n in (front[i], behind[i])]
        return functional.pad(x, layout, value=value) if layout else x
    for axis in range(x.dim()):
        x = _crop(x, axis, front[axis], behind[axis])
        x = _mirror(x, axis, max(front[axis], 0), max(behind[axis], 0), mode)
    return x


def _crop(x: torch.Tensor, axis: int, front: int, behind: int) -> torch.Tensor:
    start, cut = max(-front, 0), max(-front, 0) + max(-behind, 0)
    return x.narrow(axis, start, x.shape[axis] - cut) if cut else x


def _mirror(x: torch.Tensor, axis: int, front: int, behind: int, mode: str) -> torch.Tensor:
    """One axis padded with its own elements: "reflect", "edge" or "wrap"."""
    if not front and not behind:
        return x
    size = x.shape[axis]
    index = torch.arange(-front, size + behind, device=x.device)
    if mode == "edge":
        index = index.clamp(0, size - 1)
    elif mode == "wrap":
        index = index % size
    else:
        period = max(2 * (size - 1), 1)
        index = index % period
        index = torch.minimum(index, period - index) if size > 1 else index * 0
    return x.index_select(axis, index)


@register_operator("CenterCropPad", since=18, inputs=Inputs(host=(1,)))
def center_crop_pad(node: Node) -> Run:
    axes = node.attributes.get("axes")
    known = node.constant_list(1)

    def run(x: torch.Tensor, shape: torch.Tensor | None = None) -> torch.Tensor:
        sizes = numbers(known, shape)
        chosen = [a % x.dim() for a in axes] if axes else list(range(x.dim()))
        front, behind = [0] * x.dim(), [0] * x.dim()
        for axis, size in zip(chosen, sizes, strict=True):
            missing = size - x.shape[axis]
            # Cropping and padding both leave the odd element at the end.
            front[axis] = missing // 2 if missing > 0 else -(-missing // 2)
            behind[axis] = missing - front[axis]
        return apply_pads(x, front + behind, range(x.dim()), "constant", 0)

    return run
