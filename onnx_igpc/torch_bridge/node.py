"""What an operator's builder sees of a node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch

from onnx_igpc.errors import ModelError

#: What a builder returns: the function that computes the node.
Run = Callable[..., Any]


@dataclass(frozen=True)
class Node:
    """One node while it is converted: attributes, constant inputs, known shapes.

    Attributes:
        op_type: ONNX operator name.
        version: Version of the operator's schema that the model uses.
        name: Name of the node, or of its first output if it has none.
        inputs: Names of the inputs, "" where one is left out.
        outputs: Names of the outputs, "" where one is left out.
        attributes: Decoded attributes.
        shapes: Shapes of the inputs whose shape is fixed: constants and weights.
        settled: Inputs that the builder read as constants. They arrive as None at run time.
    """

    op_type: str
    version: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    constants: Mapping[int, torch.Tensor]
    shapes: Mapping[int, tuple[int, ...]]
    settled: set[int] = field(default_factory=set)

    def has(self, index: int) -> bool:
        """Whether input ``index`` is present."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def constant(self, index: int) -> torch.Tensor | None:
        """Input ``index`` if it is a constant that is not trained (a CPU tensor), else None."""
        value = self.constants.get(index)
        if value is not None:
            self.settled.add(index)
        return value

    def constant_list(self, index: int) -> list[Any] | None:
        """:meth:`constant` as a flat list of Python numbers."""
        value = self.constant(index)
        return None if value is None else value.reshape(-1).tolist()

    def get_int(self, name: str, default: int | None = None) -> int:
        """An integer attribute."""
        return int(self._attribute(name, default))

    def get_float(self, name: str, default: float | None = None) -> float:
        """A float attribute."""
        return float(self._attribute(name, default))

    def get_string(self, name: str, default: str | None = None) -> str:
        """A string attribute."""
        value = self._attribute(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def get_ints(self, name: str, default: list[Any] | None = None) -> list[Any]:
        """An attribute that is a list of numbers."""
        return list(self._attribute(name, default))

    def refuse(self, why: str) -> ModelError:
        """The error to raise where this node cannot be run."""
        return ModelError(f"{self.op_type} node {self.name!r}: {why}")

    def _attribute(self, name: str, default: Any) -> Any:
        value = self.attributes.get(name, default)
        if value is None:
            raise self.refuse(f"the attribute {name!r} is missing")
        return value


def decode_attributes(proto: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}


def numbers(known: list[Any] | None, given: torch.Tensor | None) -> list[Any]:
    """A required input as numbers: ``known`` while the model was converted, or ``given`` by a run."""
    return (known or []) if given is None else given.tolist()
