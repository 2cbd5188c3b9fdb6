"""A float64 network in float32: onnxruntime has no float64 convolution on a CPU."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import copied, scopes, tensors

_TYPED = ("to", "dtype")


def holds_double(model: onnx.ModelProto) -> bool:
    """Whether a weight of the model is float64."""
    return any(tensor.data_type == TensorProto.DOUBLE for tensor in tensors(model))


def in_single_precision(model: OpenModel) -> onnx.ModelProto:
    """A copy with float32 in the place of float64: weights, values, inputs and outputs, casts.

    What float32 cannot hold becomes infinite. The data of other tensors must lie in the model.
    """
    proto = copied(model.proto)
    for tensor in tensors(proto):
        values = model.array(tensor)
        if tensor.data_type == TensorProto.DOUBLE:
            with np.errstate(over="ignore"):
                values = values.astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for scope in scopes(proto):
        holder = scope.holder
        named = [*holder.value_info]
        if isinstance(holder, onnx.GraphProto):
            named += [*holder.input, *holder.output]
        for value in named:
            _narrow(value.type)
        for node in holder.node:
            for attribute in node.attribute:
                if attribute.name in _TYPED and attribute.i == TensorProto.DOUBLE:
                    attribute.i = TensorProto.FLOAT
    return proto


def _narrow(kind: onnx.TypeProto) -> None:
    if kind.HasField("tensor_type") and kind.tensor_type.elem_type == TensorProto.DOUBLE:
        kind.tensor_type.elem_type = TensorProto.FLOAT
    elif kind.HasField("sequence_type"):
        _narrow(kind.sequence_type.elem_type)
    elif kind.HasField("optional_type"):
        _narrow(kind.optional_type.elem_type)
