"""Every pointwise convolution is found, and kept only for a reason that a person understands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.graph.model import open_model
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import Rewritable, find_sites
from tests.helpers import GraphBuilder, WeightForm, pointwise_model, tensor_named
from tests.real_models import each_model
from tests.sites.finding import only_site, reason_of, reasons, site_with_weight, sites_of

# --------------------------------------------------------------------------- what is found


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("weights", ["initializer", "constant", "input"])
def test_sites_in_every_form(dims: int, dtype: type[np.generic], weights: WeightForm) -> None:
    model = pointwise_model(12, 20, dims=dims, dtype=dtype, weights=weights, stride=2)
    site = only_site(model)
    assert isinstance(site, Rewritable)
    assert (site.name, site.in_channels, site.out_channels) == ("conv_node", 12, 20)
    assert (site.dtype, site.spatial_rank) == (np.dtype(dtype), dims)
    assert site.has_bias
    assert site.ref.node.inputs[0].name == "x"
    assert site.output_tensor.name == "conv"
    np.testing.assert_array_equal(
        site.weight_matrix(), tensor_named(model, "conv_w").reshape(20, 12)
    )
    assert site.bias is not None
    np.testing.assert_array_equal(site.bias.values(), tensor_named(model, "conv_b"))


@pytest.mark.parametrize("opset", [7, 9, 13, 21])
def test_sites_in_every_operator_set(opset: int) -> None:
    model = pointwise_model(opset=opset, batch_norm=True, activation="Relu6", bias=False)
    site = only_site(model)
    assert reason_of(site) is None
    assert not site.has_bias
    assert site.bias is None


def test_larger_kernels_and_other_operators_are_no_sites() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 5])
    builder.conv("x", "wide", 8, 8, kernel=3)
    builder.initializer("flat", builder.random(8, 8, 1, 3))
    builder.add("Conv", ["wide", "flat"], "row")
    builder.initializer("t", builder.random(8, 8, 1, 1))
    builder.output(builder.add("ConvTranspose", ["row", "t"], "y"))
    assert sites_of(builder.model()) == []


def test_kernel_shape_is_not_needed() -> None:
    model = pointwise_model()
    assert not any(a.name == "kernel_shape" for a in model.graph.node[0].attribute)
    assert reason_of(only_site(model)) is None


@pytest.mark.parametrize("auto_pad", ["", "NOTSET", "SAME_UPPER", "VALID"])
def test_every_auto_pad_that_onnxruntime_takes(auto_pad: str) -> None:
    model = pointwise_model()
    model.graph.node[0].attribute.append(helper.make_attribute("auto_pad", auto_pad))
    assert reason_of(only_site(model)) is None


def test_grouped_convolutions_are_kept() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 5])
    builder.conv("x", "conv", 8, 6, group=2)
    builder.output(builder.add("Relu", ["conv"], "y"))
    site = only_site(builder.model())
    assert reason_of(site) == "already a grouped convolution (2 groups)"
    assert (site.in_channels, site.out_channels) == (8, 6)


def test_weight_through_views_of_a_constant() -> None:
    builder = GraphBuilder()
    stored = builder.random(6, 4).astype(np.float16)
    builder.initializer("stored", stored)
    builder.add("Cast", ["stored"], "cast", to=TensorProto.FLOAT)
    builder.add("Transpose", ["cast"], "turned", perm=[1, 0])
    builder.initializer("shape", np.array([4, 6, 1, 1]))
    builder.add("Reshape", ["turned", "shape"], "w")
    builder.initializer("one", builder.random(1))
    builder.initializer("four", np.array([4]))
    builder.add("Expand", ["one", "four"], "b")
    site = site_with_weight(builder, "w", "b")
    assert reason_of(site) is None
    assert site.dtype == np.float32
    np.testing.assert_array_equal(site.weight_matrix(), stored.T.astype(np.float32))
    assert site.bias is not None
    assert site.bias.values().shape == (4,)


def test_shared_weights_are_two_sites_of_one_tensor() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 5])
    builder.conv("x", "a", 8, 8)
    builder.add("Conv", ["a", "a_w"], "b")
    builder.output(builder.add("Relu", ["b"], "y"))
    first, second = sites_of(builder.model())
    assert first.weight is not None
    assert second.weight is not None
    assert first.weight.root is second.weight.root


def test_sites_in_sub_graphs_and_functions() -> None:
    branch = GraphBuilder()
    branch.conv("x", "inner", 8, 8)
    branch.output(branch.add("Relu", ["inner"], "inner_y"))
    other = GraphBuilder()
    other.output(other.add("Relu", ["x"], "other_y"))
    body = GraphBuilder()
    body.inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 8, 5, 5]),
    ]
    body.add("Identity", ["go"], "go_on")
    body.output("go_on", [], TensorProto.BOOL)
    body.output(body.conv("state", "looped", 8, 8))
    weight = numpy_helper.from_array(np.ones((8, 8, 1, 1), np.float32))
    function = helper.make_function(
        "local",
        "Block",
        ["z", "given"],
        ["out"],
        [
            helper.make_node("Constant", [], ["stored"], value=weight),
            helper.make_node("Conv", ["z", "stored"], ["called"]),
            helper.make_node("Conv", ["called", "given"], ["late"], kernel_shape=[1, 1]),
            helper.make_node("Relu", ["late"], ["out"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    builder = GraphBuilder()
    builder.functions.append(function)
    builder.input("x", [1, 8, 5, 5])
    builder.input("cond", [], TensorProto.BOOL)
    builder.add(
        "If", ["cond"], "chosen", then_branch=branch.graph("t"), else_branch=other.graph("e")
    )
    builder.initializer("trips", np.array(2))
    builder.add("Loop", ["trips", "", "chosen"], "last", body=body.graph("body"))
    builder.initializer("given_w", builder.random(8, 8, 1, 1))
    builder.output(
        builder.add("Block", ["last", "given_w"], "y", domain="local"), [1, 8, None, None]
    )
    found = reasons(builder.model())
    assert found == {
        "inner_node": None,
        "looped_node": None,
        "called": None,
        "late": "weight is a parameter of the function local.Block",
    }


# --------------------------------------------------------------------------- kept values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["conv_w", "conv_b"])
def test_values_that_are_no_numbers(value: float, where: str) -> None:
    model = pointwise_model()
    for tensor in model.graph.initializer:
        if tensor.name == where:
            values = numpy_helper.to_array(tensor).copy()
            values.flat[7] = value
            tensor.CopyFrom(numpy_helper.from_array(values, where))
    label = "weight" if where == "conv_w" else "bias"
    what = "NaN" if np.isnan(value) else "infinite values"
    assert reason_of(only_site(model)) == f"{label} holds {what}"


def test_weights_computed_at_run_time() -> None:
    builder = GraphBuilder()
    builder.initializer("stored", builder.random(4, 6, 1, 1))
    builder.input("factor", [1])
    builder.add("Mul", ["stored", "factor"], "w")
    assert reason_of(site_with_weight(builder, "w")) == "weight is computed at run time"


def test_bias_computed_at_run_time() -> None:
    builder = GraphBuilder()
    builder.initializer("w", builder.random(4, 6, 1, 1))
    builder.input("b", [4])
    assert reason_of(site_with_weight(builder, "w", "b")) == "bias is computed at run time"


def test_weights_that_are_an_input() -> None:
    builder = GraphBuilder()
    builder.input("w", [4, 6, 1, 1])
    site = site_with_weight(builder, "w")
    assert reason_of(site) == "weight is computed at run time"
    assert (site.in_channels, site.out_channels) == (6, 4)


@pytest.mark.parametrize("transposed", [False, True])
def test_quantized_weights(transposed: bool) -> None:
    builder = GraphBuilder(opset=13)
    shape = (6, 4, 1, 1) if transposed else (4, 6, 1, 1)
    builder.initializer("q", np.ones(shape, np.int8))
    builder.initializer("scale", np.array(0.5, np.float32))
    builder.add("DequantizeLinear", ["q", "scale"], "w")
    if transposed:
        builder.add("Transpose", ["w"], "turned", perm=[1, 0, 2, 3])
    site = site_with_weight(builder, "turned" if transposed else "w")
    assert reason_of(site) == "weight is quantized (behind DequantizeLinear)"
    if not transposed:
        assert (site.in_channels, site.out_channels) == (6, 4)


# --------------------------------------------------------------------------- real models


@each_model
def test_every_pointwise_convolution_of_a_real_model_is_accounted_for(path: Path) -> None:
    sites = find_sites(GraphView(open_model(path))).all
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    expected = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            kernel = next(a.ints for a in node.attribute if a.name == "kernel_shape")
            expected += all(size == 1 for size in kernel)
    assert len(sites) == expected
    assert len({site.name for site in sites}) == expected
    for site in sites:
        assert site.in_channels
        assert site.out_channels
        assert reason_of(site) is None or "\n" not in reason_of(site)
    if "qdq" in path.stem:
        assert {reason_of(site) for site in sites} == {
            "weight is quantized (behind DequantizeLinear)"
        }
    else:
        assert any(reason_of(site) is None for site in sites)
