"""What a model's inputs are, and random values for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_igpc.errors import ModelError, UsageError

DEFAULT_SIDE = 224
"""Height, width or length where neither the model nor the user fixes it: a multiple of 32, which
every network that halves its input up to five times takes."""

_IMAGE_RANK = 4
RUNTIME_TYPES: Mapping[str, type[np.generic]] = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
    "uint32": np.uint32,
    "int64": np.int64,
    "uint64": np.uint64,
    "bool": np.bool_,
}

Shapes = Mapping[str, Sequence[int]]
"""Input shapes by input name, as ``--shape`` gives them."""


@dataclass(frozen=True)
class InputSpec:
    """A model input. shape: an int for a fixed dimension, a name or None for a dynamic one."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str | None, ...]

    @property
    def fixed_batch(self) -> int | None:
        """The number of samples a run must have, where the first dimension is fixed."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], int) else None

    def describe(self) -> str:
        """As in ``input float32[batch, 3, 224, 224]``."""
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} {self.dtype}[{dims}]"


def model_inputs(model: onnx.ModelProto) -> list[InputSpec]:
    """The inputs of a model, without the initializers that old exporters list among them.

    Raises ModelError for an input that is not a tensor of numbers or booleans.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    specs = []
    for value in model.graph.input:
        if value.name in weights:
            continue
        tensor_type = value.type.tensor_type
        name = onnx.TensorProto.DataType.Name(tensor_type.elem_type).lower()
        dims = [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in tensor_type.shape.dim
        ]
        kind = f"tensor({name})" if value.type.HasField("tensor_type") else "other"
        specs.append(input_spec(value.name, kind, dims))
    return specs


def resolve_shapes(
    inputs: Sequence[InputSpec], batch: int = 1, shapes: Shapes | None = None
) -> dict[str, tuple[int, ...]]:
    """A concrete shape for every input.

    Fixed dimensions stay. A dynamic first dimension becomes ``batch``; a dynamic channel dimension of
    an image with dynamic height and width becomes 3; other dynamic dimensions of inputs of rank 3 and
    more become 224, of smaller ones 1. One symbol has one value throughout. ``shapes`` overrides, but
    not a fixed dimension (UsageError).
    """
    shapes = shapes or {}
    if unknown := set(shapes) - {spec.name for spec in inputs}:
        have = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"`shapes` names no input {min(unknown)!r}: the model's inputs are {have}")
    symbols: dict[str, int] = {}
    resolved = {}
    for spec in sorted(inputs, key=lambda spec: spec.name not in shapes):
        given = shapes.get(spec.name)
        dims = _default_shape(spec, batch, symbols) if given is None else _given_shape(spec, given)
        symbols.update(
            (dim, size)
            for dim, size in zip(spec.shape, dims, strict=True)
            if isinstance(dim, str) and dim not in symbols
        )
        resolved[spec.name] = dims
    return {spec.name: resolved[spec.name] for spec in inputs}


def element_type(kind: str) -> str:
    """``float`` for ``tensor(float)``; what is no tensor has no such name."""
    return kind.removeprefix("tensor(").removesuffix(")")


def input_spec(name: str, kind: str, dims: Iterable[int | str | None] | None) -> InputSpec:
    element = element_type(kind)
    if element not in RUNTIME_TYPES:
        raise ModelError(
            f"input or output {name!r} has type {kind}, which cannot be fed or compared"
        )
    shape = tuple(
        None if dim is None or (isinstance(dim, int) and dim < 1) else dim for dim in dims or ()
    )
    return InputSpec(name, np.dtype(RUNTIME_TYPES[element]), shape)


def _default_shape(spec: InputSpec, batch: int, symbols: Mapping[str, int]) -> tuple[int, ...]:
    sizes = []
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            sizes.append(dim)
        elif isinstance(dim, str) and dim in symbols:
            sizes.append(symbols[dim])
        elif axis == 0:
            sizes.append(batch)
        elif axis == 1 and _has_unknown_plane(spec):
            sizes.append(3)
        else:
            sizes.append(DEFAULT_SIDE if len(spec.shape) > 2 else 1)
    return tuple(sizes)


def _has_unknown_plane(spec: InputSpec) -> bool:
    """Whether the last two of four dimensions are dynamic: then the second one is channels."""
    return len(spec.shape) == _IMAGE_RANK and not any(isinstance(d, int) for d in spec.shape[2:])


def _given_shape(spec: InputSpec, given: Sequence[int]) -> tuple[int, ...]:
    fits = len(given) == len(spec.shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape, given, strict=True)
    )
    if not fits:
        raise UsageError(
            f"`shapes` {spec.name}:{','.join(map(str, given))} does not fit {spec.describe()}"
        )
    return tuple(given)
