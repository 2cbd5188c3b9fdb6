"""Folding BatchNormalization into sites: the same outputs with fewer nodes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering.catalogue import fold_batch_norms
from onnx_igpc.passes import PassResult
from tests.helpers import GraphBuilder, random_feeds, run
from tests.lowering_cases import LAYOUTS, add_function_with_dead, rewritten, sites_of
from tests.passes.graphs import copy_of


def network(
    C: int, F: int, *, norms: int = 1, dtype: type[np.generic] = np.float32, bias: bool = True
) -> onnx.ModelProto:
    """x -> 1x1 Conv ``conv`` -> BatchNorm ``bn1`` ... -> Relu -> y."""
    builder = GraphBuilder(dtype=dtype)
    builder.input("x", [2, C, 5, 5])
    value = builder.conv("x", "conv", C, F, bias=bias)
    for index in range(norms):
        value = builder.batch_norm(value, f"bn{index + 1}", F)
    builder.add("Relu", [value], "y")
    builder.output("y")
    return builder.model()


def folded(model: OpenModel) -> tuple[onnx.ModelProto, PassResult]:
    """A copy with its BatchNormalizations folded, which computes the same."""
    copy = OpenModel(copy_of(model.proto))
    result = fold_batch_norms(copy)
    onnx.checker.check_model(copy.proto, full_check=True)
    feeds = random_feeds(model.proto)
    before, after = run(model.proto, feeds)["y"], run(copy.proto, feeds)["y"]
    scale = float(np.abs(before.astype(np.float64)).max())
    tolerance = 2e-2 if before.dtype == np.float16 else 1e-5
    np.testing.assert_allclose(after, before, atol=tolerance * scale, rtol=0)
    return copy.proto, result


def set_scale(model: OpenModel, index: int, value: float) -> None:
    tensor = next(t for t in model.proto.graph.initializer if t.name == "bn1_scale")
    values = numpy_helper.to_array(tensor).copy()
    values[index] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("form", ["linear", "paper"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", LAYOUTS)
def test_every_layout(case: str, bias: bool, form: str) -> None:
    C, F, ch, scheme = LAYOUTS[case]
    model = rewritten(network(C, F, bias=bias), ch, scheme, form=form, include_heads=True)
    before = sum(node.op_type == "BatchNormalization" for node in model.proto.graph.node)
    after, result = folded(model)
    assert len(result.changed) == before > 0
    assert not any(node.op_type == "BatchNormalization" for node in after.graph.node)
    assert [site.name for site in sites_of(OpenModel(after))] == [s.name for s in sites_of(model)]
    assert not any(tensor.name.startswith("bn") for tensor in after.graph.initializer)


def test_one_behind_the_other() -> None:
    after, result = folded(rewritten(network(32, 32, norms=3), 8))
    assert result.changed == ["bn1_node", "bn2_node", "bn3_node"]
    assert sites_of(OpenModel(after))[0].output == "bn3"


def test_negative_scales() -> None:
    model = rewritten(network(32, 32), 8)
    for index in range(0, 32, 3):
        set_scale(model, index, -0.7)
    assert folded(model)[1].changed == ["bn1_node"]


def test_a_filter_that_is_switched_off() -> None:
    """Its row of K would be 0, but L reads it."""
    model = rewritten(network(32, 32), 8)
    set_scale(model, 5, 0.0)
    after, result = folded(model)
    assert result.changed == ["bn1_node"]
    feeds = random_feeds(model.proto)
    before, found = run(model.proto, feeds)["y"], run(after, feeds)["y"]
    np.testing.assert_array_equal(found[:, 5], before[:, 5])


def test_a_filter_that_is_switched_off_in_half_precision_stops_it() -> None:
    model = rewritten(network(32, 32, dtype=np.float16), 8)
    set_scale(model, 5, 0.0)
    after, result = folded(model)
    assert result.kept == {"bn1_node": "it switches off a filter whose value L reads"}
    assert after == model.proto


def test_without_the_sum_a_filter_may_be_switched_off() -> None:
    model = rewritten(network(16, 40), 8)
    set_scale(model, 5, 0.0)
    assert folded(model)[1].changed == ["bn1_node"]


def test_half_precision() -> None:
    model = rewritten(network(32, 32, dtype=np.float16), 8)
    after, result = folded(model)
    assert result.changed == ["bn1_node"]
    assert {tensor.data_type for tensor in after.graph.initializer} == {
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.INT64,
    }


def test_weights_that_would_lose_precision_are_not_folded() -> None:
    model = rewritten(network(32, 32, dtype=np.float16), 8)
    for index in range(32):
        set_scale(model, index, 2e-6)
    after, result = folded(model)
    assert result.kept == {"bn1_node": "the folded weights would lose precision in float16"}
    assert after == model.proto


def test_what_nothing_read_before_stays() -> None:
    """A dead value of another scope, by a name that folding leaves without a reader."""
    model = rewritten(network(32, 32), 8, include_heads=True)
    function = add_function_with_dead(model, "bn1_scale")
    after, result = folded(model)
    assert result.changed == ["bn1_node"]
    assert "bn1_scale" not in {tensor.name for tensor in after.graph.initializer}
    assert list(after.functions) == [function]
