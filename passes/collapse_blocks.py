"""Putting one pointwise convolution in the place of a whole residual block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnx_igpc.graph.edit import GraphEdit, SubgraphBuilder
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import opset_version
from onnx_igpc.graph.view import GraphView
from onnx_igpc.passes.base import Pass, PassResult
from onnx_igpc.sites.find import FoundSites, find_sites
from onnx_igpc.sites.residual_blocks import ResidualBlock, find_blocks


@dataclass(frozen=True)
class BlockWeights:
    """y = M x + b in the place of a block: M, shape (C, C), and b, (C,).

    ``error``: E|y - (M x + b)|^2 as a part of the variance of what the block adds to x, if it is known.
    """

    matrix: np.ndarray
    bias: np.ndarray
    error: float | None = None


@dataclass(frozen=True, eq=False)
class Collapsed:
    """A block that is gone, ``node`` the convolution in its place, ``weights`` as they were written."""

    block: ResidualBlock
    node: str
    weights: BlockWeights


@dataclass
class CollapsedBlocks(PassResult):
    """``blocks`` has those that were collapsed, in the order of the graph."""

    blocks: list[Collapsed] = field(default_factory=list)


class CollapseBlocks(Pass):
    """Replace residual blocks y = x + f(x) by y = M x + b.

    Rules:

    * The blocks are those of :func:`~onnx_igpc.sites.residual_blocks.find_blocks`; those named in ``weights``
      are replaced.
    * The convolution takes the place of the Add and makes the tensor that it made, of that name; its own name is
      derived from the Add's. What the Add alone read is removed.
    """

    def __init__(
        self, weights: Mapping[str, BlockWeights], found: FoundSites | None = None
    ) -> None:
        self.weights = weights
        self.found = found

    def run(self, model: OpenModel) -> CollapsedBlocks:
        found = self.found or find_sites(GraphView(model))
        edit, result = GraphEdit(model), CollapsedBlocks()
        for block in find_blocks(found):
            weights = self.weights.get(block.name)
            if weights is None:
                result.kept[block.name] = "no weights were given for it"
                continue
            result.blocks.append(_collapse(model, edit, block, weights))
            result.changed.append(block.name)
        result.add_removed(edit.apply())
        return result


def _collapse(
    model: OpenModel, edit: GraphEdit, block: ResidualBlock, weights: BlockWeights
) -> Collapsed:
    ones = [1] * block.spatial_rank
    matrix = weights.matrix.astype(block.dtype)
    base, holder = f"{block.name}/collapsed", block.add.scope.holder
    inputs = [
        block.input,
        edit.constant(holder, f"{base}/weight", matrix.reshape(*matrix.shape, *ones)),
        edit.constant(holder, f"{base}/bias", weights.bias.astype(block.dtype)),
    ]
    builder = SubgraphBuilder(edit.names, block.add.proto)
    name = builder.fresh(base)
    builder.add("Conv", inputs, block.output, name, kernel_shape=ones)
    edit.replace(block.add, builder.build(opset_version(model.proto)))
    return Collapsed(block, name, weights)
