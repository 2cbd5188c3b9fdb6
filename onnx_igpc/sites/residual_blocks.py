"""Residual blocks y = x + f(x), which a single pointwise convolution can stand for.

Where f does little, y is nearly a linear map of the channels of x, position by position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_igpc.graph.shape_inference import ShapeTracer
from onnx_igpc.graph.view import GraphView, NodeRef
from onnx_igpc.sites.find import FoundSites, Rewritable

_RANKS = range(3, 6)


@dataclass(frozen=True, eq=False)
class ResidualBlock:
    """An ``Add`` of the main graph and what it adds to x, which nothing else reads.

    ``name`` is the Add's; ``input`` is x and ``output`` y, both of shape (N, channels, ...) with
    ``spatial_rank`` further dimensions. ``inner`` are the nodes of f, ``sites`` its pointwise convolutions.
    """

    name: str
    add: NodeRef
    input: str
    output: str
    channels: int
    spatial_rank: int
    dtype: np.dtype
    inner: tuple[NodeRef, ...]
    sites: tuple[Rewritable, ...]


def find_blocks(found: FoundSites) -> list[ResidualBlock]:
    """The residual blocks of the main graph, in its order; of blocks inside each other the inner ones.

    A block has pointwise convolutions inside, and all of them may be rewritten; f depends on x alone,
    and x and y have the same shape, as far as it is known for the shapes that are assumed of the inputs.

    Raises:
        ModelError, UsageError: as :class:`~onnx_igpc.graph.shape_inference.ShapeTracer`.
    """
    view = found.view
    additions = [
        ref
        for ref in view.nodes
        if ref.scope.is_main
        and ref.op_type == "Add"
        and ref.is_standard
        and len(ref.node.inputs) == 2
    ]
    if not additions:
        return []
    shapes = {
        name: value.shape
        for traced in ShapeTracer(view.model).trace().nodes
        for name, value in zip(traced.node.output, traced.outputs, strict=True)
    }
    shapes |= ShapeTracer(view.model).input_shapes
    blocks = [block for ref in additions if (block := _block(found, ref, shapes)) is not None]
    adding = {id(block.add.node) for block in blocks}
    return [block for block in blocks if adding.isdisjoint(id(each.node) for each in block.inner)]


def _block(
    found: FoundSites, add: NodeRef, shapes: dict[str, tuple[int, ...] | None]
) -> ResidualBlock | None:
    first, second = add.node.inputs
    output = str(add.proto.output[0])
    for x, branch in ((first, second), (second, first)):
        shape = shapes.get(str(x.name))
        if shape is None or shape != shapes.get(str(branch.name)) or shape != shapes.get(output):
            continue
        inner = _inner(found.view, branch, x, add)
        if not inner or not _depends_on_alone(found.view, inner, x):
            continue
        within = {id(ref.node) for ref in inner}
        own = [site for site in found.all if id(site.ref.node) in within]
        sites = tuple(site for site in own if isinstance(site, Rewritable))
        if not sites or len(sites) < len(own) or len(shape) not in _RANKS:
            continue
        if len({site.dtype for site in sites}) > 1:
            continue
        return ResidualBlock(
            add.name,
            add,
            str(x.name),
            output,
            shape[1],
            len(shape) - 2,
            sites[0].dtype,
            inner,
            sites,
        )
    return None


def _inner(view: GraphView, branch: gs.Tensor, x: gs.Tensor, add: NodeRef) -> tuple[NodeRef, ...]:
    """The nodes behind x whose outputs serve nothing but the addition of ``branch``, in the graph's order."""
    inner: dict[int, NodeRef] = {}
    dead = {id(add.node)}
    pending = [branch]
    while pending:
        tensor = pending.pop()
        maker = view.producer(tensor) if tensor is not x else None
        if maker is None or id(maker.node) in dead or not maker.scope.is_main:
            continue
        if all(_serves(view, made, dead) for made in maker.node.outputs):
            dead.add(id(maker.node))
            inner[maker.index] = maker
            pending += maker.node.inputs
    return tuple(inner[index] for index in sorted(inner))


def _serves(view: GraphView, tensor: gs.Tensor, dead: set[int]) -> bool:
    """Whether all that reads ``tensor`` is in ``dead``, and it is no output."""
    readers = view.consumers(tensor)
    return not view.is_output(tensor) and all(id(each.node) in dead for each in readers)


def _depends_on_alone(view: GraphView, inner: tuple[NodeRef, ...], x: gs.Tensor) -> bool:
    """Whether x, constants and shapes of x are all that is read from outside, x among them."""
    if any(_has_graphs(ref) for ref in inner):
        return False
    within = {id(ref.node) for ref in inner}
    read = [
        tensor
        for ref in inner
        for tensor in _reads(ref)
        if not any(id(maker) in within for maker in tensor.inputs)
    ]
    outside = [each for each in read if view.constant(each, inner[0].scope) is None]
    return bool(outside) and all(each is x for each in outside)


def _reads(ref: NodeRef) -> Iterator[gs.Tensor]:
    yield from (tensor for tensor in ref.node.inputs if tensor.name)


def _has_graphs(ref: NodeRef) -> bool:
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(attribute.type in kinds for attribute in ref.proto.attribute)
