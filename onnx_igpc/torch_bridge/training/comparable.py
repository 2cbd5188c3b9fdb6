"""Which values of a graph PyTorch can compute and training can compare, and why not the others.

Fine-tuning needs none of what detectors and classifiers do with their numbers at the end: boxes that are
chosen by their scores, class names, maps and sequences. Outputs of that kind are left out, and the nodes
that only they need are not converted.
"""

from __future__ import annotations

import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto

import onnx_igpc.torch_bridge.operators  # noqa: F401  (registers the operators)
from onnx_igpc.torch_bridge.graph import is_constant, operator_of, opsets
from onnx_igpc.torch_bridge.registry import Operator

# How many values these make depends on the values that they get.
_SIZED_BY_DATA = frozenset({"NonMaxSuppression", "NonZero", "Compress", "Unique", "StringSplit"})
_NUMBERS = frozenset(onnx.TensorProto.DataType.values()) - {
    onnx.TensorProto.UNDEFINED,
    onnx.TensorProto.STRING,
    onnx.TensorProto.COMPLEX64,
    onnx.TensorProto.COMPLEX128,
}


class Survey:
    """What cannot be compared in a model.

    Attributes:
        outputs: Names of the graph outputs that cannot be, with the reason in words.
        inner: Names of computed values likewise.
        computed: Names of all values that the nodes of the main graph compute.
    """

    def __init__(self, model: ModelProto) -> None:
        self.computed = {name for node in model.graph.node for name in node.output if name}
        self.inner = _reasons(model)
        self.outputs = {
            output.name: reason
            for output in model.graph.output
            if (reason := self.inner.get(output.name) or _no_numbers(output))
        }


def _no_numbers(output: onnx.ValueInfoProto) -> str | None:
    kind = output.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        return f"it is a {str(kind).removesuffix('_type')}, not a tensor"
    element = output.type.tensor_type.elem_type
    if kind is None or element == onnx.TensorProto.UNDEFINED or element in _NUMBERS:
        return None
    return f"it holds {onnx.TensorProto.DataType.Name(element)}, not numbers"


def _reasons(model: ModelProto) -> dict[str, str]:
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    versions = opsets(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    flows = {value.name for value in model.graph.input} - constants
    reasons: dict[str, str] = {}
    for node in model.graph.node:
        if is_constant(node):
            constants.update(node.output)
            continue
        operator, _, title = operator_of(node, versions)
        branch_is_known = node.op_type == "If" and node.input[0] in constants
        reason = next((reasons[name] for name in node.input if name in reasons), None)
        if reason is None and operator is None and not branch_is_known:
            reason = f"PyTorch cannot run {title}"
        elif reason is None and operator is not None and _is_sized_by_data(node, operator, flows):
            reason = f"its size depends on the data ({node.op_type})"
        made = {name for name in node.output if name}
        if reason is not None:
            reasons.update(dict.fromkeys(made, reason))
        if flows.intersection(node.input) and not (operator is not None and operator.gives_host):
            flows |= made
    return reasons


def _is_sized_by_data(node: NodeProto, operator: Operator, flows: set[str]) -> bool:
    """Whether other values of the same shape can make an output of another shape."""
    if node.op_type in _SIZED_BY_DATA:
        return bool(flows.intersection(node.input))
    return any(
        index < len(node.input) and node.input[index] in flows for index in operator.inputs.host
    )
