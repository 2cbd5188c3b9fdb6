"""Normalization layers and Dropout."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch.nn import functional

from onnx_igpc.torch_bridge.node import Node, Run
from onnx_igpc.torch_bridge.registry import Inputs, register_operator


@register_operator(
    "BatchNormalization", inputs=Inputs(weights=(1, 2), statistics=(3, 4)), trains=True
)
def batch_norm(node: Node) -> Run:
    """Trains like ``torch.nn.BatchNorm2d``: statistics move in training, are used otherwise.

    Where a channel has a single value (a batch of one behind global pooling), training uses the
    running statistics as well; PyTorch's layer refuses that.
    """
    if node.version >= 14 and node.get_int("training_mode", 0):
        warnings.warn(
            "the model was exported with BatchNormalization in training mode "
            "(training_mode=1); it is read as inference, with its running statistics",
            stacklevel=2,
        )
    eps = node.get_float("epsilon", 1e-5)
    # ONNX gives the share of the old statistics, PyTorch that of the new ones.
    momentum = 1 - node.get_float("momentum", 0.9)
    per_element = node.version < 9 and not node.get_int("spatial", 1)
    updates = {3, 4}.isdisjoint(node.constants)
    several = sum(map(bool, node.outputs)) > 1

    def run(
        x: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        mean: torch.Tensor,
        var: torch.Tensor,
        training: bool,
    ) -> torch.Tensor:
        # One value per channel has no variance (and would make the running one NaN).
        learns = training and updates and x.numel() > x.shape[1]
        return torch.batch_norm(x, scale, bias, mean, var, learns, momentum, eps, True)

    def flattened(
        x: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        mean: torch.Tensor,
        var: torch.Tensor,
        training: bool,
    ) -> torch.Tensor:
        flat = x.flatten(1)
        scale, bias, mean, var = (t.reshape(-1) for t in (scale, bias, mean, var))
        return run(flat, scale, bias, mean, var, training).reshape(x.shape)

    chosen = flattened if per_element else run
    if not several:
        return chosen
    count = len(node.outputs)

    def with_statistics(*arguments: Any) -> tuple[torch.Tensor, ...]:
        result: torch.Tensor = chosen(*arguments)
        return (result, *(arguments[3], arguments[4]) * 2)[:count]

    return with_statistics


@register_operator("InstanceNormalization", inputs=Inputs(weights=(1, 2)))
def instance_norm(node: Node) -> Run:
    eps = node.get_float("epsilon", 1e-5)
    return lambda x, scale, bias: functional.instance_norm(x, weight=scale, bias=bias, eps=eps)


@register_operator("GroupNormalization", since=18, inputs=Inputs(weights=(1, 2)))
def group_norm(node: Node) -> Run:
    groups, eps = node.get_int("num_groups"), node.get_float("epsilon", 1e-5)

    def run(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        channels = x.shape[1]
        if node.version < 21:  # one scale per group
            scale = scale.repeat_interleave(channels // groups)
            bias = bias.repeat_interleave(channels // groups)
        return functional.group_norm(x, groups, scale, bias, eps)

    return run


@register_operator("LayerNormalization", since=17, inputs=Inputs(weights=(1, 2)))
def layer_norm(node: Node) -> Run:
    axis, eps = node.get_int("axis", -1), node.get_float("epsilon", 1e-5)
    several = sum(map(bool, node.outputs)) > 1

    def run(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        shape = x.shape[axis:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return functional.layer_norm(x, shape, scale, bias, eps)
        result = functional.layer_norm(x, shape, None, None, eps) * scale
        return result if bias is None else result + bias

    def with_statistics(
        x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        dims = list(range(axis % x.dim(), x.dim()))
        mean = x.mean(dims, keepdim=True)
        deviation = ((x - mean).square().mean(dims, keepdim=True) + eps).rsqrt()
        return (run(x, scale, bias), mean, deviation)[: len(node.outputs)]

    return with_statistics if several else run


@register_operator("RMSNormalization", since=23, inputs=Inputs(weights=(1,)))
def rms_norm(node: Node) -> Run:
    axis, eps = node.get_int("axis", -1), node.get_float("epsilon", 1e-5)

    def run(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        dims = list(range(axis % x.dim(), x.dim()))
        return x * (x.square().mean(dims, keepdim=True) + eps).rsqrt() * scale

    return run


@register_operator("MeanVarianceNormalization", since=9)
def mean_variance_norm(node: Node) -> Run:
    axes = node.get_ints("axes", [0, 2, 3])

    def run(x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)

    return run


@register_operator("LpNormalization")
def lp_norm(node: Node) -> Run:
    axis, p = node.get_int("axis", -1), node.get_int("p", 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
        return torch.where(norm == 0, torch.zeros_like(x), x / norm)

    return run


@register_operator("LRN")
def local_response_norm(node: Node) -> Run:
    size = node.get_int("size")
    alpha, beta = node.get_float("alpha", 1e-4), node.get_float("beta", 0.75)
    bias = node.get_float("bias", 1.0)
    before, after = (size - 1) // 2, math.ceil((size - 1) / 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        channels = x.shape[1]
        layout = [0, 0] * (x.dim() - 2) + [before, after]
        squares = functional.pad(x.square(), layout)
        total = sum(squares[:, start : start + channels] for start in range(size))
        return x / (bias + alpha / size * total) ** beta

    return run


@register_operator("Dropout", inputs=Inputs(structural=(1, 2)), trains=True)
def dropout(node: Node) -> Run:
    """Active while the module is training, whatever the flag in the graph says."""
    ratio = node.get_float("ratio", 0.5)
    if node.version >= 12:
        constant = node.constant(1)
        node.constant(2)
        ratio = 0.5 if constant is None else float(constant)
    several = sum(map(bool, node.outputs)) > 1

    def run(
        x: torch.Tensor, *settings: torch.Tensor | bool | None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        training = bool(settings[-1])
        if not several:
            return functional.dropout(x, ratio, training)
        mask = functional.dropout(torch.ones_like(x), ratio, training)
        return x * mask, mask != 0

    return run
