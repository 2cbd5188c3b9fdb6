"""Comparing a model with what became of it: what counts as a deviation, and what does not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_igpc.errors import CheckFailedError
from onnx_igpc.evaluation.equivalence import check_same_outputs
from onnx_igpc.graph.model import OpenModel


def shifted(level: float, scale: float = 1.0) -> OpenModel:
    """y = Sigmoid(scale * x + level)."""
    constants = [
        onnx.numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in (("scale", scale), ("level", level))
    ]
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "level"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "shifted", values[:1], values[1:], constants)
    opset = helper.make_opsetid("", 17)
    return OpenModel(helper.make_model(graph, opset_imports=[opset], ir_version=8))


def test_another_function_is_found() -> None:
    with pytest.raises(CheckFailedError, match=r"output 'y' deviates by .* after a test: look"):
        check_same_outputs(shifted(0.0), shifted(0.3), "a test", "look")


def test_small_outputs_that_differ_are_found() -> None:
    """Outputs around 1e-3, one part in five apart."""
    with pytest.raises(CheckFailedError, match="output 'y' deviates"):
        check_same_outputs(shifted(-7.0, 0.1), shifted(-6.8, 0.1), "a test", "look")


def test_rounding_of_a_saturated_output_is_no_deviation() -> None:
    """Outputs around 1e-8: onnxruntime's Sigmoid makes steps of 3e-8 there."""
    said = check_same_outputs(shifted(-18.0), shifted(-18.5), "a test", "look")
    assert said.startswith("same outputs as before")
