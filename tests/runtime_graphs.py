"""Tiny models for the tests of sessions, data, verification and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str | None]


def classifier(
    weight: np.ndarray | None = None,
    *,
    dims: Dims = ("batch", 3, 8, 8),
    classes: int = 5,
    elem_type: int = TensorProto.FLOAT,
    squeeze: bool = True,
    seed: int = 0,
) -> onnx.ModelProto:
    """x -> 1x1 Conv -> Relu -> GlobalAveragePool [-> Flatten]: scores[batch, classes(, 1, 1)]."""
    channels = dims[1]
    assert isinstance(channels, int)
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    if weight is None:
        weight = np.random.default_rng(seed).standard_normal((classes, channels, 1, 1))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p" if squeeze else "scores"], name="pool"),
    ]
    if squeeze:
        nodes.append(helper.make_node("Flatten", ["p"], ["scores"], name="flatten"))
    out = [dims[0], weight.shape[0]] + ([] if squeeze else [1, 1])
    return _model(
        nodes,
        [helper.make_tensor_value_info("x", elem_type, dims)],
        [helper.make_tensor_value_info("scores", elem_type, out)],
        [numpy_helper.from_array(weight.astype(dtype), "w")],
    )


def identity(
    dims: Dims = ("batch", 3), elem_type: int = TensorProto.FLOAT, operator: str = "Identity"
) -> onnx.ModelProto:
    """scores = operator(x): what comes out is what was fed."""
    return _model(
        [helper.make_node(operator, ["x"], ["scores"], name="only")],
        [helper.make_tensor_value_info("x", elem_type, dims)],
        [helper.make_tensor_value_info("scores", elem_type, dims)],
        [],
    )


def affine(scale: float = 1.0, offset: float = 0.0, dims: Dims = ("batch", 3)) -> onnx.ModelProto:
    """scores = scale * x + offset."""
    return _model(
        [
            helper.make_node("Mul", ["x", "scale"], ["m"], name="mul"),
            helper.make_node("Add", ["m", "offset"], ["scores"], name="add"),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, dims)],
        [
            numpy_helper.from_array(np.array(scale, np.float32), "scale"),
            numpy_helper.from_array(np.array(offset, np.float32), "offset"),
        ],
    )


def linear(matrix: np.ndarray, dims: Dims = ("batch", None)) -> onnx.ModelProto:
    """scores = x @ matrix, with a MatMul."""
    matrix = matrix.astype(np.float32)
    return _model(
        [helper.make_node("MatMul", ["x", "m"], ["scores"], name="matmul")],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [dims[0], matrix.shape[0]])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [dims[0], matrix.shape[1]])],
        [numpy_helper.from_array(matrix, "m")],
    )


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model
