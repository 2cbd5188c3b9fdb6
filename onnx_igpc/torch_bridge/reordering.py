"""Channels by their numbers, as replications and interleaves take them, in the memory format that they come in.

index_select returns the plain format whatever it gets. What follows then computes with tensors of two formats, on
a CPU some of it (the gradients of Relu and of index_select itself) 5 to 20 times slower.
"""

from __future__ import annotations

from typing import Any

import torch


def take(x: torch.Tensor, index: torch.Tensor, axis: int, permutes: bool = False) -> torch.Tensor:
    """``x.index_select(axis, index)``, with the channels innermost where those of ``x`` are.

    Args:
        x: any shape and type.
        index: int64[n] or int32[n], numbers in [0, x.shape[axis]).
        axis: the axis of ``x`` that is indexed.
        permutes: ``index`` is an order of the numbers from 0: where it has all of ``x``, gradients need
            not be added up.
    """
    taken: torch.Tensor = _Take.apply(x, index, axis, permutes)  # type: ignore[no-untyped-call]
    return taken


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, index: torch.Tensor, axis: int, permutes: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.axis, ctx.size = axis, x.shape[axis]
        ctx.permutes = permutes and len(index) == ctx.size
        if axis % x.dim() == 1 and _channels_innermost(x):
            return _take_innermost(x, index)
        return _in_format_of(x, x.index_select(axis, index))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (index,), gradient = ctx.saved_tensors, gradients[0]
        if ctx.permutes:
            return take(gradient, index.argsort(), ctx.axis, True), None, None, None
        shape = list(gradient.shape)
        shape[ctx.axis] = ctx.size
        found = gradient.new_zeros(shape).index_add(ctx.axis, index, gradient.contiguous())
        return _in_format_of(gradient, found), None, None, None


def _take_innermost(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Channels of a tensor that has them innermost, without a detour through the plain format.

    Values of 16 bits are moved as integers: PyTorch gathers those twice as fast.
    """
    moved = x.view(torch.int16) if x.element_size() == 2 else x
    rows = moved.permute(0, 2, 3, 1)
    taken = rows.gather(3, index.long().expand(*rows.shape[:3], -1))
    return taken.permute(0, 3, 1, 2).view(x.dtype)


def _channels_innermost(x: torch.Tensor) -> bool:
    if x.dim() != 4 or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def _in_format_of(x: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """``made``, with the channels innermost if those of ``x`` are."""
    return made.contiguous(memory_format=torch.channels_last) if _channels_innermost(x) else made
