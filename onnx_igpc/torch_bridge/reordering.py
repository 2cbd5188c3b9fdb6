"""Channels by their numbers, as replications and interleaves take them, in the memory format that they come in.

index_select returns the plain format whatever it gets. What follows then computes with tensors of two formats, on
a CPU some of it (the gradients of Relu and of index_select itself) 5 to 20 times slower.
"""

from __future__ import annotations

from typing import Any

import torch


def take(x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """``x.index_select(axis, index)``, with the channels innermost where those of ``x`` are.

    Args:
        x: any shape and type.
        index: int64[n], numbers in [0, x.shape[axis]).
        axis: the axis of ``x`` that is indexed.
    """
    taken: torch.Tensor = _Take.apply(x, index, axis)  # type: ignore[no-untyped-call]
    return taken


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.axis, ctx.size = axis, x.shape[axis]
        return _in_format_of(x, x.index_select(axis, index))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (index,), gradient = ctx.saved_tensors, gradients[0]
        shape = list(gradient.shape)
        shape[ctx.axis] = ctx.size
        found = gradient.new_zeros(shape).index_add(ctx.axis, index, gradient.contiguous())
        return _in_format_of(gradient, found), None, None


def _in_format_of(x: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """``made``, with the channels innermost if those of ``x`` are."""
    if x.dim() != 4 or x.is_contiguous():
        return made
    if not x.is_contiguous(memory_format=torch.channels_last):
        return made
    return made.contiguous(memory_format=torch.channels_last)
