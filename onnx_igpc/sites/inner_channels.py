"""Channels between two convolutions, of which some can be left out.

A convolution makes them, what works on each by itself (activations, BatchNormalization, depthwise convolutions)
hands them on, and a pointwise convolution reads them: a narrower one can make up for those that are gone, as nearly
as the others tell them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_igpc.graph.channels.region import CannotReorderError, ChannelRegion, Operators
from onnx_igpc.graph.channels.rules import selection_rules
from onnx_igpc.graph.view import GraphView, NodeRef
from onnx_igpc.sites.find import FoundSites, Rewritable


@dataclass(frozen=True, eq=False)
class InnerChannels:
    """The channels that ``reader`` reads and nothing else, of the main graph; ``maker`` makes them."""

    reader: Rewritable
    maker: NodeRef

    @property
    def name(self) -> str:
        """That of the convolution that reads them."""
        return self.reader.name

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.reader.in_channels


def find_inner_channels(found: FoundSites) -> list[InnerChannels]:
    """Of all sites that may be rewritten, in the order of the graph, the channels that can be left out.

    A pointwise convolution that makes them must be one that may be rewritten, too.
    """
    fixed = {id(site.ref.node) for site in found.all if not isinstance(site, Rewritable)}
    inner = []
    for reader in found.rewritable:
        if not reader.ref.scope.is_main or reader.ref.op_type != "Conv" or reader.in_channels < 2:
            continue
        try:
            region = selection(found.view, reader.ref, reader.in_channels, (0,))
            maker = _maker(region, reader.ref)
        except CannotReorderError:
            continue
        if id(maker.node) not in fixed:
            inner.append(InnerChannels(reader, maker))
    return inner


def selection(
    view: GraphView, reader: NodeRef, channels: int, kept: Sequence[int]
) -> ChannelRegion:
    """The part of the graph that changes where a convolution reads only the ``kept`` ones of its channels.

    Raises:
        CannotReorderError: something that takes part cannot.
    """
    region = ChannelRegion(view, Operators(selection_rules()), reader.scope, channels=channels)
    region.grow(reader.node.inputs[0], tuple(kept))
    region.changes()
    return region


def _maker(region: ChannelRegion, reader: NodeRef) -> NodeRef:
    """The convolution that makes the channels; CannotReorderError where several do, or others read them."""
    dense = [
        ref
        for ref in region.nodes.values()
        if ref.op_type == "Conv" and int(ref.attribute("group", 1)) == 1
    ]
    makers = [ref for ref in dense if region.order_of(ref.node.outputs[0]) is not None]
    readers = [ref for ref in dense if region.order_of(ref.node.inputs[0]) is not None]
    if len(makers) != 1 or [ref.node for ref in readers] != [reader.node]:
        raise CannotReorderError("several convolutions make or read the channels")
    if makers[0].node is reader.node:
        raise CannotReorderError("it reads what it makes")
    return makers[0]
