"""What another order of channels changes in a convolution.

A convolution absorbs an order within its groups and hands on an order of whole groups; a depthwise
one is the case of one channel per group, a dense one that of one group.
"""

from __future__ import annotations

import numpy as np

from onnx_igpc.graph.channels.region import (
    CannotReorderError,
    ChannelRegion,
    NewConstant,
    NodeChange,
)
from onnx_igpc.graph.view import ConstantRef, NodeRef
from onnx_igpc.layout.permutations import Order, block_order, is_identity, spread_order


class Convolution:
    """Conv: orders within groups go into the kernel, an order of whole groups is handed on."""

    def relate(self, region: ChannelRegion, ref: NodeRef) -> None:
        constant = _constant(region, ref, 1, "has no constant weight")
        groups = int(ref.attribute("group", 1))
        shape = constant.values().shape if constant.chain else tuple(constant.root.dims)
        region.see_rank(ref, len(shape))
        read, made = self._orders(region, ref)
        before, after = shape[1] * groups, shape[0]
        of_read = _group_order(ref, read, before, groups)
        of_made = _group_order(ref, made, after, groups)
        if of_read and of_made and of_read != of_made:
            raise CannotReorderError(f"{ref.label} would need two orders of its groups at once")
        moved = of_read or of_made
        if moved is None or is_identity(moved):
            return
        if read is None:
            region.assign(ref.node.inputs[0], spread_order(moved, before // groups))
        if made is None:
            region.assign(ref.node.outputs[0], spread_order(moved, after // groups))

    def _orders(self, region: ChannelRegion, ref: NodeRef) -> tuple[Order | None, Order | None]:
        return region.order_of(ref.node.inputs[0]), region.order_of(ref.node.outputs[0])

    def change(self, region: ChannelRegion, ref: NodeRef) -> NodeChange:
        read, made = self._orders(region, ref)
        kernel = _constant(region, ref, 1, "has no constant weight").values()
        groups = int(ref.attribute("group", 1))
        changed = kernel if made is None else kernel[list(made)]
        if read is not None:
            changed = _reorder_within_groups(changed, read, groups)
        found = []
        if not np.array_equal(changed, kernel):
            found.append(NewConstant(1, "weight", changed))
        if made is not None and ref.has_input(2):
            bias = _constant(region, ref, 2, "computes its bias at run time")
            found.append(NewConstant(2, "bias", bias.values()[list(made)]))
        return NodeChange(ref, tuple(found))


class SelectingConvolution:
    """Conv where channels are left out: a dense one goes without their filters or kernel channels, a depthwise one
    hands them on."""

    def relate(self, region: ChannelRegion, ref: NodeRef) -> None:
        constant = _constant(region, ref, 1, "has no constant weight")
        shape = constant.values().shape if constant.chain else tuple(constant.root.dims)
        region.see_rank(ref, len(shape))
        groups = int(ref.attribute("group", 1))
        if groups == 1:
            self._check_dense(region, ref, shape)
            return
        if groups != region.channels or shape[0] != groups:
            raise CannotReorderError(f"{ref.label} has groups of several channels")
        taken = region.order_of(ref.node.inputs[0]) or region.order_of(ref.node.outputs[0])
        assert taken is not None, "a node of the region touches one of its tensors"
        region.assign(ref.node.inputs[0], taken)
        region.assign(ref.node.outputs[0], taken)

    @staticmethod
    def _check_dense(region: ChannelRegion, ref: NodeRef, shape: tuple[int, ...]) -> None:
        """A constant may spread one channel over several, in between."""
        for tensor, channels in ((ref.node.inputs[0], shape[1]), (ref.node.outputs[0], shape[0])):
            if region.order_of(tensor) is not None and channels != region.channels:
                raise CannotReorderError(f"{ref.label} has another number of channels")

    def change(self, region: ChannelRegion, ref: NodeRef) -> NodeChange:
        read, made = region.order_of(ref.node.inputs[0]), region.order_of(ref.node.outputs[0])
        depthwise = int(ref.attribute("group", 1)) != 1
        kernel = _constant(region, ref, 1, "has no constant weight").values()
        if read is not None and not depthwise:
            kernel = kernel[:, list(read)]
        if made is None:
            return NodeChange(ref, (NewConstant(1, "weight", kernel),))
        found = [NewConstant(1, "weight", kernel[list(made)])]
        if ref.has_input(2):
            bias = _constant(region, ref, 2, "computes its bias at run time")
            found.append(NewConstant(2, "bias", bias.values()[list(made)]))
        return NodeChange(ref, tuple(found), groups=len(made) if depthwise else None)


def _constant(region: ChannelRegion, ref: NodeRef, index: int, otherwise: str) -> ConstantRef:
    constant = region.constant(ref, index)
    if constant is None:
        raise CannotReorderError(f"{ref.label} {otherwise}")
    return constant


def _group_order(ref: NodeRef, order: Order | None, channels: int, groups: int) -> Order | None:
    """The order of the groups that an order of channels amounts to."""
    if order is None:
        return None
    if len(order) != channels:
        raise CannotReorderError(f"{ref.label} has another number of channels")
    found = block_order(order, groups)
    if found is None:
        raise CannotReorderError(f"{ref.label} has {groups} groups, which the order would mix")
    return found


def _reorder_within_groups(kernel: np.ndarray, read: Order, groups: int) -> np.ndarray:
    """The kernel for input channels that lie in the order ``read``; filters stay where they are."""
    width = kernel.shape[1]
    filters = kernel.shape[0] // groups
    parts = []
    for group in range(groups):
        order = [channel % width for channel in read[group * width : (group + 1) * width]]
        parts.append(kernel[group * filters : (group + 1) * filters, order])
    return np.concatenate(parts)
