"""A trained model in half the bytes: weights stored as float16, each behind a Cast to float32.

The file is an ordinary model that runs anywhere. :func:`unpacked` takes the Casts out and gives float32
weights, so that a model that was packed once is the same model wherever it is read.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.errors import ModelError

_SUFFIX = "/float16"


def packed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose float32 weights of more than one dimension are stored as float16.

    Biases and BatchNorm keep their 32 bits: they are few, and a variance may be too small for 16.

    Raises:
        ModelError: a weight is too large for float16.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    casts = []
    for tensor in copy.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        with np.errstate(over="ignore"):
            values = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(values).all():
            raise ModelError(f"{tensor.name} has values that float16 cannot hold")
        name, stored = tensor.name, tensor.name + _SUFFIX
        tensor.CopyFrom(numpy_helper.from_array(values, stored))
        casts.append(
            helper.make_node("Cast", [stored], [name], name + "/cast", to=TensorProto.FLOAT)
        )
    nodes = [*casts, *copy.graph.node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def unpacked(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of what :func:`packed` made with its weights as float32; any other model as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {t.name: t for t in copy.graph.initializer if t.name.endswith(_SUFFIX)}
    kept = []
    for node in copy.graph.node:
        tensor = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if tensor is None:
            kept.append(node)
            continue
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, node.output[0]))
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy
