"""Resize and Upsample in all modes; GridSample and AffineGrid.

The usual cases go to ``torch.nn.functional.interpolate``. The others are done one axis at a time:
nearest by an index, linear and cubic by a matrix with one row for each output position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from onnx_igpc.torch_bridge.node import Node, Run, numbers
from onnx_igpc.torch_bridge.registry import Inputs, register_operator

_ROUNDING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}
_INTERPOLATE = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear",
                ("cubic", 2): "bicubic"}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One axis to be resized."""

    index: int
    size: int
    target: int
    scale: float
    roi: tuple[float, float]


@dataclass(frozen=True)
class Method:
    """How positions are mapped and values are interpolated; the attributes of Resize."""

    mode: str
    coordinates: str
    rounding: str = "round_prefer_floor"
    cubic: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False
    extrapolation: float = 0.0

    def apply(self, x: torch.Tensor, axes: Sequence[Axis]) -> torch.Tensor:
        """``x`` with every axis of ``axes`` resized."""
        axes = [a for a in axes if a.size != a.target or a.scale != 1 or self._crops]
        if not axes:
            return x
        fast = self._interpolate(x, axes)
        if fast is not None:
            return fast
        outside = None
        for axis in axes:
            x = self._resize_axis(x, axis)
            if self._crops:
                beyond = self._beyond(axis).to(x.device)
                shape = [1] * x.dim()
                shape[axis.index] = -1
                mask = beyond.reshape(shape)
                outside = mask if outside is None else outside | mask
        return x if outside is None else x.masked_fill(outside, self.extrapolation)

    @property
    def _crops(self) -> bool:
        return self.coordinates == "tf_crop_and_resize"

    def _interpolate(self, x: torch.Tensor, axes: Sequence[Axis]) -> torch.Tensor | None:
        """The same by PyTorch's own function, where it computes exactly this."""
        rank = x.dim() - 2
        spatial = {a.index: a for a in axes}
        if rank not in (1, 2, 3) or min(spatial) < 2 or not x.is_floating_point():
            return None
        sizes = [spatial[i].target if i in spatial else x.shape[i] for i in range(2, x.dim())]
        if self.mode == "nearest":
            # Whole factors repeat elements, however positions are rounded within one.
            whole = all(a.scale == a.target / a.size and a.target % a.size == 0 for a in axes)
            corner = self.coordinates == "asymmetric" and self.rounding in (
                "floor",
                "away_if_smaller",
            )
            centre = self.coordinates in ("half_pixel", "pytorch_half_pixel")
            if whole and (corner or (centre and self.rounding.startswith("round"))):
                return functional.interpolate(x, sizes, mode="nearest")
            return None
        mode = _INTERPOLATE.get((self.mode, rank))
        if mode is None or self.antialias or self.exclude_outside or self.cubic != -0.75:
            return None
        if self.coordinates == "align_corners":
            if any(a.target == 1 for a in axes):
                return None
            return functional.interpolate(x, sizes, mode=mode, align_corners=True)
        # Sizes alone tell PyTorch the scale only if it is the ratio of the sizes.
        even = all(a.scale == a.target / a.size and a.target > 1 for a in axes)
        if even and self.coordinates in ("half_pixel", "pytorch_half_pixel"):
            return functional.interpolate(x, sizes, mode=mode, align_corners=False)
        return None

    def _resize_axis(self, x: torch.Tensor, axis: Axis) -> torch.Tensor:
        position = self._positions(axis)
        if self.mode == "nearest":
            rounding = self.rounding
            if rounding == "away_if_smaller":
                rounding = "ceil" if axis.scale < 1 else "floor"
            index = _ROUNDING[rounding](position).clamp(0, axis.size - 1).long()
            return x.index_select(axis.index, index.to(x.device))
        matrix = self._matrix(axis, position).to(x.device, x.dtype)
        return (x.movedim(axis.index, -1) @ matrix.T).movedim(-1, axis.index)

    def _positions(self, axis: Axis) -> torch.Tensor:
        """Where in the input each output element lies."""
        out = torch.arange(axis.target, dtype=torch.float32)  # as onnxruntime: ties decide nearest
        length = axis.target
        match self.coordinates:
            case "asymmetric":
                return out / axis.scale
            case "align_corners":
                return out * 0 if length == 1 else out * (axis.size - 1) / (length - 1)
            case "pytorch_half_pixel" if length <= 1:
                return out * 0
            case "tf_half_pixel_for_nn":
                return (out + 0.5) / axis.scale
            case "half_pixel_symmetric":
                shift = axis.size / 2 * (1 - length / (axis.scale * axis.size))
                return shift + (out + 0.5) / axis.scale - 0.5
            case "tf_crop_and_resize":
                start, end = axis.roi
                if length <= 1:
                    return out * 0 + 0.5 * (start + end) * (axis.size - 1)
                step = (end - start) * (axis.size - 1) / (length - 1)
                return start * (axis.size - 1) + out * step
            case _:
                return (out + 0.5) / axis.scale - 0.5

    def _beyond(self, axis: Axis) -> torch.Tensor:
        position = self._positions(axis)
        return (position < 0) | (position > axis.size - 1)

    def _matrix(self, axis: Axis, position: torch.Tensor) -> torch.Tensor:
        """Weights [output, input] of the linear or cubic interpolation along an axis."""
        reach = 1.0 if self.mode == "linear" else 2.0
        # Antialiasing widens the filter by the factor that the axis shrinks by.
        shrink = min(axis.scale, 1.0) if self.antialias else 1.0
        first = torch.floor(position).long()
        taps = math.ceil(reach / shrink)
        offsets = torch.arange(-taps, taps + 1)
        index = first.unsqueeze(1) + offsets
        distance = (position.unsqueeze(1) - index).abs() * shrink
        weight = self._kernel(distance)
        inside = (index >= 0) & (index < axis.size)
        if self.exclude_outside:
            weight = weight * inside
        if self.exclude_outside or self.antialias:
            weight = weight / weight.sum(1, keepdim=True)
        matrix = torch.zeros(axis.target, axis.size)
        return matrix.scatter_add(1, index.clamp(0, axis.size - 1), weight)

    def _kernel(self, distance: torch.Tensor) -> torch.Tensor:
        if self.mode == "linear":
            return (1 - distance).clamp(min=0)
        a, d = self.cubic, distance
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


@register_operator("Resize", since=10, inputs=Inputs(host=(1, 2, 3)))
def resize(node: Node) -> Run:
    if node.version < 11:
        return _upsample(node)
    coordinates = node.get_string("coordinate_transformation_mode", "half_pixel")
    method = Method(
        mode=node.get_string("mode", "nearest"),
        coordinates=coordinates,
        rounding=node.get_string("nearest_mode", "round_prefer_floor"),
        cubic=node.get_float("cubic_coeff_a", -0.75),
        antialias=bool(node.get_int("antialias", 0)),
        exclude_outside=bool(node.get_int("exclude_outside", 0)),
        extrapolation=node.get_float("extrapolation_value", 0.0),
    )
    policy = node.get_string("keep_aspect_ratio_policy", "stretch")
    chosen = node.attributes.get("axes")
    fixed = [node.constant_list(index) for index in (1, 2, 3)]

    def run(x: torch.Tensor, *inputs: torch.Tensor | None) -> torch.Tensor:
        given = (*inputs, *[None] * (3 - len(inputs)))
        roi, scales, sizes = map(numbers, fixed, given)
        axes = [a % x.dim() for a in chosen] if chosen else list(range(x.dim()))
        return method.apply(x, _plan(x, axes, roi, scales, sizes, policy))

    return run


def _plan(
    x: torch.Tensor,
    axes: Sequence[int],
    roi: Sequence[float],
    scales: Sequence[float],
    sizes: Sequence[int],
    policy: str,
) -> list[Axis]:
    count = len(axes)
    corners = list(roi) if roi else [0.0] * count + [1.0] * count
    if sizes:
        factors = [size / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
        targets = list(sizes)
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * count
            targets = [math.floor(factor * x.shape[axis] + 0.5) for axis in axes]
    else:
        factors = list(scales)
        targets = [math.floor(x.shape[axis] * f) for axis, f in zip(axes, factors, strict=True)]
    return [
        Axis(axis, x.shape[axis], targets[i], factors[i], (corners[i], corners[i + count]))
        for i, axis in enumerate(axes)
    ]


@register_operator("Upsample", inputs=Inputs(host=(1,)))
def _upsample(node: Node) -> Run:
    """Upsample, and Resize as it was in opset 10.

    Positions are asymmetric and rounded down, but up on axes that shrink: onnxruntime does that,
    where the text of the standard leaves it open.
    """
    mode = node.get_string("mode", "nearest")
    method = Method(
        mode="linear" if mode == "bilinear" else mode,
        coordinates="asymmetric",
        rounding="away_if_smaller",
    )
    if node.version < 7:
        known: list[float] | None = [
            1.0, 1.0, node.get_float("height_scale"), node.get_float("width_scale")
        ]  # fmt: skip
    elif node.version < 9:
        known = node.get_ints("scales")
    else:
        known = node.constant_list(1)

    def run(x: torch.Tensor, scales: torch.Tensor | None = None) -> torch.Tensor:
        axes = list(range(x.dim()))
        return method.apply(x, _plan(x, axes, [], numbers(known, scales), [], "stretch"))

    return run


@register_operator("GridSample", since=16)
def grid_sample(node: Node) -> Run:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        node.get_string("mode", "bilinear"), node.get_string("mode", "bilinear")
    )
    padding = node.get_string("padding_mode", "zeros")
    corners = bool(node.get_int("align_corners", 0))
    return lambda x, grid: functional.grid_sample(x, grid, mode, padding, corners)


@register_operator("AffineGrid", since=20, inputs=Inputs(host=(1,)))
def affine_grid(node: Node) -> Run:
    corners = bool(node.get_int("align_corners", 0))
    known = node.constant_list(1)

    def run(theta: torch.Tensor, size: torch.Tensor | None = None) -> torch.Tensor:
        shape = numbers(known, size)
        return functional.affine_grid(theta, shape, corners)

    return run
