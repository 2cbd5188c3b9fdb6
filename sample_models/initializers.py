"""Random weights as the frameworks of the papers draw them (Keras ``VarianceScaling``).

Every initializer is a function ``(generator, shape, fans) -> float32 array``. The fans come with
the call, since they are counted on the layout of the framework: for a depthwise kernel Keras counts
all channels as inputs and one filter as output, whatever the ONNX weight looks like.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

# Standard deviation of a unit normal cut at two standard deviations; Keras divides by it so that
# the truncated values have the variance that was asked for.
_TRUNCATED_NORMAL_STD = 0.87962566103423978


@dataclass(frozen=True)
class Fans:
    """How many inputs one output sums over, and how many outputs one input feeds."""

    fan_in: int
    fan_out: int


Initializer = Callable[[np.random.Generator, tuple[int, ...], Fans], Array]


def _truncated_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Unit normal values without those beyond two standard deviations (float32, any shape)."""
    values = generator.standard_normal(size=math.prod(shape), dtype=np.float32)
    outside = np.flatnonzero(np.abs(values) > 2)
    while outside.size:
        values[outside] = generator.standard_normal(size=outside.size, dtype=np.float32)
        outside = outside[np.abs(values[outside]) > 2]
    return values.reshape(shape)


def variance_scaling(
    scale: float,
    mode: Literal["fan_in", "fan_out", "fan_avg"],
    distribution: Literal["truncated_normal", "uniform"],
) -> Initializer:
    """Values of mean 0 and variance ``scale / fan`` (He et al. 2015; Glorot and Bengio 2010).

    Args:
        scale: the variance that one unit of fan would have.
        mode: the fan that divides: inputs, outputs or the mean of both.
        distribution: a normal cut at two standard deviations, or uniform.

    Returns:
        An initializer of float32 arrays.
    """

    def initialize(generator: np.random.Generator, shape: tuple[int, ...], fans: Fans) -> Array:
        fan = {
            "fan_in": float(fans.fan_in),
            "fan_out": float(fans.fan_out),
            "fan_avg": (fans.fan_in + fans.fan_out) / 2,
        }[mode]
        variance = scale / max(1.0, fan)
        if distribution == "truncated_normal":
            deviation = math.sqrt(variance) / _TRUNCATED_NORMAL_STD
            return _truncated_normal(generator, shape) * np.float32(deviation)
        limit = math.sqrt(3 * variance)
        uniform: npt.NDArray[Any] = generator.random(size=shape, dtype=np.float32)
        return (uniform * 2 - 1).astype(np.float32) * np.float32(limit)

    return initialize


glorot_uniform = variance_scaling(1.0, "fan_avg", "uniform")
"""The default of Keras for convolutions and dense layers (Glorot and Bengio 2010)."""

he_normal = variance_scaling(2.0, "fan_in", "truncated_normal")
"""Keeps the variance through ReLU layers (He et al. 2015)."""
