"""Parameters and multiply-accumulates of a model, counted on its graph.

*Parameters* are the elements of stored float tensors that an output needs, each tensor once:
initializers and Constant nodes, in sub-graphs and function bodies too, and the integer weights of
quantized models (read by DequantizeLinear and by quantized convolutions and products). Not
parameters are the mean and variance of BatchNormalization, tensors of one element unless a layer of
one filter learns them, tensors that steer an operator (scales of Resize, bounds of Clip, scales of
quantization, ...) and the initializers that the model's metadata lists as a JSON array under
``onnx_igpc.fixed_tensors``.

*MACs* are the multiplications of convolutions and matrix products for the assumed input shapes.
Of an If whose condition is not known the branch with more MACs counts, the body of a Loop or
Scan counts once; ``notes`` says where. What depends on no input is computed once and costs nothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx
from onnx import TensorProto

from onnx_igpc.errors import ModelError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.shape_inference import ShapeTracer, Trace, TracedNode
from onnx_igpc.graph.shape_values import Root, Value

FIXED_TENSORS_KEY = "onnx_igpc.fixed_tensors"

_FLOAT_TYPES = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
)
# Inputs by operator that steer it or hold statistics.
_NOT_PARAMETERS: Mapping[str, Sequence[int]] = {
    "BatchNormalization": (3, 4),
    "Clip": (1, 2),
    "DequantizeLinear": (1, 2),
    "Dropout": (1, 2),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QuantizeLinear": (1, 2),
    "Resize": (1, 2, 3),
    "Shape": (0,),
    "Size": (0,),
    "Upsample": (1,),
}
# Inputs that are learned even where they hold a single element (a layer of one filter).
_LEARNED: Mapping[str, Sequence[int]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
}
# Integer weights by operator and index of the input.
_INTEGER_WEIGHTS: Mapping[str, Sequence[int]] = {
    "ConvInteger": (1,),
    "DequantizeLinear": (0,),
    "MatMulInteger": (1,),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3,),
}
# Index of the weight, or of the second factor, of what is counted.
_WEIGHT_INDEX = {
    "Conv": 1,
    "ConvInteger": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
}
_NOT_COUNTED = frozenset({"Attention", "DeformConv", "DFT", "Einsum", "GRU", "LSTM", "RNN", "STFT"})


@dataclass(frozen=True)
class NodeCost:
    """One node: parameters that it reads, and MACs; ``None`` if its shapes are unknown.

    MACs of a node in a function body are those of all calls together.
    """

    op_type: str
    weights: int
    macs: int | None


@dataclass(frozen=True)
class ModelCost:
    """The counts of a model.

    Attributes:
        parameters: stored tensors' elements, each tensor once.
        macs: multiply-accumulates of one run, as far as they are known.
        nodes: the nodes that read parameters or cost MACs, by first output; a name that several
            scopes use is preceded by ``scope/``.
        input_shapes: what was assumed for the model's inputs.
        unknown: keys in ``nodes`` of the nodes whose MACs are missing from ``macs``.
        notes: what a reader must know about how ``macs`` was counted.
    """

    parameters: int
    macs: int
    nodes: Mapping[str, NodeCost]
    input_shapes: Mapping[str, tuple[int, ...]]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    _keys: Mapping[tuple[str, str], str] = field(default_factory=dict, repr=False, compare=False)
    _read: Mapping[tuple[str, str], set[Root]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def node(self, path: str, output: str) -> NodeCost | None:
        """The node in the scope ``path`` that makes ``output``; ``None`` if no output needs it."""
        key = self._keys.get((path, output))
        return self.nodes[key] if key is not None else None

    def parameters_of(self, nodes: Iterable[tuple[str, str]]) -> int:
        """Parameters that the nodes (scope, first output) read together, each tensor once."""
        read = set[Root]().union(*(self._read.get(node, set()) for node in nodes))
        return sum(root.elements for root in read)


def count(
    model: onnx.ModelProto | OpenModel, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> ModelCost:
    """Count the parameters and MACs of a model.

    Args:
        model: is not changed. Of external data only small tensors are read.
        input_shapes: shapes of inputs with dynamic dimensions, by name. Left out, an unknown first
            dimension is 1 and an unknown height, width or length 224.

    Raises:
        UsageError: a shape for an input that does not exist or that it does not fit.
        ModelError: the list of fixed tensors in the metadata is not a JSON array of names, or
            external data cannot be read.
    """
    opened = model if isinstance(model, OpenModel) else OpenModel(model)
    tracer = ShapeTracer(opened, input_shapes)
    counter = _Counter(fixed_tensors(opened.proto))
    macs = counter.add(tracer.trace())
    names = counter.names()
    return ModelCost(
        parameters=sum(root.elements for root in counter.parameters),
        macs=macs,
        nodes={names[key]: node for key, node in counter.nodes.items()},
        input_shapes=tracer.input_shapes,
        unknown=tuple(names[key] for key, node in counter.nodes.items() if node.macs is None),
        notes=tuple(dict.fromkeys(counter.notes)),
        _keys=names,
        _read=counter.read,
    )


def fixed_tensors(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the initializers that the model's metadata declares to be no parameters.

    Raises:
        ModelError: the entry is not a JSON array of names.
    """
    text = next((e.value for e in model.metadata_props if e.key == FIXED_TENSORS_KEY), "[]")
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"the metadata entry {FIXED_TENSORS_KEY} is not a JSON array of names")
    return frozenset(names)


class _Counter:
    """Adds up traces. Nodes go by (path, first output), which is the same at every call."""

    def __init__(self, fixed: frozenset[str]) -> None:
        self.parameters: set[Root] = set()
        self.nodes: dict[tuple[str, str], NodeCost] = {}
        self.notes: list[str] = []
        self._fixed = fixed
        self.read: dict[tuple[str, str], set[Root]] = {}
        self._integer_weights: set[Root] = set()
        self._learned: set[Root] = set()
        # Which stored tensors a constant was computed from.
        self._carried: dict[Value, frozenset[Root]] = {}

    def add(self, trace: Trace, continued: Sequence[Value] = ()) -> int:
        """Count every node of ``trace``; returns its MACs as far as they are known.

        Constants that the scope gives out are parameters, but for those ``continued`` outside.
        """
        total = sum(self._node(node) for node in trace.nodes)
        for output in trace.outputs:
            if output not in continued:
                self.parameters |= self._weights(output)
        return total

    def names(self) -> dict[tuple[str, str], str]:
        """The key of every node in :attr:`ModelCost.nodes`."""
        uses = Counter(output for _, output in self.nodes)
        return {
            (path, output): f"{path}/{output}" if path and uses[output] > 1 else output
            for path, output in self.nodes
        }

    def _node(self, traced: TracedNode) -> int:
        if traced.bodies:
            return self._bodies(traced)
        op_type = traced.op_type
        left_out = _NOT_PARAMETERS.get(op_type, ())
        read = [v for index, v in enumerate(traced.inputs) if v and index not in left_out]
        for index in _INTEGER_WEIGHTS.get(op_type, ()):
            if index < len(traced.inputs) and (value := traced.inputs[index]):
                self._integer_weights |= self._roots(value)
        for index in _LEARNED.get(op_type, ()):
            if index < len(traced.inputs) and (value := traced.inputs[index]):
                self._learned |= self._roots(value)
        if traced.is_constant:
            carried = frozenset[Root]().union(*(self._roots(value) for value in read))
            self._carried.update((output, carried) for output in traced.outputs)
            return 0
        weights = set[Root]().union(*(self._weights(value) for value in read))
        self.parameters |= weights
        return self._record(traced, weights)

    def _record(self, traced: TracedNode, weights: set[Root]) -> int:
        if not traced.op_type or traced.op_type in _NOT_COUNTED:
            self.notes.append(f"MACs of {traced.node.op_type} are not counted")
        macs = node_macs(traced)
        if weights or traced.op_type in _WEIGHT_INDEX:
            key = traced.path, traced.node.output[0]
            read = self.read.setdefault(key, set())
            read |= weights
            earlier = self.nodes[key].macs if key in self.nodes else 0
            total = None if macs is None or earlier is None else earlier + macs
            elements = sum(root.elements for root in read)
            self.nodes[key] = NodeCost(traced.node.op_type, elements, total)
        return macs or 0

    def _bodies(self, traced: TracedNode) -> int:
        """MACs of what a node runs; parameters are counted in an If's other branch too."""
        name = traced.node.output[0]
        if traced.op_type in ("Loop", "Scan"):
            self.notes.append(f"the body of {traced.op_type} {name!r} is counted once")
        elif len(traced.bodies) > 1 and traced.taken is None:
            self.notes.append(f"of If {name!r} the branch with more MACs is counted")
        macs = []
        for index, body in enumerate(traced.bodies):
            if traced.taken in (None, index):
                macs.append(self.add(body, traced.outputs))
            else:
                aside = _Counter(self._fixed)
                aside._carried = self._carried
                aside._integer_weights = self._integer_weights
                aside._learned = self._learned
                aside.add(body)
                self.parameters |= aside.parameters
                for key, node in aside.nodes.items():
                    self.nodes.setdefault(key, replace(node, macs=0))
                    self.read.setdefault(key, set()).update(aside.read[key])
        return max(macs)

    def _roots(self, value: Value) -> frozenset[Root]:
        if value.root is not None:
            return frozenset({value.root})
        return self._carried.get(value, frozenset())

    def _weights(self, value: Value) -> set[Root]:
        """The parameters that a constant was computed from; none if it is not constant."""
        return {
            root
            for root in self._roots(value)
            if (root.elements > 1 or root in self._learned)
            and not (root.in_main_graph and root.name in self._fixed)
            and (root.data_type in _FLOAT_TYPES or root in self._integer_weights)
        }


def node_macs(traced: TracedNode) -> int | None:
    """Multiply-accumulates of one node; 0 for operators that have none, ``None`` if unknown."""
    index = _WEIGHT_INDEX.get(traced.op_type)
    if index is None:
        return 0
    left, right = traced.inputs[0], traced.inputs[index]
    if left is None or right is None:
        return None
    out = traced.outputs[0].elements
    if traced.op_type == "ConvTranspose":
        return None if right.shape is None else _product(left.elements, right.shape[1:])
    if traced.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return None if right.shape is None else _product(out, right.shape[1:])
    # A matrix product: the length of the sums is a dimension of either factor.
    if traced.op_type == "Gemm":
        axis = next((a.i for a in traced.node.attribute if a.name == "transB"), 0)
        return None if right.shape is None else _product(out, [right.shape[axis]])
    if left.shape is not None:
        return _product(out, left.shape[-1:])
    return None if right.shape is None else _product(out, right.shape[-2:][:1])


def _product(elements: int | None, factors: Sequence[int]) -> int | None:
    return None if elements is None else elements * math.prod(factors)
