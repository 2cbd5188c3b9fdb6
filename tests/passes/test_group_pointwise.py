"""The linear form: a rewritten layer computes M x + b, in every layout and every kind of Conv."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tests.helpers import (
    GraphBuilder,
    WeightForm,
    node_named,
    pointwise_model,
    random_feeds,
    run,
    tensor_named,
)
from tests.passes.graphs import group, igpc

LAYOUTS = {
    "same channels": (32, 32, 8, "v1"),
    "fewer filters": (32, 16, 8, "v1"),
    "V1 interleaves the output": (16, 32, 8, "v1"),
    "divisor that is no multiple of ch": (33, 33, 4, "v1"),
    "V1 with small groups in L": (48, 16, 6, "v1"),
    "replicated channels": (20, 20, 8, "v2"),
    "uneven filters in K and L": (35, 27, 8, "v2"),
    "fewer filters than groups": (27, 4, 2, "v2"),
    "two filters": (257, 2, 16, "v2"),
    "no L": (16, 40, 8, "v2"),
    "no L, uneven": (17, 40, 8, "v2"),
    "dense L": (40, 12, 16, "v2"),
    "L without interleave": (40, 20, 16, "v2"),
}


def layer(C: int, F: int, *, bias: bool = True, dims: int = 2, **options: Any) -> GraphBuilder:
    """x -> Conv ``conv`` -> Relu -> y."""
    attributes = {
        key: options.pop(key) for key in list(options) if key in ("strides", "pads", "auto_pad")
    }
    builder = GraphBuilder(**options)
    builder.input("x", [2, C, *[6] * dims])
    builder.conv("x", "conv", C, F, bias=bias, dims=dims, **attributes)
    builder.add("Relu", ["conv"], "y")
    builder.output("y")
    return builder


def assert_computes(
    model: onnx.ModelProto, ch: int, scheme: str = "v2", seen: Any = None, atol: float = 1e-4
) -> onnx.ModelProto:
    """The rewritten ``model`` gives relu(M x + b), by groups; ``seen`` maps x to what K reads."""
    grouped = group(model, ch, scheme)
    name = next(iter(grouped.result.changed))
    feeds = random_feeds(model)
    x = feeds["x"].astype(np.float64)
    read = seen(x) if callable(seen) else x
    expected = igpc(grouped.layouts[name], grouped.weights[name], read)
    stored = [t.name for t in model.graph.initializer] + [n.output[0] for n in model.graph.node]
    if "conv_b" in stored:
        bias = tensor_named(model, "conv_b").astype(np.float64)
        expected += bias.reshape(-1, *[1] * (x.ndim - 2))
    if feeds["x"].dtype == np.float64:  # onnxruntime has no Conv for it on the CPU
        outputs: Any = ReferenceEvaluator(grouped.model).run(None, feeds)
        found = outputs[0]
    else:
        found = run(grouped.model, feeds)["y"]
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=atol, rtol=atol)
    return grouped.model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", LAYOUTS)
def test_every_layout_computes_its_matrix(case: str, bias: bool) -> None:
    C, F, ch, scheme = LAYOUTS[case]
    assert_computes(layer(C, F, bias=bias).model(), ch, scheme)


def test_the_layouts_are_the_kinds_they_are_called() -> None:
    """The cases above, seen as nodes, so that none of them silently becomes another."""
    counts = {}
    for case, (C, F, ch, scheme) in LAYOUTS.items():
        grouped = group(layer(C, F).model(), ch, scheme)
        counts[case] = tuple(len(grouped.nodes(op)) for op in ("Conv", "Gather", "Concat", "Add"))
    assert counts == {
        "same channels": (2, 1, 0, 1),
        "fewer filters": (2, 1, 0, 1),
        "V1 interleaves the output": (1, 1, 0, 0),
        "divisor that is no multiple of ch": (2, 1, 0, 1),
        "V1 with small groups in L": (2, 1, 0, 1),
        "replicated channels": (4, 4, 2, 1),
        "uneven filters in K and L": (4, 4, 2, 1),
        "fewer filters than groups": (2, 2, 0, 1),
        "two filters": (2, 1, 0, 1),
        "no L": (1, 0, 0, 0),
        "no L, uneven": (2, 2, 1, 0),
        "dense L": (2, 1, 0, 1),
        "L without interleave": (3, 3, 1, 1),
    }


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("scheme", ["v1", "v2"])
def test_dimensions_strides_and_pads(dims: int, stride: int, scheme: str) -> None:
    before, after = [1, 0, 2][:dims], [0, 1, 1][:dims]
    model = layer(32, 24, dims=dims, strides=[stride] * dims, pads=[*before, *after]).model()
    around = [(0, 0), (0, 0), *zip(before, after, strict=True)]
    steps = (slice(None), slice(None), *[slice(None, None, stride)] * dims)
    assert_computes(model, 8, scheme, lambda x: np.pad(x, around)[steps])


@pytest.mark.parametrize("auto_pad", ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
def test_automatic_padding(auto_pad: str) -> None:
    model = layer(32, 32, auto_pad=auto_pad, strides=[2, 3]).model()
    rewritten = assert_computes(model, 8, "v2", lambda x: x[..., ::2, ::3])
    first = node_named(rewritten, "conv_node/igpc/K")
    assert next(a.s for a in first.attribute if a.name == "auto_pad") == auto_pad.encode()


@pytest.mark.parametrize("scheme", ["v1", "v2"])
@pytest.mark.parametrize(
    ("dtype", "atol"), [(np.float16, 2e-2), (np.float32, 1e-4), (np.float64, 1e-10)]
)
def test_element_types(dtype: type[np.generic], atol: float, scheme: str) -> None:
    rewritten = assert_computes(layer(20, 40, dtype=dtype).model(), 5, scheme, atol=atol)
    kinds = {tensor.data_type for tensor in rewritten.graph.initializer}
    assert kinds == {helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), onnx.TensorProto.INT64} - (
        set() if scheme == "v1" else {onnx.TensorProto.INT64}
    )


@pytest.mark.parametrize("weights", ["initializer", "constant", "input"])
@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21, 24])
def test_operator_sets_and_places_of_weights(opset: int, weights: WeightForm) -> None:
    model = layer(35, 27, opset=opset, weights=weights).model()
    rewritten = assert_computes(model, 8)
    assert rewritten.ir_version == model.ir_version
    assert rewritten.opset_import == model.opset_import
    assert {entry.name for entry in rewritten.graph.input} == {"x"}
    if model.ir_version < 4:
        assert not rewritten.graph.initializer, "in ir_version 3 those would have to be inputs"


def test_integers_before_opset_9_are_made_by_a_cast() -> None:
    rewritten = group(layer(32, 32, opset=7).model()).model
    gather = next(node for node in rewritten.graph.node if node.op_type == "Gather")
    maker = node_named(rewritten, gather.input[1])
    assert maker.op_type == "Cast"
    assert tensor_named(rewritten, maker.input[0]).dtype == np.float32


@pytest.mark.parametrize("scheme", ["v1", "v2"])
def test_bias_behind_an_identity(scheme: str) -> None:
    builder = layer(20, 30)
    builder.nodes.insert(0, helper.make_node("Identity", ["conv_b"], ["same_b"], name="same"))
    next(node for node in builder.nodes if node.op_type == "Conv").input[2] = "same_b"
    rewritten = assert_computes(builder.model(), 5, scheme)
    if scheme == "v1":  # a bias in another order is a new tensor, and the old one is dead
        names = {tensor.name for tensor in rewritten.graph.initializer}
        assert "conv_b" not in names
        assert not any(node.op_type == "Identity" for node in rewritten.graph.node)


def test_a_bias_that_one_convolution_adds_is_not_copied() -> None:
    rewritten = group(layer(32, 32).model()).model
    last = node_named(rewritten, "conv_node/igpc/L")
    assert last.input[2] == "conv_b"
    assert len(node_named(rewritten, "conv_node/igpc/K").input) == 2


def test_an_empty_bias_name_is_no_bias() -> None:
    builder = layer(32, 32, bias=False)
    next(node for node in builder.nodes if node.op_type == "Conv").input.append("")
    assert_computes(builder.model(), 8)


def test_a_layer_that_would_not_shrink_is_kept() -> None:
    model = layer(16, 16).model()
    grouped = group(model, 8, "v1")  # 16 x 16 / 2 twice is as much as before
    assert grouped.result.kept == {"conv_node": "would not be smaller"}
    assert grouped.model == model
    assert not grouped.result


def test_a_layer_that_the_scheme_keeps_is_kept_with_its_reason() -> None:
    grouped = group(pointwise_model(24, 24), 16)
    assert grouped.result.kept["conv_node"] == "24 channels is not more than 2 x 16"
