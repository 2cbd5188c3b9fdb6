"""What is known of a value without running the model, and arithmetic on tensor types."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import TensorProto, TypeProto, helper

from onnx_igpc.graph.traversal import copied

MAX_KNOWN_ELEMENTS = 1024
"""Larger tensors are weights or maps, not shapes: their elements are not looked at."""


@dataclass(frozen=True, eq=False)
class Root:
    """A stored tensor: an initializer, the values of a sparse one, or a Constant node's value."""

    name: str
    data_type: int
    elements: int
    in_main_graph: bool


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of a value.

    Attributes:
        type: type and shape; ``None`` if unknown.
        constant: whether it depends on no input of the model except through shapes.
        root: for a stored tensor, which one.
        tensor: for a small constant, its elements.
    """

    type: TypeProto | None = None
    constant: bool = False
    root: Root | None = None
    tensor: TensorProto | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape if every dimension is known."""
        if self.type is None or not self.type.tensor_type.HasField("shape"):
            return None
        dims = self.type.tensor_type.shape.dim
        if not all(dim.HasField("dim_value") for dim in dims):
            return None
        return tuple(dim.dim_value for dim in dims)

    @property
    def elements(self) -> int | None:
        """The number of elements if it is known."""
        return None if self.shape is None else math.prod(self.shape)


UNKNOWN = Value()


def tensor_type(data_type: int, dims: Sequence[int]) -> TypeProto:
    return helper.make_tensor_type_proto(data_type, list(dims))


def bound(declared: TypeProto, symbols: Mapping[str, int]) -> TypeProto:
    """A declared type with its symbolic dimensions replaced by numbers."""
    bound = copied(declared)
    if bound.HasField("tensor_type"):
        for dim in bound.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    return bound


def without_first(known: TypeProto | None) -> TypeProto | None:
    if known is None or not known.tensor_type.shape.dim:
        return None
    rest = copied(known)
    del rest.tensor_type.shape.dim[0]
    return rest


def with_first(known: TypeProto | None) -> TypeProto | None:
    """The type of a stack of such values, as many as there are iterations."""
    if known is None or not known.tensor_type.HasField("shape"):
        return None
    stack = TypeProto()
    stack.tensor_type.elem_type = known.tensor_type.elem_type
    stack.tensor_type.shape.dim.add()
    stack.tensor_type.shape.dim.extend(known.tensor_type.shape.dim)
    return stack


def merged(values: Sequence[Value]) -> Value:
    """What is true of several values: equal dimensions stay, others are unknown."""
    types = [value.type for value in values]
    first = types[0]
    if first is None or any(t is None or not t.tensor_type.HasField("shape") for t in types):
        return UNKNOWN
    dims = [[(d.dim_value, d.dim_param) for d in t.tensor_type.shape.dim] for t in types if t]
    if any(len(d) != len(dims[0]) for d in dims):
        return UNKNOWN
    merged = copied(first)
    for axis, dim in enumerate(merged.tensor_type.shape.dim):
        if any(d[axis] != dims[0][axis] for d in dims):
            dim.Clear()
    return Value(merged)
