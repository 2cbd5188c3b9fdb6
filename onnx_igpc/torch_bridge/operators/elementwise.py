"""Arithmetic on elements: one operand, two operands with broadcasting, any number of operands."""

from __future__ import annotations

from functools import reduce

import torch

from onnx_igpc.torch_bridge.node import Node, Run
from onnx_igpc.torch_bridge.registry import Inputs, register_operator

UNARY: dict[str, Run] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}


def _register_unary(name: str, function: Run) -> None:
    @register_operator(name)
    def build(node: Node) -> Run:
        return function


for _name, _function in UNARY.items():
    _register_unary(_name, _function)


def divide(a: torch.Tensor, b: torch.Tensor | float) -> torch.Tensor:
    """ONNX division: integers are divided towards zero."""
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def add_legacy_axis(node: Node, function: Run) -> Run:
    """Broadcasting before opset 7: ``b`` starts at dimension ``axis`` of ``a``."""
    axis = node.attributes.get("axis")
    if node.version >= 7 or axis is None:
        return function

    def aligned(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        behind = a.dim() - axis % a.dim() - b.dim()
        result: torch.Tensor = function(a, b.reshape(b.shape + (1,) * behind))
        return result

    return aligned


def _binary(node: Node, function: Run) -> Run:
    run = add_legacy_axis(node, function)
    if run is not function:
        return run
    for index in (0, 1):
        number = single_number(node, index)
        if number is not None:
            return _with_number(function, number, index)
    return function


def single_number(node: Node, index: int) -> tuple[float, int] | None:
    """The value and rank of a constant input of one element; PyTorch is faster with numbers."""
    other = node.constants.get(1 - index)
    constant = node.constants.get(index)
    if constant is None or other is not None or constant.numel() != 1 or constant.dim() > 1:
        return None
    node.constant(index)
    return constant.item(), constant.dim()


def _with_number(function: Run, number: tuple[float, int], index: int) -> Run:
    value, rank = number

    if index == 1:

        def right(a: torch.Tensor, _: None) -> torch.Tensor:
            result: torch.Tensor = function(a, value)
            return result if a.dim() >= rank else result.reshape(1)

        return right

    def left(_: None, b: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = function(value, b)
        return result if b.dim() >= rank else result.reshape(1)

    return left


@register_operator("Add")
def add(node: Node) -> Run:
    return _binary(node, lambda a, b: a + b)


@register_operator("Sub")
def subtract(node: Node) -> Run:
    return _binary(node, lambda a, b: a - b)


@register_operator("Mul")
def multiply(node: Node) -> Run:
    return _binary(node, lambda a, b: a * b)


@register_operator("Div")
def div(node: Node) -> Run:
    if node.constants.get(0) is not None:
        return add_legacy_axis(node, divide)
    return _binary(node, divide)


@register_operator("Pow", inputs=Inputs(structural=(1,)))
def power(node: Node) -> Run:
    def raise_to(base: torch.Tensor, exponent: torch.Tensor | float) -> torch.Tensor:
        # PyTorch promotes an integer base to a float exponent; ONNX keeps the type of the base.
        return torch.pow(base, exponent).to(base.dtype)

    run = add_legacy_axis(node, raise_to)
    number = single_number(node, 1) if run is raise_to else None
    return _with_number(raise_to, number, 1) if number else run


@register_operator("Mod", inputs=Inputs(structural=(1,)))
def modulo(node: Node) -> Run:
    return torch.fmod if node.get_int("fmod", 0) else torch.remainder


def _register_variadic(name: str, function: Run, *, mean: bool = False) -> None:
    @register_operator(name)
    def build(node: Node) -> Run:
        def run(*values: torch.Tensor) -> torch.Tensor:
            total: torch.Tensor = reduce(function, values)
            return total / len(values) if mean else total

        return run


_register_variadic("Sum", torch.add)
_register_variadic("Mean", torch.add, mean=True)
_register_variadic("Max", torch.maximum)
_register_variadic("Min", torch.minimum)


@register_operator("Clip", inputs=Inputs(structural=(1, 2)))
def clip(node: Node) -> Run:
    if node.version < 11:
        low = node.attributes.get("min")
        high = node.attributes.get("max")
        return _clip_between(low, high, floating=True)
    fixed = all(not node.has(i) or i in node.constants for i in (1, 2))
    if not fixed:
        return lambda x, low=None, high=None: torch.clamp(x, min=low, max=high)
    low_tensor, high_tensor = node.constant(1), node.constant(2)
    bounds = [b for b in (low_tensor, high_tensor) if b is not None]
    return _clip_between(
        None if low_tensor is None else low_tensor.item(),
        None if high_tensor is None else high_tensor.item(),
        floating=all(b.is_floating_point() for b in bounds),
    )


def _clip_between(low: float | None, high: float | None, *, floating: bool) -> Run:
    if low is None and high is None:
        return lambda x, *_: x
    if floating and low is not None and high is not None and low < high:
        # Its backward pass is one kernel; that of clamp is several.
        return lambda x, *_: torch.nn.functional.hardtanh(x, low, high)
    if floating and low == 0 and high is None:
        return lambda x, *_: torch.relu(x)
    return lambda x, *_: torch.clamp(x, min=low, max=high)
