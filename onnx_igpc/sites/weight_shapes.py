"""The shape of a convolution's weight, as far as it is known without running the model."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_igpc.graph.traversal import Scope
from onnx_igpc.graph.view import ConstantRef, GraphView, NodeRef

Shape = tuple[int, ...]
# Operators whose output has the shape of their first input.
_SAME_SHAPE = frozenset(
    {
        "Identity",
        "Cast",
        "CastLike",
        "QuantizeLinear",
        "DequantizeLinear",
        "Clip",
        "Relu",
        "LeakyRelu",
        "Tanh",
        "Sigmoid",
        "Abs",
        "Neg",
        "Sign",
        "Round",
        "Floor",
        "Ceil",
        "Sqrt",
        "Exp",
        "Log",
        "Reciprocal",
        "Erf",
        "Softmax",
        "LpNormalization",
        "Dropout",
        "Trilu",
    }
)
_BROADCAST = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Where", "Sum", "Mean"})
_KEEPDIMS = frozenset({"ReduceMean", "ReduceSum", "ReduceL2", "ReduceL1", "ReduceMax", "ReduceMin"})
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_DEEPEST = 64


def weight_shapes(view: GraphView, ref: NodeRef, position: int) -> frozenset[Shape] | None:
    """The shapes that input ``position`` of a node can have: several in a function that is called with
    several weights, ``None`` where not all of them are known.
    """
    return _shapes(view, ref.node.inputs[position], ref.scope, 0)


def constant_shape(constant: ConstantRef) -> Shape:
    """The shape of a constant as its reader sees it."""
    return tuple(constant.values().shape) if constant.chain else tuple(constant.root.dims)


def sparse_weight(tensor: gs.Tensor, scope: Scope) -> onnx.SparseTensorProto | None:
    """The sparse initializer that ``tensor`` is, if it is one."""
    for holder in (scope.holder, *scope.parents):
        if isinstance(holder, onnx.GraphProto):
            for sparse in holder.sparse_initializer:
                if sparse.values.name == tensor.name:
                    found: onnx.SparseTensorProto = sparse
                    return found
    return None


def _shapes(
    view: GraphView, tensor: gs.Tensor, scope: Scope, depth: int
) -> frozenset[Shape] | None:
    if depth > _DEEPEST:
        return None
    if (constant := view.constant(tensor, scope)) is not None:
        return frozenset({constant_shape(constant)})
    if (sparse := sparse_weight(tensor, scope)) is not None:
        return frozenset({tuple(sparse.dims)})
    declared = tensor.shape
    if declared and all(isinstance(dim, (int, np.integer)) for dim in declared):
        return frozenset({tuple(int(dim) for dim in declared)})
    producer = view.producer(tensor)
    if producer is not None:
        return _made_by(view, producer, depth + 1)
    if isinstance(scope.holder, onnx.FunctionProto):
        return _given(view, tensor, scope.holder, depth + 1)
    return None


def _given(
    view: GraphView, tensor: gs.Tensor, function: onnx.FunctionProto, depth: int
) -> frozenset[Shape] | None:
    """What the callers of a function give for one of its parameters."""
    if tensor.name not in function.input:
        return None
    position = list(function.input).index(tensor.name)
    found: frozenset[Shape] = frozenset()
    for caller in view.callers(function):
        if position >= len(caller.node.inputs):
            return None
        shapes = _shapes(view, caller.node.inputs[position], caller.scope, depth)
        if shapes is None:
            return None
        found |= shapes
    return found or None


def _made_by(view: GraphView, producer: NodeRef, depth: int) -> frozenset[Shape] | None:
    inputs, kind = producer.node.inputs, producer.op_type
    if not inputs or producer.proto.domain not in _DOMAINS:
        return _stored_sparse(producer)
    if kind in _BROADCAST:
        return _broadcast([_shapes(view, each, producer.scope, depth) for each in inputs])
    first = _shapes(view, inputs[0], producer.scope, depth)
    if kind in _SAME_SHAPE or first is None:
        return first if kind in _SAME_SHAPE else None
    try:
        if kind == "Transpose":
            return frozenset(_transposed(shape, producer.attribute("perm")) for shape in first)
        if kind == "Reshape" and len(inputs) > 1:
            target = view.constant(inputs[1], producer.scope)
            if target is None:
                return None
            return frozenset(_reshaped(s, target.values().reshape(-1).tolist()) for s in first)
    except (LookupError, TypeError, ValueError, ZeroDivisionError):
        return None
    if kind in _KEEPDIMS and producer.attribute("keepdims", 1) == 1:
        # Broadcast against what was reduced, any of its dimensions may count as 1.
        return frozenset((1,) * len(shape) for shape in first)
    return None


def _stored_sparse(producer: NodeRef) -> frozenset[Shape] | None:
    if producer.op_type != "Constant" or not producer.is_standard:
        return None
    sparse = producer.attribute("sparse_value")
    return frozenset({tuple(sparse.dims)}) if sparse is not None else None


def _broadcast(operands: list[frozenset[Shape] | None]) -> frozenset[Shape] | None:
    known: list[Shape] = []
    for operand in operands:
        if operand is None or len(operand) != 1:
            return None
        known += operand
    try:
        return frozenset({tuple(np.broadcast_shapes(*known))})
    except ValueError:
        return None


def _transposed(shape: Shape, order: list[int] | None) -> Shape:
    return tuple(shape[axis] for axis in (order or range(len(shape))[::-1]))


def _reshaped(shape: Shape, target: list[int]) -> Shape:
    sizes = [shape[i] if size == 0 else int(size) for i, size in enumerate(target)]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(shape) // rest
    return tuple(sizes)
