"""No pointwise convolution is missing in the report, whatever its weight or operator is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.compression.pipeline import inspect
from tests.helpers import GraphBuilder


def reasons(model: onnx.ModelProto | Path) -> dict[str, str | None]:
    return {site.name: site.reason for site in inspect(model).sites}


def quantized_on_the_fly(builder: GraphBuilder, weight: str, kernel: int) -> str:
    scale = builder.initializer("scale", np.array(0.01, np.float32))
    zero = builder.initializer("zero", np.array(0, np.int8))
    builder.add("QuantizeLinear", [weight, scale, zero], "q")
    return builder.add("DequantizeLinear", ["q", scale, zero], "dq")


def normalised(builder: GraphBuilder, weight: str, kernel: int) -> str:
    builder.add("ReduceL2", [weight], "norm", axes=[1, 2, 3])
    return builder.add("Div", [weight, "norm"], "w_normed")


def transposed(builder: GraphBuilder, weight: str, kernel: int) -> str:
    clipped = builder.add("Abs", [weight], "abs")
    return builder.add("Transpose", [clipped], "turned", perm=[1, 0, 2, 3])


def reshaped(builder: GraphBuilder, weight: str, kernel: int) -> str:
    shape = builder.initializer("shape", np.array([0, -1, kernel, kernel]))
    return builder.add("Reshape", [builder.add("Neg", [weight], "minus"), shape], "shaped")


def nonsense(builder: GraphBuilder, weight: str, kernel: int) -> str:
    """A weight whose shape only the run would show."""
    builder.add("Shape", [weight], "s")
    return builder.add("Reshape", [builder.add("Abs", [weight], "abs"), "s"], "rolled")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (quantized_on_the_fly, "weight is quantized (behind DequantizeLinear)"),
        (normalised, "weight is computed at run time"),
        (transposed, "weight is computed at run time"),
        (reshaped, "weight is computed at run time"),
        (nonsense, "weight is computed at run time, and its shape is not known"),
    ],
)
@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_that_the_graph_computes(
    make: Callable[[GraphBuilder, str, int], str], reason: str, kernel: int
) -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 64, 5, 5])
    weight = builder.initializer("w", builder.random(64, 64, kernel, kernel))
    builder.add("Conv", ["x", make(builder, weight, kernel)], "c")  # no kernel_shape
    builder.conv("c", "last", 64, 64, kernel=3)
    side = 4 - kernel
    builder.output("last", [1, 64, side, side])
    found = reasons(builder.model(check=False))
    # What is known to be larger is no site; what is not known is kept with its reason.
    assert found == ({"c_node": reason} if kernel == 1 or make is nonsense else {})


@pytest.mark.parametrize(("kernels", "listed"), [((1,), True), ((3,), False), ((1, 3), True)])
def test_weights_that_callers_of_a_function_give(kernels: tuple[int, ...], listed: bool) -> None:
    builder = GraphBuilder()
    body = [helper.make_node("Conv", ["a", "w"], ["b"], name="inner")]
    builder.functions.append(
        helper.make_function(
            "mine", "Layer", ["a", "w"], ["b"], body, [helper.make_opsetid("", 17)]
        )
    )
    builder.input("x", [1, 8, 9, 9])
    value = "x"
    for number, kernel in enumerate(kernels):
        weight = builder.initializer(f"w{number}", builder.random(8, 8, kernel, kernel))
        value = builder.add("Layer", [value, weight], f"y{number}", domain="mine")
    side = 9 - sum(kernel - 1 for kernel in kernels)
    builder.output(value, [1, 8, side, side])
    found = reasons(builder.model(check=False))
    reason = found.get("inner")
    assert (reason is not None) == listed
    if listed:
        assert reason is not None
        assert reason.startswith("weight is a parameter of the function mine.Layer")


def test_sparse_weights() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 5])
    builder.add("Conv", ["x", "w"], "c")
    builder.conv("c", "last", 8, 8, kernel=3)
    builder.output("last", [1, 8, 3, 3])
    model = builder.model(check=False)
    values = numpy_helper.from_array(np.ones(4, np.float32), "w")
    places = numpy_helper.from_array(np.array([0, 9, 18, 27]), "w_places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [8, 8, 1, 1]))
    assert reasons(model) == {"c_node": "weight is sparse"}


@pytest.mark.parametrize("operator", ["QLinearConv", "ConvInteger"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_quantized_operators(operator: str, kernel: int) -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 5], TensorProto.UINT8)
    weight = builder.initializer("w", np.ones((4, 8, kernel, kernel), np.uint8))
    scale = builder.initializer("scale", np.array(1, np.float32))
    zero = builder.initializer("zero", np.array(0, np.uint8))
    if operator == "ConvInteger":
        builder.add(operator, ["x", weight], "y")
    else:
        builder.add(operator, ["x", scale, zero, weight, scale, zero, scale, zero], "y")
    kind = TensorProto.INT32 if operator == "ConvInteger" else TensorProto.UINT8
    side = 6 - kernel
    builder.output("y", [1, 4, side, side], kind)
    reason = f"quantized ({operator}): give the model from before quantization"
    assert reasons(builder.model()) == ({"y_node": reason} if kernel == 1 else {})


@pytest.mark.parametrize("level", ["ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_models_that_onnxruntime_has_optimised(tmp_path: Path, level: str) -> None:
    builder = GraphBuilder()
    builder.input("x", ["n", 3, 16, 16])
    value = builder.activation(builder.conv("x", "stem", 3, 32, kernel=3), "r1", "Relu")
    value = builder.activation(builder.conv(value, "first", 32, 64), "r2", "Relu")
    value = builder.activation(builder.conv(value, "second", 64, 64), "r3", "Relu")
    builder.output(builder.add("GlobalAveragePool", [value], "y"), ["n", 64, 1, 1])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        builder.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = reasons(tmp_path / "optimised.onnx")
    assert len(found) == 2
    for reason in found.values():
        assert reason is not None
        assert reason.startswith("optimised by onnxruntime (")
        assert reason.endswith("give the model from before")
