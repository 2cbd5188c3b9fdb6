"""Every pointwise convolution is found, and kept only for a reason that a person understands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.errors import UsageError
from onnx_igpc.graph.model import OpenModel, open_model
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import Kept, Rewritable, SiteFilter, find_sites
from tests.helpers import GraphBuilder, WeightForm, pointwise_model, tensor_named
from tests.helpers import with_following_layers as following

MODELS = os.environ.get("ONNX_IGPC_MODELS")
MODEL_FILES = sorted(Path(MODELS).glob("*.onnx")) if MODELS else []


Site = Rewritable | Kept


def reason_of(site: Site) -> str | None:
    return site.reason if isinstance(site, Kept) else None


def sites_of(model: onnx.ModelProto, site_filter: SiteFilter | None = None) -> list[Site]:
    return list(find_sites(GraphView(OpenModel(model)), site_filter).all)


def only_site(model: onnx.ModelProto, site_filter: SiteFilter | None = None) -> Site:
    (site,) = sites_of(model, site_filter)
    return site


def reasons(
    model: onnx.ModelProto,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    include_heads: bool = False,
) -> dict[str, str | None]:
    chosen = SiteFilter(tuple(include), tuple(exclude), include_heads)
    return {site.name: reason_of(site) for site in sites_of(model, chosen)}


def site_with_weight(builder: GraphBuilder, weight: str, bias: str = "") -> Site:
    """The convolution ``conv`` of 6 channels that reads the value ``weight``; no head."""
    builder.input("x", ["n", 6, 5, 5])
    builder.add("Conv", ["x", weight, bias] if bias else ["x", weight], "conv", kernel_shape=[1, 1])
    builder.output(builder.add("Relu", ["conv"], "y"), ["n", 4, 5, 5])
    return only_site(builder.model())


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


# --------------------------------------------------------------------------- heads


def _reshape(builder: GraphBuilder, value: str) -> str:
    return builder.add("Reshape", [value, builder.stored("s", np.array([1, -1]))], "y")


def _squeeze(builder: GraphBuilder, value: str) -> str:
    pooled = builder.add("ReduceMean", [value], "pooled", axes=[2, 3])
    return builder.add("Squeeze", [pooled, builder.stored("axes", np.array([2, 3]))], "y")


def _concat(builder: GraphBuilder, value: str) -> str:
    return builder.add("Concat", [value, "x"], "y", axis=1)


def _slice(builder: GraphBuilder, value: str) -> str:
    ends = [builder.stored(n, np.array([v])) for n, v in (("start", 0), ("end", 2), ("axis", 2))]
    return builder.add("Slice", [value, *ends], "y")


def _resize(builder: GraphBuilder, value: str) -> str:
    scales = builder.stored("scales", np.array([1, 1, 2, 2], np.float32))
    return builder.add("Resize", [value, "", scales], "y", mode="nearest")


def _split(builder: GraphBuilder, value: str) -> str:
    builder.nodes.append(helper.make_node("Split", [value], ["left", "y"], name="split", axis=1))
    return "y"


def _chain(builder: GraphBuilder, value: str) -> str:
    turned = builder.add("Transpose", [value], "turned", perm=[0, 2, 3, 1])
    return builder.add("Sigmoid", [_reshape(builder, turned)], "z")


@pytest.mark.parametrize("op_type", ["Flatten", "Identity", "Softmax", "LogSoftmax", "Sigmoid"])
def test_heads_through_operators_of_one_input(op_type: str) -> None:
    model = following(lambda builder, value: builder.add(op_type, [value], "y"))
    assert reason_of(only_site(model)) == f"head: only {op_type} before output 'y'"
    assert reasons(model, include_heads=True) == {"conv_node": None}


@pytest.mark.parametrize("add", [_reshape, _concat, _slice, _resize, _split])
def test_heads_through_operators_that_move_values(add: object) -> None:
    reason = reason_of(only_site(following(add)))  # type: ignore[arg-type]
    assert reason == f"head: only {str(add.__name__)[1:].title()} before output 'y'"  # type: ignore[attr-defined]


def test_heads_through_cast_squeeze_transpose_and_several() -> None:
    model = following(lambda b, v: b.add("Transpose", [v], "y", perm=[0, 2, 3, 1]))
    assert reason_of(only_site(model)) == "head: only Transpose before output 'y'"
    assert reason_of(only_site(following(_chain))) == (
        "head: only Transpose, Reshape, Sigmoid before output 'z'"
    )
    cast = GraphBuilder()
    cast.input("x", [1, 8, 1, 1])
    cast.conv("x", "conv", 8, 8)
    cast.add("Squeeze", ["conv", cast.stored("axes", np.array([2, 3]))], "flat")
    cast.add("Cast", ["flat"], "y", to=TensorProto.FLOAT16)
    cast.output("y", elem_type=TensorProto.FLOAT16)
    assert reason_of(only_site(cast.model())) == "head: only Squeeze, Cast before output 'y'"


def test_a_site_that_makes_an_output() -> None:
    model = following(lambda builder, value: value)
    assert reason_of(only_site(model)) == "head: it makes output 'conv'"


@pytest.mark.parametrize(
    "op_type", ["Relu", "GlobalAveragePool", "HardSwish", "LeakyRelu", "Tanh", "Neg"]
)
def test_no_head_before_operators_that_compute(op_type: str) -> None:
    model = following(lambda builder, value: builder.add(op_type, [value], "y"))
    assert reason_of(only_site(model)) is None


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Max"])
def test_no_head_before_operators_of_two_inputs(op_type: str) -> None:
    model = following(lambda builder, value: builder.add(op_type, [value, "x"], "y"))
    assert reason_of(only_site(model)) is None


def test_no_head_before_squeeze_of_a_mean() -> None:
    assert reason_of(only_site(following(_squeeze))) is None


def test_one_of_several_ways_to_an_output_makes_a_head() -> None:
    def add(builder: GraphBuilder, value: str) -> str:
        builder.add("Relu", [value], "busy")
        builder.conv("busy", "next", 32, 32, kernel=3)
        return builder.add("Sigmoid", [value], "y")

    assert reason_of(only_site(following(add))) == "head: only Sigmoid before output 'y'"


def test_a_head_inside_a_branch_is_a_head() -> None:
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = GraphBuilder()
        inner.output(inner.conv("x", f"{name}_y", 8, 8))
        branches[name] = inner.graph(name)
    builder = GraphBuilder()
    builder.input("x", [1, 8, 5, 5])
    builder.input("cond", [], TensorProto.BOOL)
    builder.add("If", ["cond"], "chosen", **branches)
    builder.output(builder.add("Sigmoid", ["chosen"], "y"))
    found = reasons(builder.model())
    assert set(found.values()) == {"head: only Sigmoid before output 'y'"}
    builder.nodes[-1].op_type = "Relu"
    assert set(reasons(builder.model()).values()) == {None}


# --------------------------------------------------------------------------- names and globs


def _three_sites(*names: str) -> onnx.ModelProto:
    builder = GraphBuilder()
    value = builder.input("x", [1, 8, 5, 5])
    for index, name in enumerate(names):
        value = builder.conv(value, f"v{index}", 8, 8, name=name)
    builder.output(builder.add("Relu", [value], "y"))
    return builder.model()


def test_include_and_exclude() -> None:
    model = _three_sites("block/a", "block/b", "neck/a")
    assert reasons(model, include=["block/*"]) == {
        "block/a": None,
        "block/b": None,
        "neck/a": "not matched by --include",
    }
    assert reasons(model, include=["block/*"], exclude=["*/a"]) == {
        "block/a": "excluded by --exclude */a",
        "block/b": None,
        "neck/a": "not matched by --include",
    }
    assert reasons(model, include=["block/a", "neck/?"])["block/b"] is not None
    assert reasons(model, exclude=["*"])["block/a"] == "excluded by --exclude *"


def test_nodes_without_a_name_go_by_their_output() -> None:
    model = _three_sites("", "", "named")
    assert list(reasons(model)) == ["v0", "v1", "named"]
    assert reasons(model, exclude=["v1"])["v1"] == "excluded by --exclude v1"


def test_nodes_with_one_name_are_told_apart_and_match_it() -> None:
    model = _three_sites("conv", "conv", "other")
    found = reasons(model)
    assert len(found) == 3
    assert all(name in found for name in ("conv:/v0", "conv:/v1", "other"))
    assert list(reasons(model, exclude=["conv"]).values()) == [
        "excluded by --exclude conv",
        "excluded by --exclude conv",
        None,
    ]
    assert list(reasons(model, include=["conv:/v1"]).values()) == [
        "not matched by --include",
        None,
        "not matched by --include",
    ]


def test_a_glob_that_matches_nothing_lists_near_matches() -> None:
    model = _three_sites("block1/expand", "block1/project", "stem")
    with pytest.raises(
        UsageError,
        match=r"`exclude` 'block1/expnd' matches no pointwise .*near matches: block1/expand",
    ) as caught:
        reasons(model, exclude=["block1/expnd"])
    assert "\n" not in str(caught.value)
    assert "stem" not in str(caught.value)
    with pytest.raises(UsageError, match="`include` 'zzz' matches no"):
        reasons(model, include=["zzz", "stem"])
    with pytest.raises(UsageError, match="matches no"):
        reasons(model, include=["STEM"])


def test_a_name_with_brackets_matches_itself() -> None:
    model = _three_sites("conv[0]", "conv[1]", "conv0")
    found = reasons(model, include=["conv[0]"])
    assert found["conv[0]"] is None
    assert found["conv[1]"] == "not matched by --include"


def test_nodes_of_an_earlier_run_are_left_alone() -> None:
    view = GraphView(OpenModel(_three_sites("block/a", "b", "c")))
    found = {s.name: s for s in find_sites(view, taken={"block/a": "block/original"}).all}
    assert reason_of(found["block/a"]) == "part of the already rewritten block/original"
    assert getattr(found["block/a"], "part_of", None) == "block/original"
    assert reason_of(found["b"]) is None


# --------------------------------------------------------------------------- real models


@pytest.mark.skipif(not MODEL_FILES, reason="ONNX_IGPC_MODELS names no folder of models")
@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
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
