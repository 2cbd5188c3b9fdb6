"""Conv and ConvTranspose in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.nn import functional

from onnx_igpc.torch_bridge.node import Node, Run
from onnx_igpc.torch_bridge.operators.spatial import Window, pad_spatial
from onnx_igpc.torch_bridge.registry import Inputs, register_operator

_CONV: dict[int, Run] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_TRANSPOSE: dict[int, Run] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def _build(node: Node, build: Callable[[Node, list[int]], Run]) -> Run:
    """Build for the kernel of the node, once it is known."""
    if "kernel_shape" in node.attributes:
        return build(node, node.get_ints("kernel_shape"))
    if 1 in node.shapes:
        return build(node, list(node.shapes[1][2:]))
    built: dict[tuple[int, ...], Run] = {}

    def late(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        kernel = tuple(weight.shape[2:])
        if kernel not in built:
            built[kernel] = build(node, list(kernel))
        result: torch.Tensor = built[kernel](x, weight, bias)
        return result

    return late


def _function(node: Node, functions: dict[int, Run], rank: int) -> Run:
    if rank not in functions:
        raise node.refuse(f"PyTorch has no convolution over {rank} spatial dimensions")
    return functions[rank]


@register_operator("Conv", inputs=Inputs(weights=(1, 2)))
def conv(node: Node) -> Run:
    return _build(node, _conv)


def _conv(node: Node, kernel: list[int]) -> Run:
    window, groups = Window(node, kernel), node.get_int("group", 1)
    convolve = partial(
        _function(node, _CONV, len(kernel)),
        stride=window.strides,
        dilation=window.dilations,
        groups=groups,
    )
    if not window.same and window.begin == window.end:
        return partial(convolve, padding=window.begin)

    def padded(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        begin, end = window.pads(x.shape[2:])
        result: torch.Tensor
        if begin == end:
            result = convolve(x, weight, bias, padding=begin)
        elif weight.shape[1] == 1 and groups > 1 and set(window.dilations) == {1}:
            # Padding the input would copy it, which takes longer than a depthwise convolution does.
            widened, padding = _evenly_padded(weight, begin, end)
            result = convolve(x, widened, bias, padding=padding)
        else:
            result = convolve(pad_spatial(x, begin, end), weight, bias)
        return result

    return padded


def _evenly_padded(
    weight: torch.Tensor, begin: Sequence[int], end: Sequence[int]
) -> tuple[torch.Tensor, list[int]]:
    """A kernel widened by zeros for which the pads are the same in front and behind, and those pads."""
    front = [max(behind - before, 0) for before, behind in zip(begin, end, strict=True)]
    back = [max(before - behind, 0) for before, behind in zip(begin, end, strict=True)]
    return pad_spatial(weight, front, back), [max(pair) for pair in zip(begin, end, strict=True)]


@register_operator("ConvTranspose", inputs=Inputs(weights=(1, 2)))
def conv_transpose(node: Node) -> Run:
    return _build(node, _conv_transpose)


def _conv_transpose(node: Node, kernel: list[int]) -> Run:
    window = Window(node, kernel)
    rank = len(kernel)
    extra = node.get_ints("output_padding", [0] * rank)
    convolve = partial(
        _function(node, _TRANSPOSE, rank),
        stride=window.strides,
        dilation=window.dilations,
        groups=node.get_int("group", 1),
    )
    limits = [max(s, d) for s, d in zip(window.strides, window.dilations, strict=True)]
    plain = "output_shape" not in node.attributes and not window.same
    if plain and window.begin == window.end and all(map(int.__lt__, extra, limits)):
        return partial(convolve, padding=window.begin, output_padding=extra)
    return _CroppedTranspose(node, window, extra, convolve)


class _CroppedTranspose:
    """A transposed convolution whose full result is cropped or extended to the size asked for."""

    def __init__(self, node: Node, window: Window, extra: list[int], convolve: Run) -> None:
        self.window = window
        self.extra = extra
        self.convolve = convolve
        self.output_shape = node.attributes.get("output_shape")

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        full = self.convolve(x, weight)
        begin, end = self._crops(x.shape[2:], full.shape[2:])
        behind = [more - crop for more, crop in zip(self.extra, end, strict=True)]
        result = pad_spatial(full, [-crop for crop in begin], behind)
        # The bias is added last: it also belongs into what the output padding appended.
        return result if bias is None else result + bias.reshape(-1, *[1] * len(begin))

    def _crops(self, sizes: torch.Size, full_sizes: torch.Size) -> tuple[list[int], list[int]]:
        window = self.window
        if self.output_shape is not None:
            wanted = list(self.output_shape)[-len(window.kernel) :]
        elif window.same:
            wanted = [size * stride for size, stride in zip(sizes, window.strides, strict=True)]
        else:
            return window.begin, window.end
        begin, end = [], []
        for full, more, size in zip(full_sizes, self.extra, wanted, strict=True):
            total = full + more - size
            half = total // 2
            upper = window.auto_pad == "SAME_UPPER"
            begin.append(half if upper else total - half)
            end.append(total - half if upper else half)
        return begin, end
