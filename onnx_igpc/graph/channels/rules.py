"""Which operators can take another order of channels, and what it changes in each.

Operators that work on each channel by itself hand the order on, those with one value per channel
have these values reordered. Gathers of channels have other indices afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_igpc.graph.channels.convolution import Convolution, SelectingConvolution
from onnx_igpc.graph.channels.region import (
    CannotReorderError,
    ChannelRegion,
    NewConstant,
    NodeChange,
    Rule,
)
from onnx_igpc.graph.channels.spatial import pads_channels, reduces_channels, resizes_channels
from onnx_igpc.graph.traversal import opset_version
from onnx_igpc.graph.view import NodeRef
from onnx_igpc.layout.permutations import Order, invert_permutation, is_identity

_UNARY = (
    *("Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu"),
    *("HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not"),
    *("Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Softplus"),
    *("Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu"),
)
_NARY = ("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "PRelu", "Sub", "Sum", "Where")
_POOLS = (
    *("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"),
)
_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
# Before this opset, operands were broadcast along an axis given as an attribute.
_OPSET_BROADCAST = 7

Check = Callable[[ChannelRegion, NodeRef], str | None]


def channel_rules(gathers: Collection[str]) -> dict[str, Rule]:
    """The rule of each operator; of Gathers only those named in ``gathers`` take part."""
    rules: dict[str, Rule] = {op: PerChannel() for op in (*_UNARY, *_POOLS)}
    rules |= {op: PerChannel(data=None, check=_old_broadcast) for op in _NARY}
    rules |= {op: PerChannel(check=reduces_channels) for op in _REDUCTIONS}
    rules |= {op: PerChannel(check=resizes_channels) for op in ("Resize", "Upsample")}
    rules |= {op: _OrderBlind() for op in ("Shape", "Size")}
    rules["Pad"] = PerChannel(check=pads_channels)
    rules["Dropout"] = PerChannel(check=_is_random)
    statistics = ("scale", "bias", "mean", "var")
    rules["BatchNormalization"] = PerChannel(vectors=statistics, check=_not_spatial)
    rules["InstanceNormalization"] = PerChannel(vectors=statistics[:2])
    rules["Conv"] = Convolution()
    rules["Gather"] = _ChannelGather(gathers)
    return rules


def selection_rules() -> dict[str, Rule]:
    """The rule of each operator where channels are left out."""
    rules = {op: rule for op, rule in channel_rules(()).items() if isinstance(rule, PerChannel)}
    return rules | {"Conv": SelectingConvolution()}


@dataclass(frozen=True)
class PerChannel:
    """An operator that makes each channel from the same channel of what it reads.

    ``data`` are the inputs with channels, ``None`` if all are, some of which may be constants that
    are broadcast. ``vectors`` label the inputs from the second on that have one value per channel.
    ``check`` gives a reason why a node cannot take part after all.
    """

    data: tuple[int, ...] | None = (0,)
    vectors: tuple[str, ...] = ()
    check: Check = lambda region, ref: None

    def relate(self, region: ChannelRegion, ref: NodeRef) -> None:
        for extra in ref.node.outputs[1:]:
            if region.view.consumers(extra) or region.view.is_output(extra):
                raise CannotReorderError(f"{ref.label} has a second output")
        tensors = self._tensors(region, ref)
        orders = [order for tensor in tensors if (order := region.order_of(tensor))]
        if not orders:
            raise CannotReorderError(f"{ref.label} reads the channels as a parameter")
        for tensor in tensors:
            region.assign(tensor, orders[0])

    def _tensors(self, region: ChannelRegion, ref: NodeRef) -> list[gs.Tensor]:
        inputs = ref.node.inputs
        read = (
            [each for i, each in enumerate(inputs) if region.constant(ref, i) is None]
            if self.data is None
            else [inputs[index] for index in self.data]
        )
        return [*read, ref.node.outputs[0]]

    def change(self, region: ChannelRegion, ref: NodeRef) -> NodeChange:
        reason = self.check(region, ref)
        if reason:
            raise CannotReorderError(f"{ref.label} {reason}")
        if any(
            region.order_of(tensor)
            for index, tensor in enumerate(ref.node.inputs)
            if self.data is not None and index not in self.data
        ):
            raise CannotReorderError(f"{ref.label} reads the channels as a parameter")
        order = region.new_order(ref.node.outputs[0])
        found = [
            self._vector(region, ref, index, order) for index in range(1, len(self.vectors) + 1)
        ]
        if self.data is None:
            found += _operands(region, ref, order)
        return NodeChange(ref, tuple(found))

    def _vector(self, region: ChannelRegion, ref: NodeRef, index: int, order: Order) -> NewConstant:
        what = self.vectors[index - 1]
        constant = region.constant(ref, index)
        values = constant.values() if constant else None
        if values is None or values.shape != (region.count(order),):
            raise CannotReorderError(f"{ref.label} computes its {what} at run time")
        return NewConstant(index, what, values[list(order)])


def _operands(region: ChannelRegion, ref: NodeRef, order: Order) -> list[NewConstant]:
    """The constant operands of an elementwise operator that differ between channels, reordered."""
    found = []
    for index in range(len(ref.node.inputs)):
        constant = region.constant(ref, index)
        if constant is None:
            continue
        values = constant.values()
        if values.size == 1 and values.ndim <= (region.rank or 0):
            continue
        if region.rank is None or values.ndim > region.rank:
            raise CannotReorderError(f"{ref.label} has an operand of unknown alignment")
        axis = values.ndim - (region.rank - 1)
        if axis < 0 or values.shape[axis] == 1:
            continue
        if values.shape[axis] != region.count(order):
            raise CannotReorderError(f"{ref.label} has an operand of another number of channels")
        found.append(NewConstant(index, f"operand{index + 1}", values.take(order, axis)))
    return found


class _OrderBlind:
    """An operator whose output does not depend on the order of channels, as Shape."""

    def relate(self, region: ChannelRegion, ref: NodeRef) -> None:
        if region.order_of(ref.node.outputs[0]):
            raise CannotReorderError(f"{ref.label} makes no channels")

    def change(self, region: ChannelRegion, ref: NodeRef) -> NodeChange:
        return NodeChange(ref)


@dataclass(frozen=True)
class _ChannelGather:
    """A Gather of channels: its indices take up the order on either side."""

    names: Collection[str]

    def relate(self, region: ChannelRegion, ref: NodeRef) -> None:
        indices = self._indices(region, ref)
        read = region.order_of(ref.node.inputs[0])
        made = region.order_of(ref.node.outputs[0])
        if made is not None and len(made) != len(indices):
            raise CannotReorderError(f"{ref.label} has another number of channels")
        if read is not None and max(indices) >= len(read):
            raise CannotReorderError(f"{ref.label} has another number of channels")

    def _indices(self, region: ChannelRegion, ref: NodeRef) -> list[int]:
        constant = region.constant(ref, 1)
        known = constant.values() if constant and ref.attribute("axis", 0) == 1 else None
        if known is None or known.ndim != 1 or not known.size or (known < 0).any():
            raise CannotReorderError(f"{ref.label} may depend on the order of channels")
        if ref.proto.name not in self.names:
            raise CannotReorderError(f"{ref.label} is the model's own")
        return [int(index) for index in known]

    def change(self, region: ChannelRegion, ref: NodeRef) -> NodeChange:
        indices: Sequence[int] = self._indices(region, ref)
        read = region.order_of(ref.node.inputs[0])
        made = region.order_of(ref.node.outputs[0])
        if read is not None:
            position = invert_permutation(read)
            indices = [position[index] for index in indices]
        if made is not None:
            indices = [indices[index] for index in made]
        if is_identity(indices) and len(indices) == channels_before(region, ref):
            return NodeChange(ref, dropped=True)
        return NodeChange(ref, (NewConstant(1, "indices", np.asarray(indices, dtype=np.int64)),))


def channels_before(region: ChannelRegion, ref: NodeRef) -> int | None:
    """The number of channels that a Gather reads, where a convolution or an order tells it."""
    pending, seen = [ref.node.inputs[0]], set()
    while pending:
        tensor = pending.pop()
        order = region.order_of(tensor)
        if order is not None:
            return len(order)
        producer = region.view.producer(tensor)
        if producer is None or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        weight = region.constant(producer, 1) if producer.op_type == "Conv" else None
        if weight is not None:
            return int(weight.values().shape[0])
        rule = region.operators.rules.get(producer.op_type)
        if isinstance(rule, PerChannel) and producer.is_standard:
            pending += producer.node.inputs if rule.data is None else producer.node.inputs[:1]
    return None


def _old_broadcast(region: ChannelRegion, ref: NodeRef) -> str | None:
    old = opset_version(region.view.model.proto, ref.scope) < _OPSET_BROADCAST
    return "broadcasts along an axis that it names" if old else None


def _not_spatial(region: ChannelRegion, ref: NodeRef) -> str | None:
    return None if ref.attribute("spatial", 1) else "has statistics for every position"


def _is_random(region: ChannelRegion, ref: NodeRef) -> str | None:
    """Dropout in training mode draws for each value by its place."""
    inputs = ref.node.inputs
    if len(inputs) < 3 or not inputs[2].name:
        return None
    constant = region.constant(ref, 2)
    return None if constant and not constant.values().any() else "may be in training mode"
