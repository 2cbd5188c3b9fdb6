"""Shapes of the tensors of a CNN, and the arithmetic of windows that slide over maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onnx_igpc.errors import UsageError


@dataclass(frozen=True)
class Feature:
    """A float32 tensor of the graph, shape (batch, channels, height, width)."""

    name: str
    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Vector:
    """A float32 tensor of the graph, shape (batch, size)."""

    name: str
    size: int


@dataclass(frozen=True)
class Pads:
    """Zeros around a map."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    def attribute(self) -> list[int]:
        """The ``pads`` attribute of Conv and AveragePool."""
        return [self.top, self.left, self.bottom, self.right]


Padding = Literal["same", "valid"] | Pads


def same_pads(size: tuple[int, int], kernel: tuple[int, int], stride: int) -> Pads:
    """Padding of TensorFlow's SAME: ``ceil(size / stride)`` outputs, the odd zero at the end.

    For stride 2 this equals the ``correct_pad`` of the Keras model builders.

    Args:
        size: (height, width) of the map.
        kernel: (height, width) of the window, odd numbers.
        stride: step of the window on both axes.
    """

    def one_axis(length: int, window: int) -> tuple[int, int]:
        total = max((math.ceil(length / stride) - 1) * stride + window - length, 0)
        return total // 2, total - total // 2

    top, bottom = one_axis(size[0], kernel[0])
    left, right = one_axis(size[1], kernel[1])
    return Pads(top, left, bottom, right)


def window_of(kernel: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a kernel given by one side or both."""
    return (kernel, kernel) if isinstance(kernel, int) else kernel


def output_size(
    x: Feature, window: tuple[int, int], stride: int, padding: Padding, name: str
) -> tuple[int, int, Pads]:
    """(height, width) of what a window sliding over ``x`` computes, and the zeros around ``x``.

    Raises:
        UsageError: the padded map is smaller than the window.
    """
    if padding == "same":
        pads = same_pads((x.height, x.width), window, stride)
    elif padding == "valid":
        pads = Pads()
    else:
        pads = padding
    height = (x.height + pads.top + pads.bottom - window[0]) // stride + 1
    width = (x.width + pads.left + pads.right - window[1]) // stride + 1
    if height < 1 or width < 1:
        raise UsageError(
            f"the input image is too small for this network: only {x.height}x{x.width} is left "
            f"at layer {name}; choose a larger --size"
        )
    return height, width, pads
