"""A model that uses every part of the format that a careless rewrite loses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.helpers import GraphBuilder


def rich_model(channels: int = 32) -> onnx.ModelProto:
    """Metadata at every level, a function, sub-graphs, sparse and quantized tensors, training.

    ``x`` -> pointwise convolution -> If -> function -> ``y``; ``conv_w`` is larger than what stays
    in a model file beside external data.
    """
    builder = GraphBuilder(opset=17, weights="input")
    builder.input("x", ["batch", channels, "side", "side"])
    builder.conv("x", "conv", channels, channels, bias=True)
    builder.initializer("cond", np.array(True))
    builder.add("If", ["cond"], "chosen", then_branch=_branch("a"), else_branch=_branch("b"))
    builder.add("Scale", ["chosen"], "y", domain="local")
    builder.functions.append(_function())
    builder.output("y", ["batch", channels, "side", "side"])
    model = builder.model(check=False, ir_version=10)
    _describe(model)
    _add_sparse(model.graph)
    _add_quantization(model.graph)
    _add_training(model)
    onnx.checker.check_model(model)
    return model


def set_fields(message: Any, path: str = "") -> Iterator[tuple[str, object]]:
    """Every field that is set, however deep, with its path: what a comparison compares."""
    for descriptor, value in message.ListFields():
        single = isinstance(value, (str, bytes, int, float)) or hasattr(value, "ListFields")
        for index, each in enumerate([value] if single else value):
            inner = f"{path}.{descriptor.name}[{index}]"
            if hasattr(each, "ListFields"):
                yield from set_fields(each, inner)
            else:
                yield inner, each


def _branch(name: str) -> onnx.GraphProto:
    inner = GraphBuilder()
    inner.initializer(f"{name}_factor", np.full((1, 1, 1, 1), 2, np.float32))
    inner.add("Mul", ["conv", f"{name}_factor"], f"{name}_out")
    inner.output(f"{name}_out")
    graph = inner.graph(name)
    graph.doc_string = f"branch {name}"
    graph.metadata_props.add(key="branch", value=name)
    return graph


def _function() -> onnx.FunctionProto:
    node = helper.make_node("LeakyRelu", ["a"], ["b"])
    node.attribute.append(
        AttributeProto(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT)
    )
    function = helper.make_function(
        "local",
        "Scale",
        ["a"],
        ["b"],
        [node],
        [helper.make_opsetid("", 17)],
        attribute_protos=[helper.make_attribute("slope", 0.25)],
        doc_string="a local function",
    )
    function.metadata_props.add(key="function", value="yes")
    return function


def _describe(model: onnx.ModelProto) -> None:
    model.producer_name, model.producer_version = "producer", "1.2"
    model.domain, model.model_version = "org.example", 42
    model.doc_string = "a model"
    model.metadata_props.add(key="model", value="übergröße ×")
    graph = model.graph
    graph.doc_string = "a graph"
    graph.metadata_props.add(key="graph", value="1")
    node = graph.node[0]
    node.doc_string = "a node"
    node.metadata_props.add(key="node", value="1")
    node.attribute.append(helper.make_attribute("auto_pad", "NOTSET", doc_string="an attribute"))
    image = graph.input[0]
    image.doc_string = "an image"
    image.metadata_props.add(key="value", value="1")
    image.type.denotation = "IMAGE"
    image.type.tensor_type.shape.dim[1].denotation = "DATA_CHANNEL"
    tensor = graph.initializer[0]
    tensor.doc_string = "a tensor"
    tensor.metadata_props.add(key="tensor", value="1")
    info = helper.make_tensor_value_info("conv", TensorProto.FLOAT, ["batch", None, None, 7])
    info.doc_string = "a value"
    graph.value_info.append(info)


def _add_sparse(graph: onnx.GraphProto) -> None:
    values = numpy_helper.from_array(np.array([1.5, -2], np.float32), "sparse")
    indices = numpy_helper.from_array(np.array([1, 7]), "sparse_indices")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [9]))


def _add_quantization(graph: onnx.GraphProto) -> None:
    annotation = graph.quantization_annotation.add(tensor_name="conv_w")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="conv_b")


def _add_training(model: onnx.ModelProto) -> None:
    training = model.training_info.add()
    for name, graph in (("start", training.initialization), ("step", training.algorithm)):
        builder = GraphBuilder()
        values = numpy_helper.from_array(np.zeros(3, np.float32))
        builder.add("Constant", [], name, value=values)
        builder.output(name, [3])
        graph.CopyFrom(builder.graph(name))
    training.initialization_binding.add(key="conv_b", value="start")
    training.update_binding.add(key="conv_b", value="step")
