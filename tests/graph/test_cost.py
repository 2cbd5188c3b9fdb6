"""Parameters counted on graphs, and the published counts of whole networks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.errors import ModelError
from onnx_igpc.graph.cost import FIXED_TENSORS_KEY, count
from onnx_igpc.graph.model import open_model
from sample_models import build
from tests.helpers import GraphBuilder, WeightForm, pointwise_model
from tests.real_models import each_model

# The published trainable parameters and multiply-accumulates (CCIA 2021, Entropy 2022) of the dense
# networks.
PUBLISHED = [
    ("efficientnet_b0", 10, 224, 4_020_358, 384_547_552),
    ("efficientnet_b0", 100, 224, 4_135_648, 384_662_752),
    ("densenet_bc_l100", 10, 32, 769_186, 287_929_692),
    ("inception_v3", 10, 224, 21_788_842, 2_835_893_600),
    ("mobilenet_v1", 10, 224, 3_217_226, 567_726_592),
    ("mobilenet_v3_large", 10, 224, 4_214_842, 215_322_560),
]


@pytest.mark.parametrize(("name", "classes", "size", "parameters", "macs"), PUBLISHED)
def test_published_networks_are_exact(
    name: str, classes: int, size: int, parameters: int, macs: int
) -> None:
    cost = count(build(name, classes=classes, size=size))
    assert (cost.parameters, cost.macs) == (parameters, macs)
    assert not cost.unknown
    assert not cost.notes
    assert sum(node.macs or 0 for node in cost.nodes.values()) == macs
    assert sum(node.weights for node in cost.nodes.values()) == parameters


# --------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("weights", ["initializer", "constant", "input"])
@pytest.mark.parametrize("opset", [7, 11, 17])
def test_parameters_wherever_weights_lie(weights: WeightForm, opset: int) -> None:
    model = pointwise_model(8, 6, batch_norm=True, activation="Relu6", weights=weights, opset=opset)
    cost = count(model)
    # Kernel and bias, gamma and beta but not mean and variance, the last convolution's kernel.
    assert cost.parameters == 8 * 6 + 6 + 2 * 6 + 6 * 9
    assert cost.nodes["conv"].weights == 8 * 6 + 6
    assert cost.nodes["bn"].weights == 2 * 6
    assert "act" not in cost.nodes
    assert dict(cost.input_shapes) == {"x": (1, 8, 5, 5)}


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_parameters_of_other_float_types(dtype: type[np.generic]) -> None:
    assert count(pointwise_model(4, 4, bias=False, dtype=dtype)).parameters == 4 * 4 + 4 * 9


def test_shared_weight_counts_once_but_costs_twice() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 5])
    builder.conv("x", "a", 8, 8)
    builder.add("Conv", ["a", "a_w"], "b")
    builder.output("b")
    cost = count(builder.model())
    assert (cost.parameters, cost.macs) == (64, 2 * 64 * 25)
    assert cost.nodes["b"].weights == 64


def test_what_no_output_needs_is_not_counted() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 5])
    builder.output(builder.conv("x", "a", 8, 8))
    builder.conv("x", "dead", 8, 8)
    builder.initializer("unused", builder.random(7, 7))
    cost = count(builder.model())
    assert (cost.parameters, cost.macs, list(cost.nodes)) == (64, 64 * 25, ["a"])


def test_scalars_and_steering_constants_are_no_parameters() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 2, 4, 4])
    builder.initializer("scales", np.array([1, 1, 2, 2], np.float32))
    builder.add("Resize", ["x", "", "scales"], "big", mode="nearest")
    builder.initializer("factor", np.full((1, 1), 2, np.float32))
    builder.add("Mul", ["big", "factor"], "scaled")
    builder.initializer("offset", builder.random(1, 2, 1, 1))
    builder.output(builder.add("Add", ["scaled", "offset"], "y"))
    cost = count(builder.model())
    assert cost.parameters == 2
    assert cost.macs == 0
    assert {name: node.weights for name, node in cost.nodes.items()} == {"y": 2}


def test_a_weight_that_is_computed_counts_as_it_is_stored() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 6, 5, 5])
    builder.initializer("stored", builder.random(8, 6).astype(np.float16))
    builder.initializer("norm", builder.random(8, 1))
    builder.add("Cast", ["stored"], "wide", to=TensorProto.FLOAT)
    builder.add("Mul", ["wide", "norm"], "normed")
    builder.initializer("shape", np.array([8, 6, 1, 1]))
    builder.add("Reshape", ["normed", "shape"], "w")
    builder.output(builder.add("Conv", ["x", "w"], "y"))
    cost = count(builder.model())
    assert cost.parameters == 8 * 6 + 8
    assert {name: node.weights for name, node in cost.nodes.items()} == {"y": 56}
    assert cost.macs == 8 * 6 * 25


def test_quantized_weights_count_and_scales_do_not() -> None:
    builder = GraphBuilder(opset=13)
    builder.input("x", [1, 6, 5, 5])
    builder.initializer("q", np.arange(48, dtype=np.int8).reshape(8, 6, 1, 1))
    builder.initializer("scale", np.ones(8, np.float32))
    builder.initializer("zero", np.zeros(8, np.int8))
    builder.add("DequantizeLinear", ["q", "scale", "zero"], "w", axis=0)
    builder.output(builder.add("Conv", ["x", "w"], "y"))
    cost = count(builder.model())
    assert (cost.parameters, cost.macs) == (48, 48 * 25)


def test_integer_constants_are_no_parameters() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 6, 5, 5])
    builder.initializer("order", np.array([5, 4, 3, 2, 1, 0]))
    builder.output(builder.add("Gather", ["x", "order"], "y", axis=1))
    assert count(builder.model()).parameters == 0


def test_fixed_tensors_are_left_out() -> None:
    model = pointwise_model(4, 4, bias=False)
    helper.set_model_props(model, {FIXED_TENSORS_KEY: json.dumps(["last_w"])})
    assert count(model).parameters == 16


@pytest.mark.parametrize("text", ["last_w", '{"a": 1}', "[1]"])
def test_unreadable_fixed_tensors_are_an_error(text: str) -> None:
    model = pointwise_model(4, 4)
    helper.set_model_props(model, {FIXED_TENSORS_KEY: text})
    with pytest.raises(ModelError, match="not a JSON array"):
        count(model)


def test_sparse_initializer_counts_what_is_stored() -> None:
    builder = GraphBuilder()
    builder.input("x", [3, 10])
    builder.output(builder.add("MatMul", ["x", "w"], "y"))
    model = builder.model(check=False)
    values = numpy_helper.from_array(np.ones(4, np.float32), "w")
    indices = numpy_helper.from_array(np.array([0, 5, 11, 29]), "w_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [10, 3]))
    cost = count(model)
    assert (cost.parameters, cost.macs) == (4, 3 * 10 * 3)


def test_learned_tensors_count_even_with_one_element() -> None:
    """A layer of one filter has a bias of one element; a scalar elsewhere is no parameter."""
    cost = count(pointwise_model(8, 1, bias=True, batch_norm=True))
    assert cost.parameters == 8 + 1 + 2 + 9


# --------------------------------------------------------------------------- elsewhere


def test_external_weights_are_counted_without_reading_them(tmp_path: Path) -> None:
    model = pointwise_model(64, 64)
    expected = count(model)
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    opened = open_model(tmp_path / "m.onnx")
    cost = count(opened)
    assert cost == expected
    (tmp_path / "w").unlink()
    with pytest.raises(ModelError, match="missing"):
        count(opened)  # the biases are small and looked at


def test_counting_needs_neither_onnxruntime_nor_torch_nor_click() -> None:
    program = (
        "import sys; import onnx_igpc.graph.cost; "
        "print([m for m in ('onnxruntime', 'torch', 'click') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@each_model
def test_real_models_are_counted_completely(path: Path) -> None:
    cost = count(open_model(path))
    assert cost.parameters > 10_000
    assert cost.macs > 1_000_000
    assert not cost.unknown
    assert not cost.notes
    if path.stem.startswith("mobilenet_v1_0.25"):
        assert cost.macs == 41_030_272
