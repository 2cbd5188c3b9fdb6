"""Counts for the tests, written independently of the package's own counting."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, shape_inference


@dataclass(frozen=True)
class Counts:
    """Trainable weights, BatchNorm statistics, and multiply-accumulates at batch 1."""

    trainable: int
    statistics: int
    macs: int


def count(model: onnx.ModelProto) -> Counts:
    """Kernels, biases, gamma and beta; MACs of Conv and Gemm (float32 weights, static maps)."""
    sizes = {t.name: math.prod(t.dims) for t in model.graph.initializer}
    statistics = {
        name
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
        for name in node.input[3:]
    }
    left_out = statistics | fixed_tensors(model)
    trainable = sum(
        sizes[t.name]
        for t in model.graph.initializer
        if t.data_type == TensorProto.FLOAT and t.dims and t.name not in left_out
    )
    maps = map_sizes(model)
    macs = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            macs += sizes[node.input[1]] * math.prod(maps[node.output[0]])
        elif node.op_type == "Gemm":
            macs += sizes[node.input[1]]
    return Counts(trainable, sum(sizes[name] for name in statistics), macs)


def fixed_tensors(model: onnx.ModelProto) -> set[str]:
    """The initializers that the model's metadata declares constant."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    return set(json.loads(properties.get("onnx_igpc.fixed_tensors", "[]")))


def map_sizes(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """(height, width) of every tensor with four dimensions, by name."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True)
    return {
        info.name: (dims[2].dim_value, dims[3].dim_value)
        for info in inferred.graph.value_info
        if len(dims := info.type.tensor_type.shape.dim) == 4
    }


def run(model: onnx.ModelProto, batch: int) -> npt.NDArray[np.float32]:
    """The logits of ``batch`` random images, shape (batch, classes)."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = (batch, *(dim.dim_value for dim in dims[1:]))
    image = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": image})[0])
