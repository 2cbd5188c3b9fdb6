"""The part of a graph that has to change with the order of one tensor's channels.

A tensor can only get another order of channels if the node that makes it and all that read it take
part: an elementwise operator hands the order on, a convolution puts it into its filters or its
kernel's input channels, a Gather into its indices. The region is all that takes part.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_igpc.graph.traversal import Scope
from onnx_igpc.graph.view import ConstantRef, GraphView, NodeRef
from onnx_igpc.layout.permutations import Order


class CannotReorderError(Exception):
    """Channels that cannot be reordered; the message says why."""


@dataclass(frozen=True)
class NewConstant:
    """A constant to put in the place of an input of a node; ``label`` is what it is to the node."""

    index: int
    label: str
    values: np.ndarray


@dataclass(frozen=True)
class NodeChange:
    """What becomes of one node; one that is ``dropped`` hands on what it reads as it is.

    ``groups``: how many a convolution has from now on, where that changes.
    """

    ref: NodeRef
    constants: tuple[NewConstant, ...] = ()
    dropped: bool = False
    groups: int | None = None


class Rule(Protocol):
    """How the channels that an operator reads and those that it makes depend on each other."""

    def relate(self, region: ChannelRegion, ref: NodeRef) -> None:
        """Give tensors of the node the orders that follow from those of its others.

        Raises:
            CannotReorderError: the node cannot take the orders that its tensors have.
        """

    def change(self, region: ChannelRegion, ref: NodeRef) -> NodeChange:
        """What the node must become, once all orders are known; raises as :meth:`relate`."""


@dataclass(frozen=True)
class Operators:
    """The operators that can take part: rules by operator, and what must not be touched.

    ``leave`` names nodes that are to stay as they are.
    """

    rules: dict[str, Rule]
    leave: Collection[str] = ()

    def rule(self, ref: NodeRef) -> Rule:
        """The rule of a node; raises CannotReorderError where there is none."""
        if ref.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise CannotReorderError(f"{ref.label} quantizes")
        known = self.rules.get(ref.op_type) if ref.is_standard else None
        if known is None:
            raise CannotReorderError(f"{ref.label} may depend on the order of channels")
        if ref.is_parametrized:
            raise CannotReorderError(f"{ref.label} has attributes that callers set")
        if ref.proto.name in self.leave:
            raise CannotReorderError(f"{ref.label} belongs to a site of an earlier run")
        return known


@dataclass(eq=False)
class ChannelRegion:
    """Tensors with their new orders, and the nodes that make or read them, in one scope.

    All tensors of a region have one number of dimensions, ``rank``, which is known from the
    convolutions among the nodes; channels are axis 1. ``channels``: how many every tensor had, where orders leave
    some of them out.
    """

    view: GraphView
    operators: Operators
    scope: Scope
    rank: int | None = None
    channels: int | None = None
    tensors: list[gs.Tensor] = field(default_factory=list)
    nodes: dict[int, NodeRef] = field(default_factory=dict)
    _orders: dict[int, Order] = field(default_factory=dict)
    _pending: list[gs.Tensor] = field(default_factory=list)

    def grow(self, tensor: gs.Tensor, order: Order) -> None:
        """Give ``tensor`` the order, and all others what follows from it.

        Raises:
            CannotReorderError: something that takes part cannot; the region is of no use then.
        """
        self.assign(tensor, order)
        while self._pending:
            current = self._pending.pop()
            producer = self.view.producer(current)
            if producer is None:
                raise CannotReorderError(f"'{current.name}' is an input of the graph")
            for ref in (producer, *self.view.consumers(current)):
                if ref.scope.holder is not self.scope.holder:
                    raise CannotReorderError(f"{ref.label} lies in another scope")
                self.nodes[id(ref.node)] = ref
                self.operators.rule(ref).relate(self, ref)

    def assign(self, tensor: gs.Tensor, order: Order) -> None:
        """Note the order of a tensor; what follows from it is still to be seen."""
        known = self._orders.get(id(tensor))
        if known is not None:
            if known != order:
                raise CannotReorderError(f"'{tensor.name}' would need two orders at once")
            return
        if self.view.is_output(tensor):
            raise CannotReorderError(f"'{tensor.name}' is an output of the graph")
        if tensor.name in _annotated(self.scope):
            raise CannotReorderError(f"'{tensor.name}' has a quantization annotation")
        self._orders[id(tensor)] = order
        self.tensors.append(tensor)
        self._pending.append(tensor)

    def order_of(self, tensor: gs.Tensor) -> Order | None:
        """The new order of a tensor; ``None`` where it stays as it is."""
        return self._orders.get(id(tensor))

    def new_order(self, tensor: gs.Tensor) -> Order:
        """The new order of a tensor of the region; KeyError for any other."""
        return self._orders[id(tensor)]

    def count(self, order: Order) -> int:
        """The channels that there were before they got this order."""
        return len(order) if self.channels is None else self.channels

    def constant(self, ref: NodeRef, index: int) -> ConstantRef | None:
        """An input of a node as a constant; ``None`` if it is left out or computed."""
        inputs = ref.node.inputs
        if index >= len(inputs) or not inputs[index].name:
            return None
        return self.view.constant(inputs[index], ref.scope)

    def see_rank(self, ref: NodeRef, rank: int) -> None:
        """Note how many dimensions a node's tensors have."""
        if self.rank not in (None, rank):
            raise CannotReorderError(f"{ref.label} has tensors of {rank} dimensions among others")
        self.rank = rank

    def changes(self) -> list[NodeChange]:
        """What becomes of each node, in the order of the graph; raises CannotReorderError."""
        refs = sorted(self.nodes.values(), key=lambda ref: ref.index)
        return [self.operators.rule(ref).change(self, ref) for ref in refs]


def _annotated(scope: Scope) -> set[str]:
    if not isinstance(scope.holder, onnx.GraphProto):
        return set()
    return {str(entry.tensor_name) for entry in scope.holder.quantization_annotation}
