"""Training in what int8 will round: tensors and weights go through PyTorch's fake quantization.

Values are rounded to the integers that they will be, and back; gradients pass as if they were not, those of
values beyond the range excepted. Weights have the scale of their largest values at every step, as when they
are quantized; ranges of tensors are the smallest and largest values of some samples, which the float model
makes, as a quantizer's calibration finds them, and stay until they are looked for again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum

import torch
from torch import nn

from onnx_igpc.torch_bridge.convert import Hook
from onnx_igpc.torch_bridge.training.int8_places import Activation, Levels, Places, Weight

_LEAST_SCALE = float(torch.finfo(torch.float32).tiny)


class _Mode(Enum):
    FLOAT = 0
    OBSERVED = 1
    INT8 = 2


class FakeQuantization:
    """What the hooks of a module do at the places of its int8 form; nothing, unless one of the two below is on.

    Attributes:
        places: where values are rounded.
        ranges: the smallest and the largest value of a tensor, by name.
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self.ranges: dict[str, tuple[float, float]] = {}
        self._mode = _Mode.FLOAT

    def hooks(self) -> dict[str, Hook]:
        """For :func:`~onnx_igpc.torch_bridge.convert.convert`."""
        made = {
            name: self._activation(name, each) for name, each in self.places.activations.items()
        }
        return made | {name: self._weight(each) for name, each in self.places.weights.items()}

    @contextlib.contextmanager
    def int8(self, on: bool = True) -> Iterator[None]:
        """Inside, the module computes in fake int8."""
        with self._in(_Mode.INT8 if on else _Mode.FLOAT):
            yield

    @torch.no_grad()
    def observe(
        self, module: nn.Module, batches: Iterable[Sequence[torch.Tensor]]
    ) -> dict[str, tuple[float, float]]:
        """Find the ranges anew: those over all the batches, in float; they are returned, too."""
        self.ranges = {}
        with self._in(_Mode.OBSERVED):
            for inputs in batches:
                module(*inputs)
        return self.ranges

    @contextlib.contextmanager
    def _in(self, mode: _Mode) -> Iterator[None]:
        before, self._mode = self._mode, mode
        try:
            yield
        finally:
            self._mode = before

    def _activation(self, name: str, place: Activation) -> Hook:
        def run(value: torch.Tensor) -> torch.Tensor:
            if self._mode is _Mode.FLOAT or not value.is_floating_point():
                return value
            exact = value.float() if place.fold is None else place.fold.done(value.float())
            if self._mode is _Mode.OBSERVED:
                if place.like == name and exact.numel():
                    low, high = (float(each) for each in torch.aminmax(exact.detach()))
                    least, most = self.ranges.get(name, (low, high))
                    self.ranges[name] = min(least, low), max(most, high)
                return value
            if place.like not in self.ranges:
                return value
            rounded = torch.fake_quantize_per_tensor_affine(
                exact,
                *_scale(*self.ranges[place.like], place.levels),
                place.levels.lowest,
                place.levels.highest,
            )
            if place.fold is not None:
                rounded = place.fold.undone(rounded, value.float())
            return rounded.to(value.dtype)

        return run

    def _weight(self, place: Weight) -> Hook:
        levels = place.levels

        def run(value: torch.Tensor) -> torch.Tensor:
            if self._mode is not _Mode.INT8:
                return value
            factor = place.factor
            if factor is not None:
                factor = factor.to(value.device)
            exact = value if factor is None else value / factor
            if place.axis is None:
                low, high = (float(each) for each in torch.aminmax(exact.detach()))
                rounded = torch.fake_quantize_per_tensor_affine(
                    exact, *_scale(low, high, levels), levels.lowest, levels.highest
                )
            else:
                others = [axis for axis in range(exact.dim()) if axis != place.axis]
                scales = exact.detach().abs().amax(others) / levels.highest
                rounded = torch.fake_quantize_per_channel_affine(
                    exact,
                    scales.clamp(min=_LEAST_SCALE),
                    torch.zeros_like(scales, dtype=torch.int32),
                    place.axis,
                    levels.lowest,
                    levels.highest,
                )
            return rounded if factor is None else rounded * factor

        return run


def _scale(low: float, high: float, levels: Levels) -> tuple[float, int]:
    """Scale and zero point of a range, which takes in 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    if levels.symmetric:
        return max(-low, high) / levels.highest or 1.0, 0
    scale = (high - low) / (levels.highest - levels.lowest) or 1.0
    return scale, round(levels.lowest - low / scale)
