"""Padding arithmetic shared by convolutions, pooling and padding: sizes, ``auto_pad``, layouts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from onnx_igpc.torch_bridge.node import Node


class Window:
    """Kernel geometry of a convolution or pooling node.

    Attributes:
        kernel, strides, dilations: One number per spatial axis.
        begin, end: Explicit pads per spatial axis.
        auto_pad: "NOTSET", "VALID", "SAME_UPPER" or "SAME_LOWER".
    """

    def __init__(self, node: Node, kernel: Sequence[int]) -> None:
        rank = len(kernel)
        self.kernel = list(kernel)
        self.strides = node.get_ints("strides", [1] * rank)
        self.dilations = node.get_ints("dilations", [1] * rank)
        self.auto_pad = node.get_string("auto_pad", "") or "NOTSET"
        pads = node.get_ints("pads", [0] * (2 * rank))
        if self.auto_pad != "NOTSET":
            pads = [0] * (2 * rank)
        self.begin, self.end = pads[:rank], pads[rank:]

    @property
    def same(self) -> bool:
        """Whether the pads depend on the size of the input."""
        return self.auto_pad in ("SAME_UPPER", "SAME_LOWER")

    @property
    def extent(self) -> list[int]:
        """Positions that a dilated kernel spans."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def pads(self, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """Pads in front and behind for an input of these spatial sizes."""
        if not self.same:
            return self.begin, self.end
        begin, end = [], []
        for size, extent, stride in zip(sizes, self.extent, self.strides, strict=True):
            outputs = -(-size // stride)
            total = max((outputs - 1) * stride + extent - size, 0)
            less, more = total // 2, total - total // 2
            begin.append(less if self.auto_pad == "SAME_UPPER" else more)
            end.append(more if self.auto_pad == "SAME_UPPER" else less)
        return begin, end


def pad_spatial(
    x: torch.Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0
) -> torch.Tensor:
    """``x`` padded (or cropped, where negative) along its last axes."""
    if not any(begin) and not any(end):
        return x
    layout = [n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]
    return functional.pad(x, layout, value=value)
