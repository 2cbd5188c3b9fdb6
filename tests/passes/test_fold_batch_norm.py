"""Folding BatchNormalization: the same outputs in onnxruntime with fewer nodes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_igpc import compress
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.passes import FoldBatchNorm, PassResult
from onnx_igpc.planning.options import Published
from onnx_igpc.sites.rewrite import Form
from tests.helpers import GraphBuilder, WeightForm, node_named, pointwise_model, random_feeds, run
from tests.passes.graphs import copy_of
from tests.untouched import assert_untouched


def folded(before: onnx.ModelProto) -> tuple[onnx.ModelProto, PassResult]:
    opened = OpenModel(copy_of(before))
    result = FoldBatchNorm().run(opened)
    onnx.checker.check_model(opened.proto, full_check=True)
    return opened.proto, result


def assert_same_outputs(
    before: onnx.ModelProto, after: onnx.ModelProto, tolerance: float = 1e-4
) -> None:
    feeds = random_feeds(before)
    expected, found = run(before, feeds), run(after, feeds)
    for name, values in expected.items():
        scale = float(np.abs(values.astype(np.float64)).max())
        np.testing.assert_allclose(found[name], values, atol=tolerance * scale, rtol=0)


def norms(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


@pytest.mark.parametrize("weights", ["initializer", "constant", "input"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("opset", [7, 9, 17])
def test_outputs_stay_the_same(opset: int, bias: bool, weights: WeightForm) -> None:
    before = pointwise_model(12, 10, bias=bias, batch_norm=True, opset=opset, weights=weights)
    after, result = folded(before)
    assert_same_outputs(before, after)
    assert result.changed == ["bn_node"]
    assert norms(after) == 0
    assert node_named(after, "conv_node").output[0] == "bn"
    stored = {tensor.name for tensor in after.graph.initializer}
    assert not {"conv_w", "conv_b", "bn_scale", "bn_shift", "bn_mean", "bn_var"} & stored


@pytest.mark.parametrize(("group", "kernel", "dims"), [(8, 3, 2), (4, 1, 2), (1, 3, 1), (8, 1, 3)])
def test_depthwise_grouped_and_larger_kernels(group: int, kernel: int, dims: int) -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, *[6] * dims])
    pads = [kernel // 2] * 2 * dims
    builder.conv("x", "conv", 8, 16, dims=dims, kernel=kernel, group=group, pads=pads)
    builder.batch_norm("conv", "y", 16)
    builder.output("y")
    after, _ = folded(builder.model())
    assert norms(after) == 0
    assert_same_outputs(builder.model(), after)


def test_half_precision() -> None:
    before = pointwise_model(12, 10, batch_norm=True, dtype=np.float16, activation=None)
    after, _ = folded(before)
    assert {tensor.data_type for tensor in after.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert_same_outputs(before, after, 1e-2)


def test_values_that_would_overflow_are_not_folded() -> None:
    before = pointwise_model(12, 10, batch_norm=True, dtype=np.float16)
    for tensor in before.graph.initializer:
        if tensor.name in ("bn_scale", "bn_var"):
            value = 6e4 if tensor.name == "bn_scale" else 1e-4
            tensor.raw_data = np.full(10, value, np.float16).tobytes()
    after, result = folded(before)
    assert after == before
    assert result.kept == {"bn_node": "the folded weights would not be finite in float16"}


def test_shared_weights_are_folded_apart() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 8, 6, 6])
    builder.conv("x", "a", 8, 8, bias=True)
    builder.add("Conv", ["x", "a_w", "a_b"], "b")
    made = [builder.batch_norm(name, f"{name}_bn", 8) for name in ("a", "b")]
    builder.add("Concat", [*made, builder.add("Conv", ["x", "a_w"], "c")], "y", axis=1)
    builder.output("y")
    after, result = folded(builder.model())
    assert len(result.changed) == 2
    assert_same_outputs(builder.model(), after)
    stored = {tensor.name for tensor in after.graph.initializer}
    assert "a_w" in stored, "the third still reads it"
    assert "a_b" not in stored


def kept_cases() -> dict[str, onnx.ModelProto]:
    def start() -> GraphBuilder:
        builder = GraphBuilder()
        builder.input("x", [1, 8, 6, 6])
        builder.conv("x", "conv", 8, 8)
        builder.batch_norm("conv", "bn", 8)
        return builder

    cases = {}
    builder = start()
    builder.add("Add", ["bn", "conv"], "y")
    builder.output("y")
    cases["the convolution is read elsewhere"] = builder.model()
    builder = start()
    builder.output("bn")
    builder.output("conv")
    cases["the convolution is an output"] = builder.model()
    builder = start()
    builder.nodes[-1].attribute.append(helper.make_attribute("training_mode", 1))
    builder.nodes[-1].output.extend(["new_mean", "new_var"])
    builder.output("bn", [1, 8, 6, 6])
    cases["training mode"] = builder.model()
    builder = start()
    builder.input("scale", [8])
    builder.nodes[-1].input[1] = "scale"
    builder.output("bn")
    cases["computed scale"] = builder.model()
    builder = start()
    builder.input("w", [8, 8, 1, 1])
    builder.nodes[0].input[1] = "w"
    builder.output("bn")
    cases["computed weight"] = builder.model()
    return cases


@pytest.mark.parametrize("case", kept_cases())
def test_what_is_not_folded(case: str) -> None:
    before = kept_cases()[case]
    after, result = folded(before)
    assert after == before
    assert not result
    if case == "training mode":
        assert result.kept == {"bn_node": "it is in training mode"}


def test_the_former_output_leaves_no_value_info() -> None:
    before = pointwise_model(12, 10, batch_norm=True)
    before.graph.value_info.add(name="conv").type.tensor_type.elem_type = 1
    before.graph.value_info.add(name="bn").type.tensor_type.elem_type = 1
    after, _ = folded(before)
    assert [entry.name for entry in after.graph.value_info] == ["bn"]


@pytest.mark.parametrize("form", ["linear", "paper"])
def test_compress_folds_first(form: Form) -> None:
    before = pointwise_model(40, 24, batch_norm=True)
    result = compress(before, Published(8, form=form), fold_batch_norm=True)
    report = result.report
    assert report.folded == ["bn_node"]
    assert norms(result.model) == 0
    assert_untouched(before, result.model, report)
    site = report.sites[0]
    assert (site.status, site.output) == ("rewritten", "bn" if form == "linear" else "act")
    assert site.parameters.before == 40 * 24 + 24
    assert report.totals.parameters.after == count(result.model).parameters


def test_folding_alone_is_a_change() -> None:
    before = pointwise_model(4, 4, batch_norm=True)
    result = compress(before, fold_batch_norm=True)
    assert result.changed
    assert result.report.rewritten == []
    assert_untouched(before, result.model, result.report)
    assert_same_outputs(before, result.model)


def test_one_behind_the_other() -> None:
    """Both are folded at once: a second run would otherwise find more to do."""
    builder = GraphBuilder()
    builder.input("x", [1, 40, 6, 6])
    value = builder.conv("x", "conv", 40, 24)
    for name in ("bn1", "bn2", "bn3"):
        value = builder.batch_norm(value, name, 24)
    builder.activation(value, "y", "Relu")
    builder.output("y")
    before = builder.model()
    after, result = folded(before)
    assert result.changed == ["bn1_node", "bn2_node", "bn3_node"]
    assert len(after.graph.initializer) == 2, "one weight and one bias"
    assert_same_outputs(before, after)
    report = compress(before, Published(8), fold_batch_norm=True).report
    assert report.sites[0].parameters.before == 40 * 24
