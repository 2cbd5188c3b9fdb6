"""Recognising the activation that follows a layer, however the exporter spelled it.

An activation of one operator is known by its name. One of several operators (x * Sigmoid(x), the
add-clip-divide of hard-swish, the erf of GELU ...) is recognised by what it computes: the operators
between the layer and the point where their paths meet again are evaluated on a grid and compared
with the known functions. So every spelling counts, and nothing that merely looks alike does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_igpc.graph.traversal import opset_version
from onnx_igpc.graph.view import GraphView, NodeRef

_SINGLE = frozenset(
    {
        "Relu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Swish",
        "Mish",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Selu",
        "Celu",
        "Gelu",
        "Tanh",
        "Softplus",
        "Softsign",
        "ThresholdedRelu",
    }
)
_PARTS = frozenset(
    {
        *_SINGLE,
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Exp",
        "Log",
        "Erf",
        "Pow",
        "Sqrt",
        "Reciprocal",
        "Min",
        "Max",
        "Abs",
        "Cast",
        "Identity",
    }
)
_MAX_PARTS = 12
_GRID = np.linspace(-9.0, 9.0, 361, dtype=np.float32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x / 6.0 + 0.5, 0.0, 1.0)


def _erf(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return np.asarray(erf(x))


_KNOWN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Relu": lambda x: np.maximum(x, 0.0),
    "Relu6": lambda x: np.clip(x, 0.0, 6.0),
    "Sigmoid": _sigmoid,
    "HardSigmoid": _hard_sigmoid,
    "HardSigmoid (slope 0.2)": lambda x: np.clip(0.2 * x + 0.5, 0.0, 1.0),
    "HardSwish": lambda x: x * _hard_sigmoid(x),
    "Swish": lambda x: x * _sigmoid(x),
    "Swish (1.702)": lambda x: x * _sigmoid(1.702 * x),
    "Mish": lambda x: x * np.tanh(np.logaddexp(0.0, x)),
    "Gelu": lambda x: 0.5 * x * (1.0 + _erf(x / np.sqrt(2.0))),
    "Gelu (tanh)": lambda x: (
        0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))
    ),
    "Tanh": np.tanh,
    "Softplus": lambda x: np.logaddexp(0.0, x),
}


@dataclass(frozen=True)
class Activation:
    """An activation in the graph: its nodes in order, from ``input`` to ``output``."""

    name: str
    nodes: tuple[NodeRef, ...]
    input: gs.Tensor
    output: gs.Tensor


def match_activation(
    view: GraphView, tensor: gs.Tensor, dtype: np.dtype | None = None
) -> Activation | None:
    """The activation that alone reads ``tensor`` of the given dtype (float32), or ``None``.

    Every reader of ``tensor`` belongs to the activation, and so does every reader of the values
    inside it; of several that fit, the one of most operators is taken.
    """
    if view.is_output(tensor):
        return None
    found = _single(view, tensor)
    inside: list[NodeRef] = []
    reached = {id(tensor)}
    for ref in _candidates(view, tensor):
        if not _reads_only(view, ref, reached):
            continue
        inside.append(ref)
        reached.add(id(ref.node.outputs[0]))
        output = ref.node.outputs[0]
        if len(inside) > 1 and _closed(view, tensor, inside, output):
            name = _recognise(view, tensor, inside, dtype or np.dtype(np.float32))
            if name:
                found = Activation(name, tuple(inside), tensor, output)
    return found


def _single(view: GraphView, tensor: gs.Tensor) -> Activation | None:
    ref = view.only_consumer(tensor)
    if ref is None or ref.op_type not in _SINGLE or not _is_plain(ref):
        return None
    if ref.node.inputs[0] is not tensor or not _reads_only(view, ref, {id(tensor)}):
        return None
    return Activation(ref.op_type, (ref,), tensor, ref.node.outputs[0])


def _candidates(view: GraphView, tensor: gs.Tensor) -> list[NodeRef]:
    """Elementwise nodes that depend on ``tensor``, in the order of the graph, few of them."""
    found: dict[int, NodeRef] = {}
    pending = [tensor]
    while pending and len(found) < 2 * _MAX_PARTS:
        current = pending.pop(0)
        for ref in view.consumers(current):
            if ref.op_type in _PARTS and _is_plain(ref) and id(ref.node) not in found:
                found[id(ref.node)] = ref
                pending.append(ref.node.outputs[0])
    if len({id(ref.scope.holder) for ref in found.values()}) != 1:
        return []
    return sorted(found.values(), key=lambda ref: ref.index)[:_MAX_PARTS]


def _is_plain(ref: NodeRef) -> bool:
    return ref.is_standard and not ref.is_parametrized


def _reads_only(view: GraphView, ref: NodeRef, reached: set[int]) -> bool:
    """Whether every input of a node is inside the activation or a constant."""
    return all(
        id(tensor) in reached or not tensor.name or view.constant(tensor, ref.scope) is not None
        for tensor in ref.node.inputs
    )


def _closed(view: GraphView, tensor: gs.Tensor, inside: list[NodeRef], output: gs.Tensor) -> bool:
    """Whether nothing outside reads ``tensor`` or a value inside, except ``output``."""
    members = {id(ref.node) for ref in inside}
    values = [tensor, *(ref.node.outputs[0] for ref in inside)]
    for value in values:
        if value is output:
            continue
        if view.is_output(value):
            return False
        if any(id(reader.node) not in members for reader in view.consumers(value)):
            return False
    return True


def _recognise(
    view: GraphView, tensor: gs.Tensor, inside: list[NodeRef], dtype: np.dtype
) -> str | None:
    """The name of the known function that the nodes compute, by its values on a grid."""
    values = _evaluate(view, tensor, inside, dtype)
    if values is None:
        return None
    x = _GRID.astype(np.float64)
    known = {name: function(x) for name, function in _KNOWN.items()}
    near = [name for name in known if np.allclose(values, known[name], rtol=2e-3, atol=2e-3)]
    # Those of GELU and its approximation by tanh are hardly apart.
    return min(near, key=lambda name: float(np.abs(values - known[name]).sum()), default=None)


def _evaluate(
    view: GraphView, tensor: gs.Tensor, inside: list[NodeRef], dtype: np.dtype
) -> np.ndarray | None:
    """What the nodes make of the grid.

    ``None`` if a constant among them is no scalar, or what they make is of another type.
    """
    constants: dict[str, np.ndarray] = {}
    if not any(ref.op_type == "Cast" for ref in inside):
        # More exactly than the model computes: exp and log in float16 are far from smooth.
        dtype = np.dtype(np.float32)
    members = {id(ref.node.outputs[0]) for ref in inside} | {id(tensor)}
    for ref in inside:
        for each in ref.node.inputs:
            if id(each) in members or not each.name:
                continue
            constant = view.constant(each, ref.scope)
            values = constant.values() if constant else np.empty(0)
            if values.size != 1:
                return None
            if values.dtype.kind == "f" and dtype == np.float32:
                values = values.astype(dtype)
            constants[each.name] = values.reshape(())
    graph = onnx.helper.make_graph(
        [ref.proto for ref in inside],
        "activation",
        [
            onnx.helper.make_tensor_value_info(
                tensor.name, onnx.helper.np_dtype_to_tensor_dtype(dtype), _GRID.shape
            )
        ],
        [onnx.ValueInfoProto(name=inside[-1].proto.output[0])],
        [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    from onnx.reference import ReferenceEvaluator  # slow to import, and seldom needed

    version = opset_version(view.model.proto, inside[0].scope)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    try:
        outputs: Any = ReferenceEvaluator(model).run(None, {tensor.name: _GRID.astype(dtype)})
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return None
    made = np.asarray(outputs[0])
    return made.astype(np.float64) if made.dtype == dtype else None
