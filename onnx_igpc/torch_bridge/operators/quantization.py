"""Quantize and dequantize, per tensor, per axis and per block.

Integer weights stay what they are: only float tensors are trained.
"""

from __future__ import annotations

import torch
from onnx import TensorProto

from onnx_igpc.torch_bridge.node import Node, Run
from onnx_igpc.torch_bridge.registry import Inputs, register_operator
from onnx_igpc.torch_bridge.tensors import COMPUTE_TYPES

_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
}
_RANGE_OF = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int32: (0, 65535),
             torch.int16: (-32768, 32767)}  # fmt: skip


def _spread(values: torch.Tensor, x: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """Scales or zero points in a shape that broadcasts against ``x``."""
    if values.dim() == 0 or (values.numel() == 1 and values.dim() == 1):
        return values.reshape(())
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


@register_operator("QuantizeLinear", since=10, inputs=Inputs(structural=(1, 2)))
def quantize(node: Node) -> Run:
    axis, block = node.get_int("axis", 1), node.get_int("block_size", 0)
    declared = node.get_int("output_dtype", 0)
    if declared and declared not in _RANGES:
        name = TensorProto.DataType.Name(declared)
        raise node.refuse(f"the PyTorch bridge cannot quantize to {name}")

    def run(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        dtype = COMPUTE_TYPES[declared] if declared else torch.uint8
        if zero is not None:
            dtype = zero.dtype
        low, high = _RANGES[declared] if declared else _RANGE_OF[dtype]
        levels = torch.round(x / _spread(scale, x, axis, block))
        if zero is not None:
            levels = levels + _spread(zero, x, axis, block)
        return levels.clamp(low, high).to(dtype)

    return run


@register_operator("DequantizeLinear", since=10, inputs=Inputs(structural=(1, 2)))
def dequantize(node: Node) -> Run:
    axis, block = node.get_int("axis", 1), node.get_int("block_size", 0)

    def run(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        levels = x.to(scale.dtype)
        if zero is not None:
            levels = levels - _spread(zero, x, axis, block).to(scale.dtype)
        return levels * _spread(scale, x, axis, block)

    return run


@register_operator("DynamicQuantizeLinear", since=11, inputs=Inputs(structural=(0,)))
def dynamic_quantize(node: Node) -> Run:
    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
        scale = (high - low) / 255
        zero = torch.round((-low / scale).clamp(0, 255))
        levels = (torch.round(x / scale) + zero).clamp(0, 255)
        return levels.to(torch.uint8), scale, zero.to(torch.uint8)

    return run
