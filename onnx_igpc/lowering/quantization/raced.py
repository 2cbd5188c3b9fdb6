"""A float model quantized for a race: its ranges come from random inputs, on which times do not depend."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from onnx_igpc.data.batches import Batch
from onnx_igpc.data.random_inputs import random_inputs
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel, save_model
from onnx_igpc.lowering.quantization.float_model import float_model
from onnx_igpc.lowering.quantization.options import Quantization
from onnx_igpc.lowering.quantization.static import BatchReader, optimize, quantize_file
from onnx_igpc.lowering.quantization.target import Target
from onnx_igpc.runtime.setting import Setting


def quantized_for_race(model: OpenModel, setting: Setting) -> OpenModel:
    """A copy of the model as :func:`~onnx_igpc.quantize` would write it by default for the setting.

    Raises:
        ModelError: it cannot be quantized.
    """
    return quantized_at_random(float_model(model).model, setting)


def quantized_at_random(source: OpenModel, setting: Setting) -> OpenModel:
    """What the quantizer makes of a prepared model by default, by the ranges of random inputs.

    Raises:
        ModelError: it cannot be quantized.
    """
    integers = Target.of(Quantization(), setting)
    inputs = model_inputs(source.proto)
    feeds = random_inputs(inputs, batch=setting.batch, shapes=setting.shapes)
    reader = BatchReader([Batch(feeds, None, setting.batch)], 1, lambda done: None)
    with tempfile.TemporaryDirectory(prefix="onnx-igpc-", ignore_cleanup_errors=True) as folder:
        plain, ready, written = (Path(folder) / f"{name}.onnx" for name in ("float", "ready", "q"))
        save_model(source, plain)
        optimize(plain, ready, source.name)
        # With random weights values may overflow: ranges that are no numbers cost no time.
        with np.errstate(invalid="ignore"):
            quantize_file(ready, written, reader, "minmax", integers, {}, source.name)
        return OpenModel(onnx.load(written))


def quantized_cut_out(model: OpenModel, setting: Setting) -> OpenModel:
    """As :func:`quantized_for_race`, for a part of a model: integers come in and go out.

    In the model the part's neighbours are quantized, too; to convert floats at its edges would be no time
    of its own.
    """
    quantized = quantized_for_race(model, setting)
    _begin_with_integers(quantized.proto.graph)
    _end_with_integers(quantized.proto.graph)
    return quantized


def _begin_with_integers(graph: onnx.GraphProto) -> None:
    """Inputs that are only quantized become what the QuantizeLinear made."""
    for value in graph.input:
        readers = [node for node in graph.node if value.name in node.input]
        if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
            continue
        _become(graph, value, readers[0].output[0], readers[0].input[2])
        graph.node.remove(readers[0])


def _end_with_integers(graph: onnx.GraphProto) -> None:
    """Outputs that a DequantizeLinear makes become what it read."""
    made = {name: node for node in graph.node for name in node.output}
    for value in graph.output:
        maker = made[value.name]
        if maker.op_type != "DequantizeLinear":
            continue
        read = any(value.name in node.input for node in graph.node)
        _become(graph, value, maker.input[0], maker.input[2])
        if not read:
            graph.node.remove(maker)


def _become(graph: onnx.GraphProto, value: onnx.ValueInfoProto, name: str, zero_point: str) -> None:
    """Make an input or output the integer tensor ``name``, of its zero point's type."""
    element = next(each.data_type for each in graph.initializer if each.name == zero_point)
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    value.CopyFrom(helper.make_tensor_value_info(name, element, shape))
    for known in [each for each in graph.value_info if each.name == name]:
        graph.value_info.remove(known)
