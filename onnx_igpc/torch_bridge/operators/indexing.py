"""Reading and writing elements by index."""

from __future__ import annotations

from functools import partial

import torch

from onnx_igpc.torch_bridge.node import Node, Run
from onnx_igpc.torch_bridge.registry import Inputs, register_operator
from onnx_igpc.torch_bridge.reordering import take


@register_operator("Gather", inputs=Inputs(structural=(1,)), moves_data=True)
def gather(node: Node) -> Run:
    axis = node.get_int("axis", 0)
    known = node.constants.get(1)
    if known is not None and known.dim() == 0:
        node.constant(1)
        return partial(_select, axis=axis, index=int(known))
    # One index_select; a constant index without negative numbers needs no arithmetic first.
    if known is not None and known.dim() == 1 and bool((known >= 0).all()):
        permutes = bool((known.sort().values == torch.arange(len(known))).all())
        return partial(take, axis=axis, permutes=permutes)

    def run(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        position = axis % x.dim()
        wrapped = torch.where(index < 0, index + x.shape[position], index)
        taken = x.index_select(position, wrapped.reshape(-1))
        return taken.reshape(*x.shape[:position], *index.shape, *x.shape[position + 1 :])

    return run


def _select(x: torch.Tensor, _: None = None, *, axis: int, index: int) -> torch.Tensor:
    return x.select(axis, index)


@register_operator("GatherElements", since=11, inputs=Inputs(structural=(1,)), moves_data=True)
def gather_elements(node: Node) -> Run:
    axis = node.get_int("axis", 0)

    def run(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return x.gather(axis, _wrap(index, x.shape[axis]))

    return run


@register_operator("GatherND", since=11, inputs=Inputs(structural=(1,)), moves_data=True)
def gather_nd(node: Node) -> Run:
    batch = node.get_int("batch_dims", 0)

    def run(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        depth = index.shape[-1]
        outer = torch.Size(x.shape[:batch]).numel()
        data = x.reshape(outer, *x.shape[batch:])
        rows = index.reshape(outer, -1, depth)
        first = torch.arange(outer, device=x.device).unsqueeze(1).expand(rows.shape[:2])
        columns = [_wrap(rows[..., i], data.shape[1 + i]) for i in range(depth)]
        return data[(first, *columns)].reshape(*index.shape[:-1], *x.shape[batch + depth :])

    return run


def _wrap(index: torch.Tensor, size: int) -> torch.Tensor:
    """Negative indices count from the end."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@register_operator("Scatter", since=9, inputs=Inputs(structural=(1,)))
@register_operator("ScatterElements", since=11, inputs=Inputs(structural=(1,)))
def scatter_elements(node: Node) -> Run:
    axis, reduction = node.get_int("axis", 0), node.get_string("reduction", "none")

    def run(x: torch.Tensor, index: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        index, updates = _wrap(index, x.shape[axis]), updates.to(x.dtype)
        if reduction == "none":
            return x.scatter(axis, index, updates)
        return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])

    return run


@register_operator("ScatterND", since=11, inputs=Inputs(structural=(1,)))
def scatter_nd(node: Node) -> Run:
    reduction = node.get_string("reduction", "none")

    def run(x: torch.Tensor, index: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        depth = index.shape[-1]
        inner = torch.Size(x.shape[depth:]).numel()
        row = torch.zeros(index.shape[:-1], dtype=torch.long, device=x.device)
        for i in range(depth):
            row = row * x.shape[i] + _wrap(index[..., i], x.shape[i])
        data = x.reshape(-1, inner)
        rows = row.reshape(-1, 1).expand(-1, inner)
        values = updates.to(x.dtype).reshape(-1, inner)
        if reduction == "none":
            result = data.scatter(0, rows, values)
        else:
            result = data.scatter_reduce(0, rows, values, _REDUCTIONS[reduction])
        return result.reshape(x.shape)

    return run


@register_operator("Compress", since=9, inputs=Inputs(structural=(1,)))
def compress(node: Node) -> Run:
    axis = node.attributes.get("axis")

    def run(x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        kept = condition.nonzero().reshape(-1)
        return x.reshape(-1)[kept] if axis is None else x.index_select(axis, kept)

    return run


@register_operator("NonZero", since=9, inputs=Inputs(structural=(0,)))
def non_zero(node: Node) -> Run:
    return lambda x: x.nonzero().T


@register_operator("TopK", inputs=Inputs(host=(1,)))
def top_k(node: Node) -> Run:
    axis = node.get_int("axis", -1)
    largest, order = bool(node.get_int("largest", 1)), bool(node.get_int("sorted", 1))
    known = [node.get_int("k")] if node.version < 10 else node.constant_list(1)

    def run(x: torch.Tensor, k: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        count = int(known[0] if known else k.item())  # type: ignore[union-attr]
        if order or not x.is_floating_point():
            # A stable sort puts equal elements in the order of their indices, as ONNX asks.
            values, index = x.sort(stable=True, dim=axis, descending=largest)
            return values.narrow(axis, 0, count), index.narrow(axis, 0, count)
        values, index = x.topk(count, axis, largest)
        return values, index

    return run
