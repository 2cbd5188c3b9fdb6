"""Which ONNX operators the bridge can run, and how an operator is added.

An operator is a *builder*: a function that gets a :class:`~onnx_igpc.torch_bridge.node.Node` once,
while a model is converted, and returns the function that computes the node at run time. Attributes
and constant inputs are read by the builder, so that nothing but tensor work is left for run time::

    from onnx_igpc.torch_bridge import register_operator

    @register_operator("Shrink", since=9)
    def shrink(node):
        bound = node.get_float("lambd", 0.5)
        return lambda x: torch.where(x.abs() > bound, x, torch.zeros_like(x))

The returned function gets one positional argument for each input of the node: a tensor, or None
where the input is absent or was read by the builder as a constant. A node with several outputs
returns a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx_igpc.torch_bridge.node import Node

Builder = Callable[["Node"], Callable[..., Any]]

#: The newest version of the default operator set the operators were written for. A later release
#: of ONNX that redefines an operator is refused for that operator until somebody has looked at it.
LATEST_OPSET = 28


@dataclass(frozen=True)
class Inputs:
    """What inputs of an operator are where they are constants; all others are trained if they are floats
    of more than one element.

    Attributes:
        weights: Inputs that are trained whatever their size, e.g. a bias of one element.
        structural: Inputs that are never trained: bounds, exponents, scales of a Resize.
        host: Inputs read as numbers rather than used as tensors: shapes, axes, pads. They are
            kept on the CPU and never trained.
        statistics: Inputs that are running statistics: buffers, updated in training.
    """

    weights: tuple[int, ...] = ()
    structural: tuple[int, ...] = ()
    host: tuple[int, ...] = ()
    statistics: tuple[int, ...] = ()

    @property
    def untrained(self) -> tuple[int, ...]:
        """Inputs that are no weights and no statistics."""
        return self.structural + self.host


@dataclass(frozen=True)
class Operator:
    """One implementation of an operator for the schema versions ``since`` to ``until``.

    Attributes:
        name: ONNX operator name.
        domain: Operator domain; "" is the default one.
        since: First schema version (``since_version`` in :mod:`onnx.defs`) that is implemented.
        until: Last one.
        build: Makes the run-time function of a node.
        inputs: What its inputs are.
        moves_data: The output holds the elements of input 0 (or of all inputs, for Concat) in
            another place or order. Whether a constant in front of it is a weight is decided by
            who reads the output.
        gives_host: The output is made on the CPU from shapes and numbers, whatever the inputs lie
            on; what is only read by such an operator is not trained.
        trains: The run-time function takes a last argument, whether the module is training.
    """

    name: str
    domain: str
    since: int
    until: int
    build: Builder
    inputs: Inputs = Inputs()
    moves_data: bool = False
    gives_host: bool = False
    trains: bool = False


_OPERATORS: dict[tuple[str, str], list[Operator]] = {}


def register_operator(
    name: str,
    *,
    since: int = 1,
    until: int = LATEST_OPSET,
    domain: str = "",
    inputs: Inputs = Inputs(),
    moves_data: bool = False,
    gives_host: bool = False,
    trains: bool = False,
) -> Callable[[Builder], Builder]:
    """Decorator: the function below builds operator ``name``; see the text of this module.

    The arguments are the fields of :class:`Operator`. A later registration is preferred to an
    earlier one that covers the same version, so a user's operator replaces the one of the bridge.
    """

    def register(build: Builder) -> Builder:
        operator = Operator(
            name=name,
            domain=_default_domain(domain),
            since=since,
            until=until,
            build=build,
            inputs=inputs,
            moves_data=moves_data,
            gives_host=gives_host,
            trains=trains,
        )
        _OPERATORS.setdefault((operator.domain, name), []).insert(0, operator)
        return build

    return register


def find_operator(domain: str, name: str, version: int) -> Operator | None:
    """The implementation of an operator for a schema version, or None."""
    for operator in _OPERATORS.get((_default_domain(domain), name), ()):
        if operator.since <= version <= operator.until:
            return operator
    return None


def registered_operators() -> Iterator[Operator]:
    """All implementations, preferred ones first within a name."""
    for operators in _OPERATORS.values():
        yield from operators


def _default_domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
