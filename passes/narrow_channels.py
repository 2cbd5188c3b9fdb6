"""Leaving out channels between two convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from onnx_igpc.fitting.narrowing import NarrowWeights
from onnx_igpc.graph.channels.region import ChannelRegion, NodeChange
from onnx_igpc.graph.dead_values import Removed
from onnx_igpc.graph.edit import GraphEdit
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import copied
from onnx_igpc.graph.view import GraphView
from onnx_igpc.passes.base import Pass, PassResult
from onnx_igpc.sites.find import FoundSites, SiteFilter, find_sites
from onnx_igpc.sites.inner_channels import InnerChannels, find_inner_channels, selection


@dataclass(frozen=True, eq=False)
class Narrowed:
    """Channels of which some are gone: how many there were, and what is left. ``output`` is what their reader makes."""

    name: str
    maker: str
    output: str
    channels: int
    weights: NarrowWeights


@dataclass
class NarrowedChannels(PassResult):
    """``narrowed`` has what was done, in the order of the graph."""

    narrowed: list[Narrowed] = field(default_factory=list)


class NarrowChannels(Pass):
    """Leave out channels that a convolution makes and a pointwise convolution reads.

    Rules:

    * The channels are those of :func:`~onnx_igpc.sites.inner_channels.find_inner_channels`; those whose reader is named
      in ``weights`` are left out but the ones that are to be kept.
    * What makes them loses filters, what hands them on loses what belongs to them (scales and biases, kernels of
      depthwise convolutions, operands), and the reader gets the weight and bias that are given.
    * Nodes and tensors keep their names. Constants that differ are new ones.
    """

    def __init__(
        self, weights: Mapping[str, NarrowWeights], found: FoundSites | None = None
    ) -> None:
        self.weights = weights
        self.found = found

    def run(self, model: OpenModel) -> NarrowedChannels:
        found = self.found or find_sites(GraphView(model), SiteFilter(include_heads=True))
        inner = {each.name: each for each in find_inner_channels(found)}
        result = NarrowedChannels()
        for name in self.weights.keys() - inner.keys():
            result.kept[name] = "none of the channels that it reads can be left out"
        # In the order of the graph: what reads fewer channels may then make fewer.
        for name, each in inner.items():
            if name not in self.weights:
                continue
            narrow = self.weights[name]
            output = str(each.reader.ref.proto.output[0])
            done = Narrowed(name, each.maker.name, output, each.channels, narrow)
            result.add_removed(_narrow(model, each, narrow))
            result.narrowed.append(done)
            result.changed.append(name)
        return result


def _narrow(model: OpenModel, inner: InnerChannels, weights: NarrowWeights) -> Removed:
    """Write one; a convolution may make some channels and read others, so that each sees the graph as it is by then."""
    view, edit = GraphView(model), GraphEdit(model)
    output = inner.reader.ref.proto.output[0]
    reader = next(ref for ref in view.nodes if output in ref.proto.output and ref.scope.is_main)
    region = selection(view, reader, inner.channels, weights.kept)
    for change in region.changes():
        edit.replace(change.ref, [_changed(edit, change, reader is change.ref, weights, inner)])
    _resize_values(model.proto.graph, region, len(weights.kept))
    return edit.apply()


def _changed(
    edit: GraphEdit, change: NodeChange, reads: bool, weights: NarrowWeights, inner: InnerChannels
) -> onnx.NodeProto:
    """A node of the region as it is from now on; the reader gets the weight and bias that are given."""
    node, holder = copied(change.ref.proto), change.ref.scope.holder
    if reads:
        site = inner.reader
        shape = [*weights.matrix.shape, *[1] * site.spatial_rank]
        given = [weights.matrix.reshape(shape).astype(site.dtype)]
        given.append(weights.bias.astype(site.dtype))
        del node.input[1:]
        for label, values in zip(("weight", "bias"), given, strict=True):
            node.input.append(edit.constant(holder, f"{change.ref.name}/narrowed_{label}", values))
        return node
    for constant in change.constants:
        name = f"{change.ref.name}/narrowed_{constant.label}"
        node.input[constant.index] = edit.constant(holder, name, constant.values)
    if change.groups is not None:
        for attribute in node.attribute:
            if attribute.name == "group":
                attribute.i = change.groups
    return node


def _resize_values(graph: onnx.GraphProto, region: ChannelRegion, kept: int) -> None:
    """Say how many channels the tensors have now where the graph says it."""
    narrow = {tensor.name for tensor in region.tensors}
    for entry in graph.value_info:
        shape = entry.type.tensor_type.shape
        if entry.name in narrow and len(shape.dim) > 1 and shape.dim[1].HasField("dim_value"):
            shape.dim[1].dim_value = kept
