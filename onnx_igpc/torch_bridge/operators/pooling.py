"""Pooling over windows and over whole images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from onnx_igpc.torch_bridge.node import Node, Run
from onnx_igpc.torch_bridge.operators.spatial import Window, pad_spatial
from onnx_igpc.torch_bridge.registry import register_operator

_MAX: dict[int, Run] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
_AVERAGE: dict[int, Run] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_CONV: dict[int, Run] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class _Pool:
    """What all window poolings share: geometry, with the windows that ``ceil_mode`` adds."""

    def __init__(self, node: Node) -> None:
        kernel = node.get_ints("kernel_shape")
        self.rank = len(kernel)
        if self.rank not in _MAX:
            raise node.refuse(f"PyTorch has no pooling over {self.rank} spatial dimensions")
        self.window = Window(node, kernel)
        self.ceil = bool(node.get_int("ceil_mode", 0))
        self.fixed = (
            not self.window.same
            and self.window.begin == self.window.end
            # PyTorch pads by at most half a window.
            and all(2 * p <= k for p, k in zip(self.window.begin, kernel, strict=True))
        )

    def layout(self, sizes: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Pads in front, pads behind, and what the last window of ``ceil_mode`` adds behind."""
        begin, end = self.window.pads(sizes)
        added = []
        for size, b, e, extent, stride in zip(
            sizes, begin, end, self.window.extent, self.window.strides, strict=True
        ):
            room = size + b + e - extent
            steps = -(-room // stride) if self.ceil else room // stride
            if self.ceil and steps * stride >= size + b:
                steps -= 1  # the last window would see nothing but padding
            added.append(max(steps * stride - room, 0))
        return begin, end, added

    def padded(self, x: torch.Tensor, value: float) -> torch.Tensor:
        begin, end, added = self.layout(x.shape[2:])
        behind = [e + a for e, a in zip(end, added, strict=True)]
        return pad_spatial(x, begin, behind, value)

    def window_sum(self, padded: torch.Tensor) -> torch.Tensor:
        """Sum over the windows of an input that is already padded."""
        kernel, strides = self.window.kernel, self.window.strides
        if all(d == 1 for d in self.window.dilations):
            mean: torch.Tensor = _AVERAGE[self.rank](padded, kernel, strides)
            return mean * math.prod(kernel)
        flat = padded.reshape(-1, 1, *padded.shape[2:])
        ones = padded.new_ones(1, 1, *kernel)
        total = _CONV[self.rank](flat, ones, stride=strides, dilation=self.window.dilations)
        sums: torch.Tensor = total.reshape(*padded.shape[:2], *total.shape[2:])
        return sums


@register_operator("MaxPool")
def max_pool(node: Node) -> Run:
    pool = _Pool(node)
    window = pool.window
    if len(node.outputs) > 1 and node.outputs[1]:
        return _MaxPoolWithIndices(node, pool)

    def run(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return run(x.double()).to(x.dtype)
        pads: list[int] | int = window.begin
        if not pool.fixed:
            x, pads = pool.padded(x, -math.inf), 0
        result: torch.Tensor = _MAX[pool.rank](
            x, window.kernel, window.strides, pads, window.dilations, pool.fixed and pool.ceil
        )
        return result

    return run


class _MaxPoolWithIndices:
    """Max pooling that also tells where in the whole input tensor each maximum lies."""

    def __init__(self, node: Node, pool: _Pool) -> None:
        self.pool = pool
        self.column_major = bool(node.get_int("storage_order", 0))

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        window = self.pool.window
        sizes = list(x.shape[2:])
        begin, _, _ = self.pool.layout(sizes)
        padded = self.pool.padded(x.double(), -math.inf)
        values, flat = _MAX[self.pool.rank](
            padded, window.kernel, window.strides, 0, window.dilations, return_indices=True
        )
        # The index of PyTorch counts within one padded plane; take it apart and count anew.
        position = []
        for size, front in zip(reversed(padded.shape[2:]), reversed(begin), strict=True):
            position.append(flat % size - front)
            flat = flat // size
        position.reverse()
        planes = torch.arange(x.shape[0] * x.shape[1], device=x.device)
        index = planes.reshape(*x.shape[:2], *[1] * self.pool.rank) * math.prod(sizes)
        order = range(self.pool.rank)
        stride = 1
        for axis in order if self.column_major else reversed(order):
            index = index + position[axis] * stride
            stride *= sizes[axis]
        return values.to(x.dtype), index


@register_operator("AveragePool")
def average_pool(node: Node) -> Run:
    pool = _Pool(node)
    window = pool.window
    include = bool(node.get_int("count_include_pad", 0))
    fast = pool.fixed and all(d == 1 for d in window.dilations)

    def run(x: torch.Tensor) -> torch.Tensor:
        if fast:
            result: torch.Tensor = _AVERAGE[pool.rank](
                x, window.kernel, window.strides, window.begin, pool.ceil, include
            )
            return result
        total = pool.window_sum(pool.padded(x, 0.0))
        for axis, counts in enumerate(_counts(pool, x.shape[2:], include)):
            shape = [1] * total.dim()
            shape[2 + axis] = -1
            total = total / torch.tensor(counts, dtype=x.dtype, device=x.device).reshape(shape)
        return total

    return run


def _counts(pool: _Pool, sizes: Sequence[int], include_pad: bool) -> list[list[int]]:
    """Per axis, how many positions of each window count for the average."""
    begin, end, added = pool.layout(sizes)
    window, result = pool.window, []
    for axis, size in enumerate(sizes):
        low = 0 if include_pad else begin[axis]
        high = begin[axis] + size + (end[axis] if include_pad else 0)
        length = begin[axis] + size + end[axis] + added[axis]
        starts = range(0, length - window.extent[axis] + 1, window.strides[axis])
        offsets = range(0, window.extent[axis], window.dilations[axis])
        result.append([sum(low <= start + o < high for o in offsets) or 1 for start in starts])
    return result


@register_operator("LpPool", since=2)
def lp_pool(node: Node) -> Run:
    pool = _Pool(node)
    p = node.get_int("p", 2)
    return lambda x: pool.window_sum(pool.padded(x.abs() ** p, 0.0)) ** (1 / p)


@register_operator("GlobalAveragePool")
def global_average_pool(node: Node) -> Run:
    return lambda x: x.mean(list(range(2, x.dim())), keepdim=True)


@register_operator("GlobalMaxPool")
def global_max_pool(node: Node) -> Run:
    return lambda x: x.amax(list(range(2, x.dim())), keepdim=True)


@register_operator("GlobalLpPool", since=2)
def global_lp_pool(node: Node) -> Run:
    p = node.get_int("p", 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        dims = list(range(2, x.dim()))
        norm: torch.Tensor = torch.linalg.vector_norm(x, ord=p, dim=dims, keepdim=True)
        return norm

    return run
