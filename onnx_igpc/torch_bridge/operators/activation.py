"""Activation functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from onnx_igpc.torch_bridge.node import Node, Run
from onnx_igpc.torch_bridge.registry import Inputs, register_operator

SIMPLE: dict[str, Run] = {
    "HardSwish": functional.hardswish,
    "Mish": functional.mish,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Tanh": torch.tanh,
}


def _register_simple(name: str, function: Run) -> None:
    @register_operator(name)
    def build(node: Node) -> Run:
        return function


for _name, _function in SIMPLE.items():
    _register_simple(_name, _function)


@register_operator("LeakyRelu")
def leaky_relu(node: Node) -> Run:
    return partial(functional.leaky_relu, negative_slope=node.get_float("alpha", 0.01))


@register_operator("Elu")
def elu(node: Node) -> Run:
    return partial(functional.elu, alpha=node.get_float("alpha", 1.0))


@register_operator("Celu")
def celu(node: Node) -> Run:
    return partial(functional.celu, alpha=node.get_float("alpha", 1.0))


@register_operator("Selu")
def selu(node: Node) -> Run:
    # Before opset 6 the defaults were rounded differently.
    early = node.version < 6
    alpha = node.get_float("alpha", 1.6732 if early else 1.6732631921768188)
    gamma = node.get_float("gamma", 1.0507 if early else 1.0507009873554805)
    return lambda x: gamma * functional.elu(x, alpha)


@register_operator("Gelu")
def gelu(node: Node) -> Run:
    return partial(functional.gelu, approximate=node.get_string("approximate", "none"))


@register_operator("Swish")
def swish(node: Node) -> Run:
    alpha = node.get_float("alpha", 1.0)
    return functional.silu if alpha == 1 else lambda x: x * torch.sigmoid(alpha * x)


@register_operator("HardSigmoid")
def hard_sigmoid(node: Node) -> Run:
    alpha, beta = node.get_float("alpha", 0.2), node.get_float("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return functional.hardsigmoid
    return lambda x: functional.hardtanh(alpha * x + beta, 0.0, 1.0)


@register_operator("ThresholdedRelu")
def thresholded_relu(node: Node) -> Run:
    return partial(functional.threshold, threshold=node.get_float("alpha", 1.0), value=0.0)


@register_operator("Shrink")
def shrink(node: Node) -> Run:
    bound, bias = node.get_float("lambd", 0.5), node.get_float("bias", 0.0)

    def run(x: torch.Tensor) -> torch.Tensor:
        kept = torch.where(x > bound, x - bias, torch.zeros_like(x))
        return torch.where(x < -bound, x + bias, kept)

    return run


@register_operator("PRelu", inputs=Inputs(weights=(1,)))
def prelu(node: Node) -> Run:
    shape = node.shapes.get(1)
    if shape is None or max(shape, default=1) != _size(shape):
        return _broadcast_prelu
    # A slope per channel: [C, 1, 1] for images of rank 4, or one slope for everything.
    per_channel = len(shape) > 1 and shape[0] == _size(shape)

    def run(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        if slope.numel() == 1 or (per_channel and x.dim() == slope.dim() + 1):
            return functional.prelu(x, slope.reshape(-1).to(x.dtype))
        return _broadcast_prelu(x, slope)

    return run if node.version >= 7 else _legacy_prelu


def _broadcast_prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return torch.where(x >= 0, x, x * slope)


def _legacy_prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return functional.prelu(x, slope.reshape(-1).to(x.dtype))


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _along_axis(node: Node, function: Callable[[torch.Tensor, int], torch.Tensor]) -> Run:
    """Softmax and its kin: over one axis, or before opset 13 over all axes from it on."""
    if node.version >= 13:
        axis = node.get_int("axis", -1)
        return lambda x: function(x, axis)
    first = node.get_int("axis", 1)

    def flattened(x: torch.Tensor) -> torch.Tensor:
        start = first % x.dim() if x.dim() else 0
        if start == x.dim() - 1:
            return function(x, -1)
        return function(x.flatten(start), -1).reshape(x.shape)

    return flattened


@register_operator("Softmax")
def softmax(node: Node) -> Run:
    return _along_axis(node, torch.softmax)


@register_operator("LogSoftmax")
def log_softmax(node: Node) -> Run:
    return _along_axis(node, torch.log_softmax)


@register_operator("Hardmax")
def hardmax(node: Node) -> Run:
    def run(x: torch.Tensor, axis: int) -> torch.Tensor:
        largest = x.argmax(axis, keepdim=True)
        return torch.zeros_like(x).scatter(axis, largest, torch.ones_like(x))

    return _along_axis(node, run)
