"""Matrix products."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional

from onnx_igpc.torch_bridge.node import Node, Run
from onnx_igpc.torch_bridge.registry import Inputs, register_operator


@register_operator("MatMul", inputs=Inputs(weights=(1,)))
def matmul(node: Node) -> Run:
    return torch.matmul


@register_operator("Gemm", inputs=Inputs(weights=(1, 2)))
def gemm(node: Node) -> Run:
    alpha, beta = node.get_float("alpha", 1.0), node.get_float("beta", 1.0)
    flip_a, flip_b = node.get_int("transA", 0), node.get_int("transB", 0)
    if alpha == 1 and beta == 1 and not flip_a and flip_b and len(node.shapes.get(2, (1,))) == 1:
        return functional.linear

    def run(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        product = (a.T if flip_a else a) @ (b.T if flip_b else b)
        if alpha != 1:
            product = product * alpha
        if c is None:
            return product
        return product + (c if beta == 1 else c * beta)

    return run


@register_operator("Einsum")
def einsum(node: Node) -> Run:
    return partial(torch.einsum, node.get_string("equation"))
