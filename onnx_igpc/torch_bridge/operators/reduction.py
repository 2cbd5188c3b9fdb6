"""Reductions over axes, positions of extremes, and running sums."""

from __future__ import annotations

from functools import partial

import torch

from onnx_igpc.torch_bridge.node import Node, Run
from onnx_igpc.torch_bridge.registry import Inputs, register_operator


def _total(x: torch.Tensor, dims: list[int], keep: bool) -> torch.Tensor:
    return x.sum(dims, keepdim=keep, dtype=x.dtype)


def _mean(x: torch.Tensor, dims: list[int], keep: bool) -> torch.Tensor:
    if x.is_floating_point():
        return x.mean(dims, keepdim=keep)
    count = torch.Size([x.shape[d] for d in dims]).numel()
    return torch.div(_total(x, dims, keep), count, rounding_mode="trunc")


def _product(x: torch.Tensor, dims: list[int], keep: bool) -> torch.Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(x: torch.Tensor, dims: list[int], keep: bool, *, largest: bool) -> torch.Tensor:
    if any(x.shape[d] == 0 for d in dims):
        shape = [1 if d in dims else n for d, n in enumerate(x.shape) if keep or d not in dims]
        worst = float("-inf") if largest else float("inf")
        if not x.is_floating_point():
            limits = None if x.dtype == torch.bool else torch.iinfo(x.dtype)
            worst = (not largest) if limits is None else limits.min if largest else limits.max
        return torch.full(shape, worst, dtype=x.dtype, device=x.device)
    if x.dtype == torch.bool:
        return _extreme(x.to(torch.uint8), dims, keep, largest=largest).bool()
    return x.amax(dims, keepdim=keep) if largest else x.amin(dims, keepdim=keep)


def _log_sum(x: torch.Tensor, dims: list[int], keep: bool) -> torch.Tensor:
    return _total(x, dims, keep).log()


def _l2(x: torch.Tensor, dims: list[int], keep: bool) -> torch.Tensor:
    if x.is_floating_point():
        norm: torch.Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=keep)
        return norm
    return _total(x * x, dims, keep).double().sqrt().to(x.dtype)


REDUCTIONS: dict[str, Run] = {
    "ReduceL1": lambda x, dims, keep: _total(x.abs(), dims, keep),
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": lambda x, dims, keep: torch.logsumexp(x, dims, keepdim=keep),
    "ReduceMax": partial(_extreme, largest=True),
    "ReduceMean": _mean,
    "ReduceMin": partial(_extreme, largest=False),
    "ReduceProd": _product,
    "ReduceSum": _total,
    "ReduceSumSquare": lambda x, dims, keep: _total(x * x, dims, keep),
}


def _register_reduction(name: str, function: Run) -> None:
    axes_are_input_since = 13 if name == "ReduceSum" else 18

    @register_operator(name, inputs=Inputs(host=(1,)))
    def build(node: Node) -> Run:
        keep = bool(node.get_int("keepdims", 1))
        empty_is_none = bool(node.get_int("noop_with_empty_axes", 0))
        if node.version < axes_are_input_since:
            known = node.attributes.get("axes")
        else:
            known = node.constant_list(1)

        def run(x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
            chosen = known if axes is None else axes.tolist()
            dims = [axis % x.dim() for axis in chosen or ()]
            if not dims and not empty_is_none:
                dims = list(range(x.dim()))
            if not dims:
                # A reduction over nothing still squares, takes logarithms and so on.
                return function(x.unsqueeze(0), [0], False)  # type: ignore[no-any-return]
            return function(x, dims, keep)  # type: ignore[no-any-return]

        return run


for _name, _function in REDUCTIONS.items():
    _register_reduction(_name, _function)


def _arg(node: Node, find: Run) -> Run:
    axis, keep = node.get_int("axis", 0), bool(node.get_int("keepdims", 1))
    last = bool(node.get_int("select_last_index", 0))

    def run(x: torch.Tensor) -> torch.Tensor:
        if not last:
            first: torch.Tensor = find(x, axis, keepdim=keep)
            return first
        found: torch.Tensor = find(x.flip(axis), axis, keepdim=keep)
        return x.shape[axis] - 1 - found

    return run


@register_operator("ArgMax", inputs=Inputs(structural=(0,)))
def arg_max(node: Node) -> Run:
    return _arg(node, torch.argmax)


@register_operator("ArgMin", inputs=Inputs(structural=(0,)))
def arg_min(node: Node) -> Run:
    return _arg(node, torch.argmin)


def _running(node: Node, function: Run, neutral: int) -> Run:
    exclusive, backward = node.get_int("exclusive", 0), node.get_int("reverse", 0)
    known = node.constant_list(1)

    def run(x: torch.Tensor, axis: torch.Tensor | None = None) -> torch.Tensor:
        dim = int(known[0] if known else axis.item())  # type: ignore[union-attr]
        values = x.flip(dim) if backward else x
        if exclusive:
            first = torch.full_like(values.narrow(dim, 0, 1), neutral)
            values = torch.cat([first, values.narrow(dim, 0, x.shape[dim] - 1)], dim)
        result: torch.Tensor = function(values, dim, dtype=x.dtype)
        return result.flip(dim) if backward else result

    return run


@register_operator("CumSum", since=11, inputs=Inputs(host=(1,)))
def cumulative_sum(node: Node) -> Run:
    return _running(node, torch.cumsum, 0)


@register_operator("CumProd", since=26, inputs=Inputs(host=(1,)))
def cumulative_product(node: Node) -> Run:
    return _running(node, torch.cumprod, 1)
