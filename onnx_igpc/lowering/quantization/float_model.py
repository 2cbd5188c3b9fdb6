"""The float model as onnxruntime's quantizer takes it: an opset with scales for channels, names, no doubt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from onnx_igpc.errors import ModelError, UsageError, first_line
from onnx_igpc.graph.edit import IR_WITH_FREE_INITIALIZERS, Names
from onnx_igpc.graph.model import OpenModel, snapshot
from onnx_igpc.graph.traversal import opset_version, scopes, tensors
from onnx_igpc.lowering.preparation import Preparation, prepare

OPSET_PER_CHANNEL = 13
_QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "QLinear", "QGemm", "QAttention"),
    *("ConvInteger", "MatMulInteger", "MatMulNBits"),
)
_HALF: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


def refuse_unsuitable(model: OpenModel) -> None:
    """Refuse what is quantized already, and half precision.

    Raises:
        UsageError: in one line, which node or tensor says so.
    """
    for scope in scopes(model.proto):
        for node in scope.holder.node:
            if node.op_type.startswith(_QUANTIZED):
                raise UsageError(
                    f"{model.name} is quantized already ({node.op_type} "
                    f"{node.name or node.output[0]}): give the float32 model that it was made of"
                )
    for tensor in tensors(model.proto):
        if tensor.data_type in _HALF:
            kind = _HALF[tensor.data_type]
            raise UsageError(
                f"{model.name} is in {kind} (tensor {tensor.name or 'of a Constant'}): give the "
                "float32 model that it was made of"
            )


@dataclass(frozen=True)
class FloatModel:
    """model: prepared, with all its data in memory. named: names that nodes were given, not to be kept.

    preparation: what was folded into others, or made constant. opset: before, if it was raised.
    """

    model: OpenModel
    named: frozenset[str]
    preparation: Preparation
    opset: int | None


def float_model(opened: OpenModel) -> FloatModel:
    """A copy of the model for the quantizer: BatchNormalization folded, weights constant, nodes named.

    Below opset 13, which has no scales for channels, it is converted.

    Raises:
        ModelError: it is too large for one message, or cannot be converted.
    """
    work = snapshot(opened)
    work.proto.ir_version = max(work.proto.ir_version, IR_WITH_FREE_INITIALIZERS)
    preparation = prepare(work)
    proto = work.materialized()
    before = opset_version(proto)
    if before < OPSET_PER_CHANNEL:
        proto = _converted(proto, before, opened.name)
    named = _name_nodes(proto)
    raised = before if before < OPSET_PER_CHANNEL else None
    return FloatModel(OpenModel(proto), named, preparation, raised)


def _converted(proto: onnx.ModelProto, before: int, name: str) -> onnx.ModelProto:
    advice = f"export it with opset {OPSET_PER_CHANNEL} or later"
    if proto.functions:
        raise ModelError(
            f"{name} has functions of opset {before}, which cannot be converted: {advice}"
        )
    try:
        converted = onnx.version_converter.convert_version(proto, OPSET_PER_CHANNEL)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{name} cannot be converted from opset {before} ({first_line(error)}): {advice}"
        ) from error
    needed = onnx.helper.find_min_ir_version_for(converted.opset_import)
    converted.ir_version = max(converted.ir_version, needed)
    return converted


def _name_nodes(proto: onnx.ModelProto) -> frozenset[str]:
    """Give every node of the main graph a name of its own; the names that were given."""
    names = Names(proto)
    seen: set[str] = set()
    given = set()
    for node in proto.graph.node:
        if not node.name or node.name in seen:
            node.name = names.unique(node.name or f"{node.output[0]}/node")
            given.add(node.name)
        seen.add(node.name)
    return frozenset(given)


def labels(nodes: Iterable[onnx.NodeProto], named: frozenset[str]) -> dict[str, str]:
    """How users call nodes, by their names: a nameless one by its first output."""
    return {node.name: node.output[0] if node.name in named else node.name for node in nodes}
