"""The "flops" of the published tables, counted on an ONNX graph.

The papers print ``total_float_ops // 2`` of the TensorFlow profiler for one image. That is two per
multiply-accumulate and one per element of biases and products (so 1 for swish, hard-sigmoid and
the gate of squeeze-and-excitation, 2 for hard-swish), the inputs of global pooling, the window of
every other pooling output and 5 per class for the softmax; additions of two maps, normalisation,
sigmoid, ReLU, concatenation and gathers count nothing.
"""

from __future__ import annotations

import math

import onnx
from onnx import helper, shape_inference

SOFTMAX_PER_CLASS = 5

# Float operations per element of the output.
_PER_ELEMENT = {"Mul": 1, "HardSigmoid": 1, "HardSwish": 2}


def tensorflow_flops(model: onnx.ModelProto, macs: int) -> int:
    """Half the float operations that the TensorFlow profiler would count.

    Args:
        model: a classifier with static maps whose only output is its logits, shape
            (batch, classes). The softmax that the published networks end in is added.
        macs: multiply-accumulates of its convolutions and dense layers for one image.

    Returns:
        Operations for one image, halved and rounded down as in the published tables.
    """
    shapes = _shapes(model)
    operations = 2 * macs + SOFTMAX_PER_CLASS * math.prod(shapes[model.graph.output[0].name])
    for node in model.graph.node:
        operations += _operations(node, shapes)
    return operations // 2


def _operations(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Operations of one node besides its multiply-accumulates."""
    elements = math.prod(shapes[node.output[0]])
    if node.op_type in ("Conv", "Gemm"):
        return elements if len(node.input) > 2 and node.input[2] else 0
    if node.op_type == "GlobalAveragePool":
        return math.prod(shapes[node.input[0]])
    if node.op_type in ("MaxPool", "AveragePool"):
        window: list[int] = helper.get_node_attr_value(node, "kernel_shape")
        return elements * math.prod(window)
    return elements * _PER_ELEMENT.get(node.op_type, 0)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor without its first dimension, the batch."""
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    return {
        info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim[1:])
        for infos in (graph.input, graph.value_info, graph.output)
        for info in infos
    }
