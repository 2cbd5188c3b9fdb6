"""Parameters and multiply-accumulates counted on graphs small enough to count by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.graph.cost import FIXED_TENSORS_KEY, count
from onnx_igpc.graph.model import open_model
from sample_models import build
from tests.helpers import GraphBuilder, WeightForm, pointwise_model

MODELS = os.environ.get("ONNX_IGPC_MODELS")
MODEL_FILES = sorted(Path(MODELS).glob("*.onnx")) if MODELS else []

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


# --------------------------------------------------------------------------- MACs


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_macs_of_convolutions(dims: int, stride: int) -> None:
    cost = count(pointwise_model(8, 6, dims=dims, stride=stride))
    places = (5 if stride == 1 else 3) ** dims
    assert cost.nodes["conv"].macs == places * 8 * 6
    assert cost.nodes["last"].macs == places * 6 * 3**dims
    assert cost.macs == places * (48 + 6 * 3**dims)


def test_macs_of_transposed_convolution() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 4])
    builder.initializer("w", builder.random(8, 3, 2, 2))
    builder.output(builder.add("ConvTranspose", ["x", "w"], "y", strides=[2, 2], group=2))
    # Every input element meets the filters of its group: (F / groups) * kernel.
    assert count(builder.model()).macs == 8 * 5 * 4 * 3 * 4


def test_macs_of_matrix_products() -> None:
    builder = GraphBuilder()
    builder.input("x", ["batch", 10])
    builder.initializer("w", builder.random(7, 10))
    builder.add("Gemm", ["x", "w"], "dense", transB=1)
    builder.initializer("v", builder.random(7, 3))
    builder.add("MatMul", ["dense", "v"], "scores")
    builder.input("tall", [10, 4])
    builder.add("Gemm", ["tall", "v7"], "turned", transA=1)
    builder.initializer("v7", builder.random(10, 2))
    for name in ("scores", "turned"):
        builder.output(name)
    cost = count(builder.model())
    assert {name: node.macs for name, node in cost.nodes.items()} == {
        "dense": 70,
        "scores": 21,
        "turned": 4 * 10 * 2,
    }


def test_product_of_two_activations_costs_but_holds_no_weights() -> None:
    builder = GraphBuilder()
    builder.input("a", [2, 3, 4, 5])
    builder.input("b", [2, 3, 5, 6])
    builder.output(builder.add("MatMul", ["a", "b"], "y"))
    cost = count(builder.model())
    assert (cost.parameters, cost.macs) == (0, 2 * 3 * 4 * 5 * 6)


def test_input_shapes_scale_the_cost() -> None:
    builder = GraphBuilder()
    builder.input("x", ["n", 3, "side", "side"])
    builder.output(builder.conv("x", "y", 3, 4))
    model = builder.model()
    assert count(model).macs == 12 * 224 * 224
    cost = count(model, {"x": (2, 3, 10, 10)})
    assert cost.macs == 12 * 200
    assert dict(cost.input_shapes) == {"x": (2, 3, 10, 10)}
    for wrong in ({"x": (1, 4, 10, 10)}, {"x": (1, 3, 10)}, {"z": (1,)}):
        with pytest.raises(UsageError):
            count(model, wrong)


def test_a_shape_that_the_graph_computes_is_known() -> None:
    builder = GraphBuilder()
    builder.input("x", ["n", 6, "h", "w"])
    builder.add("Shape", ["x"], "shape")
    for name, values in (("two", [2]), ("three", [3]), ("half", [2])):
        builder.initializer(name, np.array(values))
    builder.add("Gather", ["shape", "two"], "height")
    builder.add("Gather", ["shape", "three"], "width")
    builder.add("Div", ["width", "half"], "half_width")
    builder.initializer("first", np.array([1, 12]))
    builder.add("Concat", ["first", "height", "half_width"], "target", axis=0)
    builder.add("Reshape", ["x", "target"], "folded")
    builder.output(builder.conv("folded", "y", 12, 4))
    cost = count(builder.model(check=False), {"x": (1, 6, 10, 8)})
    assert (cost.macs, cost.unknown) == (12 * 4 * 10 * 4, ())


def test_unknown_shapes_are_listed_and_not_guessed() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 4, 5, 5])
    builder.conv("x", "known", 4, 4)
    builder.input("target", [4], TensorProto.INT64)
    builder.add("Reshape", ["known", "target"], "reshaped")
    builder.output(builder.conv("reshaped", "lost", 4, 2))
    cost = count(builder.model(check=False))
    assert cost.unknown == ("lost",)
    assert cost.nodes["lost"].macs is None
    assert cost.nodes["lost"].weights == 8
    assert cost.macs == 16 * 25


def test_declared_shapes_help_where_inference_ends() -> None:
    builder = GraphBuilder()
    builder.input("x", ["n", 4, "h", "h"])
    builder.nodes.append(helper.make_node("Strange", ["x"], ["s"], domain="elsewhere"))
    builder.output(builder.conv("s", "y", 4, 2))
    model = builder.model(check=False)
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    assert count(model).unknown == ("y",)
    model.graph.value_info.append(
        helper.make_tensor_value_info("s", TensorProto.FLOAT, ["n", 4, "h", 3])
    )
    cost = count(model, {"x": (1, 4, 7, 7)})
    assert (cost.macs, cost.unknown) == (8 * 21, ())
    assert cost.notes == ("MACs of Strange are not counted",)


def test_nodes_that_break_the_standard_are_unknown_and_no_crash() -> None:
    model = pointwise_model(8, 8)
    model.graph.node[0].attribute.append(helper.make_attribute("surprise", 1))
    cost = count(model)
    assert "conv" in cost.unknown
    assert cost.parameters == 8 * 8 + 8 + 8 * 9
    broken = _if_model(True)
    del broken.graph.node[0].attribute[:]
    assert count(broken).macs == 2 * 25, "y, whose shape is declared"


def test_a_function_that_calls_itself_is_unknown() -> None:
    builder = GraphBuilder()
    builder.functions.append(
        helper.make_function(
            "local",
            "Endless",
            ["a"],
            ["b"],
            [helper.make_node("Endless", ["a"], ["b"], domain="local")],
            [helper.make_opsetid("local", 1)],
        )
    )
    builder.input("x", [1, 4, 5, 5])
    builder.add("Endless", ["x"], "e", domain="local")
    builder.output(builder.conv("e", "y", 4, 4))
    cost = count(builder.model(check=False))
    assert (cost.parameters, cost.unknown) == (16, ("y",))


# --------------------------------------------------------------------------- scopes


def _branch(name: str, F: int) -> onnx.GraphProto:
    inner = GraphBuilder(seed=F)
    inner.conv("x", f"{name}_y", 4, F)
    inner.add("ReduceMean", [f"{name}_y"], f"{name}_out", axes=[1], keepdims=1)
    inner.output(f"{name}_out")
    return inner.graph(name)


def _if_model(condition: bool | None) -> onnx.ModelProto:
    builder = GraphBuilder()
    builder.input("x", [1, 4, 5, 5])
    if condition is None:
        builder.input("cond", [], TensorProto.BOOL)
    else:
        builder.initializer("cond", np.array(condition))
    builder.add("If", ["cond"], "chosen", then_branch=_branch("a", 2), else_branch=_branch("b", 3))
    builder.output(builder.conv("chosen", "y", 1, 2))
    return builder.model()


def test_if_counts_the_branch_with_more_macs() -> None:
    cost = count(_if_model(None))
    assert cost.parameters == 8 + 12 + 2
    assert cost.macs == (12 + 2) * 25
    assert {name: node.macs for name, node in cost.nodes.items()} == {
        "a_y": 200,
        "b_y": 300,
        "y": 50,
    }
    assert cost.notes == ("of If 'chosen' the branch with more MACs is counted",)


def test_if_with_a_known_condition_costs_its_branch_and_holds_both() -> None:
    cost = count(_if_model(True))
    assert (cost.parameters, cost.macs, cost.notes) == (22, 10 * 25, ())


def test_loop_counts_its_body_once() -> None:
    body = GraphBuilder()
    body.inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 4, 5, 5]),
    ]
    body.add("Identity", ["go"], "go_on")
    body.conv("state", "next", 4, 4)
    body.output("go_on", [], TensorProto.BOOL)
    body.output("next")
    builder = GraphBuilder()
    builder.input("x", [1, 4, 5, 5])
    builder.initializer("trips", np.array(3))
    builder.add("Loop", ["trips", "", "x"], "last", body=body.graph("body"))
    builder.output(builder.conv("last", "y", 4, 1), [1, 1, 5, 5])
    cost = count(builder.model())
    assert (cost.parameters, cost.macs) == (16 + 4, (16 + 4) * 25)
    assert cost.notes == ("the body of Loop 'last' is counted once",)


def test_function_bodies_are_counted_at_every_call() -> None:
    weight = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32))
    convolution = helper.make_node("Conv", ["z", "inner_w"], ["out"])
    strides = convolution.attribute.add(name="strides", ref_attr_name="strides")
    strides.type = onnx.AttributeProto.INTS
    function = helper.make_function(
        "local",
        "Block",
        ["z"],
        ["out"],
        [helper.make_node("Constant", [], ["inner_w"], value=weight), convolution],
        [helper.make_opsetid("", 17)],
        ["strides"],
    )
    builder = GraphBuilder()
    builder.functions.append(function)
    builder.input("x", [1, 4, 8, 8])
    builder.add("Block", ["x"], "a", domain="local", strides=[1, 1])
    builder.add("Block", ["a"], "b", domain="local", strides=[2, 2])
    builder.output("b")
    cost = count(builder.model())
    assert cost.parameters == 16
    assert cost.macs == 16 * (64 + 16)
    assert {name: (n.weights, n.macs) for name, n in cost.nodes.items()} == {"out": (16, 16 * 80)}


def test_equal_names_in_two_scopes_stay_apart() -> None:
    model = _if_model(None)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                attribute.g.node[0].output[0] = attribute.g.node[1].input[0] = "same"
    keys = set(count(model).nodes)
    assert keys == {"chosen.then_branch/same", "chosen.else_branch/same", "y"}


def test_nodes_are_found_by_their_scope() -> None:
    cost = count(_if_model(None))
    inner = cost.node("chosen.then_branch", "a_y")
    assert inner is not None
    assert (inner.weights, inner.macs) == (8, 200)
    assert cost.node("", "a_y") is None
    assert cost.node("", "y") == cost.nodes["y"]


def test_parameters_of_several_nodes_count_shared_tensors_once() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 5])
    builder.conv("x", "a", 8, 8, bias=True)
    builder.add("Conv", ["a", "a_w"], "b")
    builder.output("b")
    cost = count(builder.model())
    assert cost.parameters_of([("", "a"), ("", "b")]) == 64 + 8
    assert cost.parameters_of([("", "b")]) == 64
    assert cost.parameters_of([("", "none")]) == 0


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


def test_the_model_is_not_changed() -> None:
    model = _if_model(None)
    before = model.SerializeToString()
    count(model)
    assert model.SerializeToString() == before


def test_counting_needs_neither_onnxruntime_nor_torch_nor_click() -> None:
    program = (
        "import sys; import onnx_igpc.graph.cost; "
        "print([m for m in ('onnxruntime', 'torch', 'click') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not MODEL_FILES, reason="ONNX_IGPC_MODELS names no folder of models")
@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
def test_real_models_are_counted_completely(path: Path) -> None:
    cost = count(open_model(path))
    assert cost.parameters > 10_000
    assert cost.macs > 1_000_000
    assert not cost.unknown
    assert not cost.notes
    if path.stem.startswith("mobilenet_v1_0.25"):
        assert cost.macs == 41_030_272
