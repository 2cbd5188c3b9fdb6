"""The main graph cut in two before a node: which tensors cross the cut, and the part between two cuts.

Nodes are in topological order, so that everything before a position can run before the rest. A tensor
crosses the cut if it is made before and read behind it. What depends on no input of the model, and
what is no tensor but a sequence of them, never crosses: the nodes that make it are copied to where it
is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_igpc.graph.edit import IR_WITH_FREE_INITIALIZERS
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import subgraphs

_RANDOM = frozenset({"RandomNormal", "RandomUniform"})
_NO_TENSOR = frozenset(
    {
        "Optional",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceMap",
        "SplitToSequence",
    }
)
# Their outputs depend on the shape of their input alone, which a rewrite does not change.
_SHAPE_ONLY = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class DenseWeight:
    """What a convolution applies in the place of its own weight: M, shape (F, C), and b, (F,)."""

    matrix: np.ndarray
    bias: np.ndarray | None
    spatial_rank: int = 2


@dataclass(frozen=True)
class TensorType:
    """Type of a tensor that crosses a cut; dimensions that differ from batch to batch are None."""

    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...]

    def merged(self, other: TensorType) -> TensorType:
        """The type of both."""
        if len(self.shape) != len(other.shape):
            return TensorType(self.dtype, (None,) * len(self.shape))
        pairs = zip(self.shape, other.shape, strict=True)
        return TensorType(self.dtype, tuple(a if a == b else None for a, b in pairs))


def input_types(model: OpenModel) -> dict[str, TensorType]:
    """The types of what the model is fed, which its parts can begin with."""
    return {
        spec.name: TensorType(
            spec.dtype, tuple(dim if isinstance(dim, int) else None for dim in spec.shape)
        )
        for spec in model_inputs(model.proto)
    }


class GraphCuts:
    """The main graph of a model, seen from its nodes' positions.

    Args:
        model: the model; it must not be edited while this is in use.
        targets: positions of nodes. Only what they depend on is ever live or run.
    """

    def __init__(self, model: OpenModel, targets: Iterable[int]) -> None:
        self.model = model
        graph = model.proto.graph
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._sparse = {each.values.name: each for each in graph.sparse_initializer}
        self.inputs = {value.name for value in graph.input} - self._stored.keys()
        self._reads = [tuple(outer_reads(node)) for node in self.nodes]
        self._maker = {
            name: index for index, node in enumerate(self.nodes) for name in node.output if name
        }
        self._copied = self._find_copied()
        self._needed = self._ancestors(targets)

    def _find_copied(self) -> set[int]:
        """Nodes that are copied to where their output is read; see the module."""
        copied: set[int] = set()
        varying = set(self.inputs)
        for index, node in enumerate(self.nodes):
            if not varying.isdisjoint(self._reads[index]) or node.op_type in _RANDOM:
                varying.update(node.output)
                if node.op_type in _NO_TENSOR:
                    copied.add(index)
            else:
                copied.add(index)
        return copied

    def _ancestors(self, targets: Iterable[int]) -> set[int]:
        pending = list(targets)
        found: set[int] = set()
        while pending:
            index = pending.pop()
            if index not in found:
                found.add(index)
                pending += [self._maker[n] for n in self._reads[index] if n in self._maker]
        return found

    def can_cross(self, tensor: str) -> bool:
        """Whether ``tensor`` depends on an input and is a tensor at all."""
        return tensor in self.inputs or self._maker.get(tensor, -1) not in {-1, *self._copied}

    def live(self, position: int) -> set[str]:
        """Tensors that cross the cut before the node at ``position``."""
        crossing: set[str] = set()
        for index in self._needed:
            if index >= position and index not in self._copied:
                crossing |= self._crossing_reads(index)
        return {name for name in crossing if self._maker.get(name, -1) < position}

    def _crossing_reads(self, index: int) -> set[str]:
        """The tensors that can cross among what a node reads, also through nodes copied to it."""
        reads: set[str] = set()
        pending = list(self._reads[index])
        seen: set[str] = set()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            if self.can_cross(name):
                reads.add(name)
            elif name in self._maker:
                pending += self._reads[self._maker[name]]
        return reads

    def changed_by(self, replaced: Iterable[int]) -> set[str]:
        """Tensors whose values change when the nodes at these positions get another weight."""
        positions = set(replaced)
        changed: set[str] = set()
        for index, node in enumerate(self.nodes):
            if index in positions or not (
                changed.isdisjoint(self._reads[index]) or node.op_type in _SHAPE_ONLY
            ):
                changed.update(node.output)
        return changed

    def extract(
        self,
        outputs: Sequence[str],
        given: Mapping[str, TensorType],
        replaced: Mapping[int, DenseWeight] | None = None,
    ) -> tuple[OpenModel, list[str]]:
        """The part of the graph that makes ``outputs`` from tensors that are ``given``.

        ``replaced`` are weights to use in the place of those of the convolutions at these positions.
        Returns the part as a model of its own, and the names of the given tensors that it reads.
        """
        indices, reads = self._between(outputs, given)
        replaced = replaced or {}
        proto = onnx.ModelProto(
            ir_version=max(self.model.proto.ir_version, IR_WITH_FREE_INITIALIZERS)
        )
        proto.opset_import.extend(self.model.proto.opset_import)
        proto.functions.extend(self.model.proto.functions)
        graph = proto.graph
        graph.name = "between_cuts"
        stored: set[str] = set()
        for index in indices:
            node = graph.node.add()
            node.CopyFrom(self.nodes[index])
            if index in replaced:
                graph.initializer.extend(self.replace(node, replaced[index]))
            stored.update(outer_reads(node))
        graph.initializer.extend(self._stored[n] for n in sorted(stored & self._stored.keys()))
        graph.sparse_initializer.extend(
            self._sparse[name] for name in sorted(stored & self._sparse.keys())
        )
        for name in reads:
            kind = given[name]
            elem_type = onnx.helper.np_dtype_to_tensor_dtype(kind.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, elem_type, kind.shape))
        for name in outputs:
            graph.output.add().name = name
        return OpenModel(proto, self.model.data, self.model.path), reads

    def _between(
        self, outputs: Sequence[str], given: Mapping[str, TensorType]
    ) -> tuple[list[int], list[str]]:
        """Nodes that make ``outputs``, in order, and the given tensors that they read."""
        indices: set[int] = set()
        reads: dict[str, None] = {}
        pending = list(outputs)
        while pending:
            name = pending.pop()
            if name in given:
                reads[name] = None
                continue
            index = self._maker.get(name)
            if index is not None and index not in indices:
                indices.add(index)
                pending += self._reads[index]
        return sorted(indices), sorted(reads)

    def replace(self, node: onnx.NodeProto, weight: DenseWeight) -> Iterator[onnx.TensorProto]:
        """Give a convolution another weight and bias, and yield both as initializers."""
        values = [weight.matrix.reshape(*weight.matrix.shape, *[1] * weight.spatial_rank)]
        values += [] if weight.bias is None else [weight.bias]
        del node.input[1:]
        for part, array in zip(("matrix", "bias"), values, strict=False):
            name = f"{node.output[0]}/{part}"
            while name in self._maker or name in self._stored or name in self.inputs:
                name += "_"
            node.input.append(name)
            yield numpy_helper.from_array(np.ascontiguousarray(array), name)


def outer_reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, with those that its sub-graphs take from outside; each once."""
    yield from dict.fromkeys(name for name in node.input if name)
    for _, graph in subgraphs(node):
        own = {value.name for value in graph.input}
        own |= {tensor.name for tensor in graph.initializer}
        own |= {each.values.name for each in graph.sparse_initializer}
        own.update(name for inner in graph.node for name in inner.output)
        read = [name for inner in graph.node for name in outer_reads(inner)]
        read += [value.name for value in graph.output]
        yield from (name for name in dict.fromkeys(read) if name not in own)
