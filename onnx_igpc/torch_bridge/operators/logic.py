"""Comparisons, boolean and bitwise operators, and selection by a condition."""

from __future__ import annotations

import torch

from onnx_igpc.torch_bridge.node import Node, Run
from onnx_igpc.torch_bridge.operators.elementwise import add_legacy_axis
from onnx_igpc.torch_bridge.registry import Inputs, register_operator

BINARY: dict[str, Run] = {
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}


def _register_binary(name: str, function: Run) -> None:
    # What is only compared has no gradient, so nothing in front of a comparison is trained.
    @register_operator(name, inputs=Inputs(structural=(0, 1)))
    def build(node: Node) -> Run:
        return add_legacy_axis(node, function)


for _name, _function in BINARY.items():
    _register_binary(_name, _function)


@register_operator("Not")
def logical_not(node: Node) -> Run:
    return torch.logical_not


@register_operator("BitwiseNot")
def bitwise_not(node: Node) -> Run:
    return torch.bitwise_not


@register_operator("BitShift")
def bit_shift(node: Node) -> Run:
    left = node.get_string("direction") == "LEFT"

    def run(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return x << by if left else x >> by

    return run


@register_operator("IsNaN", inputs=Inputs(structural=(0,)))
def is_nan(node: Node) -> Run:
    return torch.isnan


@register_operator("IsInf", inputs=Inputs(structural=(0,)))
def is_inf(node: Node) -> Run:
    negative, positive = node.get_int("detect_negative", 1), node.get_int("detect_positive", 1)

    def run(x: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(x, dtype=torch.bool)
        if negative:
            found = found | torch.isneginf(x)
        if positive:
            found = found | torch.isposinf(x)
        return found

    return run


@register_operator("Where", inputs=Inputs(structural=(0,)))
def where(node: Node) -> Run:
    return torch.where
