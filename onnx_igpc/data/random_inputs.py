"""Random inputs for a model that nobody gave data for."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnx_igpc.errors import ModelError

if TYPE_CHECKING:
    pass
from onnx_igpc.graph.inputs import InputSpec, Shapes, resolve_shapes


def random_inputs(
    inputs: Sequence[InputSpec],
    *,
    batch: int = 1,
    seed: int | Sequence[int] = 0,
    shapes: Shapes | None = None,
) -> dict[str, np.ndarray]:
    """Seeded random arrays for a model's inputs, by name, shaped as :func:`resolve_shapes` says.

    Floating point: standard normal. 8-bit integers: the type's whole range, as pixels have. Other
    integers: 0 or 1, which stay valid as indices. Booleans: either.
    """
    generator = np.random.default_rng(seed)
    resolved = resolve_shapes(inputs, batch, shapes)
    for spec in inputs:
        _refuse_giant(spec, resolved[spec.name])
    return {spec.name: _random(generator, spec.dtype, resolved[spec.name]) for spec in inputs}


def _refuse_giant(spec: InputSpec, shape: Sequence[int]) -> None:
    """Refuse random values for an input that the machine cannot hold."""
    # Normal values are drawn as float64.
    needed = math.prod(shape) * 8
    if needed > physical_memory():
        raise ModelError(
            f"input {spec.describe()} of shape {list(shape)} takes {needed / 2**30:.0f} GiB, more than "
            "this machine has: give smaller dynamic dimensions with `shapes` where there are any"
        )


def physical_memory() -> int:
    """Bytes of memory that the machine has; 64 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not tell
        return 2**36


def _random(
    generator: np.random.Generator, dtype: np.dtype[np.generic], shape: tuple[int, ...]
) -> np.ndarray:
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu" and dtype.itemsize == 1:
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        return pixels.view(dtype)
    return generator.integers(0, 2, shape).astype(dtype)
