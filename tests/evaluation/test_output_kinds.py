"""Outputs that cannot be compared: left out with a note, and the sites compared in their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_igpc.calibration.options import Calibration
from onnx_igpc.compression.pipeline import compress
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.sources import open_data
from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.evaluation.damage import measure_damage
from onnx_igpc.evaluation.options import Thresholds
from onnx_igpc.evaluation.output_kinds import site_tensors
from onnx_igpc.evaluation.verify import Wanted, compare_models, verify
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.planning.options import Budget, Published
from onnx_igpc.report.sections import DamageReport
from onnx_igpc.report.tree import Permutation, RewriteReport, SiteReport
from onnx_igpc.sites.find import SiteFilter
from tests.helpers import GraphBuilder


def two_layers(builder: GraphBuilder, classes: int = 64, side: int | str = 4) -> str:
    """x -> 1x1 ``a`` -> Relu -> 1x1 ``b``, of shape (n, classes, side, side)."""
    builder.input("x", ["n", 64, side, side])
    value = builder.activation(builder.conv("x", "a", 64, 64, bias=True), "r", "Relu")
    return builder.conv(value, "b", 64, classes, bias=True)


def detector() -> onnx.ModelProto:
    """Boxes chosen by NonMaxSuppression: how many depends on the scores."""
    builder = GraphBuilder()
    value = builder.activation(two_layers(builder), "r2", "Relu")
    boxes = builder.conv(value, "boxes", 64, 4, kernel=3, pads=[1] * 4)
    scores = builder.conv(value, "scores", 64, 2, kernel=3, pads=[1] * 4)
    shapes = (
        builder.initializer("b_shape", np.array([0, 4, -1])),
        builder.initializer("s_shape", np.array([0, 2, -1])),
    )
    builder.add("Reshape", [boxes, shapes[0]], "flat_boxes")
    builder.add("Transpose", ["flat_boxes"], "box_rows", perm=[0, 2, 1])
    builder.add("Reshape", [scores, shapes[1]], "class_rows")
    limits = [
        builder.initializer(name, np.array([limit], kind))
        for name, limit, kind in (
            ("most", 9, np.int64),
            ("iou", 0.5, np.float32),
            ("least", 0.3, np.float32),
        )
    ]
    builder.add("NonMaxSuppression", ["box_rows", "class_rows", *limits], "chosen")
    builder.output("chosen", ["k", 3], TensorProto.INT64)
    return builder.model(check=False)


def named_classes(*, with_scores: bool) -> onnx.ModelProto:
    """A classifier that ends in ZipMap, as Custom Vision exports it, and a sequence of tensors."""
    builder = GraphBuilder()
    value = two_layers(builder)
    builder.add("GlobalAveragePool", [builder.activation(value, "r2", "Relu")], "pooled")
    builder.add("Flatten", ["pooled"], "logits")
    builder.add("Softmax", ["logits"], "p", axis=1)
    if with_scores:
        builder.output("p", ["n", 64])
    builder.nodes.append(
        helper.make_node(
            "ZipMap",
            ["p"],
            ["named"],
            domain="ai.onnx.ml",
            classlabels_strings=[f"class{i}" for i in range(64)],
        )
    )
    builder.add("SequenceConstruct", ["logits"], "listed")
    floats = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    builder.outputs += [
        helper.make_value_info(
            "named",
            helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.STRING, floats)),
        ),
        helper.make_value_info("listed", helper.make_sequence_type_proto(floats)),
    ]
    model = builder.model(check=False)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


def segmenter(*, scores: bool = False) -> onnx.ModelProto:
    """Class numbers of every pixel, as integers that went through Cast."""
    builder = GraphBuilder()
    two_layers(builder, 5)
    builder.add("ArgMax", ["b"], "best", axis=1, keepdims=0)
    builder.add("Cast", ["best"], "map", to=TensorProto.FLOAT)
    builder.output("map", ["n", 4, 4])
    if scores:
        builder.output("b", ["n", 5, 4, 4])
    return builder.model()


def arrays(path: Path, count: int = 12) -> Path:
    values = np.random.default_rng(0).standard_normal((count, 64, 4, 4)).astype(np.float32)
    np.savez(path, x=values)
    return path


def saved(path: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("sequential", [True, False])
def test_calibrating_a_model_whose_boxes_depend_on_the_data(
    tmp_path: Path, sequential: bool
) -> None:
    model, data = saved(tmp_path / "m.onnx", detector()), arrays(tmp_path / "d.npz")
    result = compress(model, calibration=Calibration(data, sequential=sequential))
    assert len(result.report.rewritten) == 2
    assert result.report.damage is not None
    assert result.report.damage.fitted is not None
    assert 0 < (result.report.damage.fitted.relative_error or 0.0) < 1
    assert any("'chosen' is not compared" in note for note in result.report.notes)
    result.save(tmp_path / "small.onnx")
    report = verify(model, tmp_path / "small.onnx", data=data)
    assert report.passed
    assert report.sites
    assert [output.name for output in report.outputs] == ["a_node", "b_node"]
    assert all(output.relative_norm for output in report.outputs)
    assert any("NonMaxSuppression" in note for note in report.notes)


def test_permuted_sites_are_compared_in_one_order() -> None:
    original, candidate = detector(), detector()
    for node in candidate.graph.node:
        node.input[:] = ["a_moved" if name == "a" else name for name in node.input]
        node.output[:] = ["a_moved" if name == "a" else name for name in node.output]
    report = RewriteReport(
        sites=[SiteReport("site", 64, 64, "rewritten", output="a")],
        permutations=[Permutation({"a_moved": "a"}, [1, 0, *range(2, 64)])],
    )
    [found] = site_tensors(original, candidate, report)
    assert (found.original, found.candidate) == ("a", "a_moved")
    assert found.order is not None
    assert found.order[:3] == (1, 0, 2)
    # The candidate is not really permuted: only what is compared in another order differs.
    outputs = compare_models(original, candidate, Dataset(), Wanted(report=report)).outputs
    assert outputs[0].relative_norm is not None
    assert outputs[0].relative_norm > 0.1


def test_models_without_a_report_are_compared_by_layers_of_one_name() -> None:
    report = verify(detector(), detector())
    assert report.passed
    assert [output.name for output in report.outputs] == ["a", "b", "boxes", "scores"]


@pytest.mark.parametrize("with_scores", [True, False])
def test_maps_and_sequences_are_left_out(tmp_path: Path, with_scores: bool) -> None:
    model = saved(tmp_path / "m.onnx", named_classes(with_scores=with_scores))
    data = arrays(tmp_path / "d.npz")
    result = compress(model, calibration=data)
    assert result.report.damage is not None
    assert "too few" in (result.report.damage.unknown or "")
    damage = result.report.damage.fitted
    assert damage is not None
    assert (damage.agreement is not None) == with_scores
    assert (damage.relative_error is not None) != with_scores
    result.save(tmp_path / "small.onnx")
    report = verify(model, tmp_path / "small.onnx", data=data)
    assert report.passed
    assert report.sites != with_scores
    told = " ".join(report.notes)
    assert "'named' is not compared: it is seq(map(string,tensor(float)))" in told
    assert "'listed' is not compared: it is seq(tensor(float))" in told


def test_budget_of_a_model_without_outputs_to_compare(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.onnx", named_classes(with_scores=False))
    result = compress(model, Budget("pointwise-macs=60%"), calibration=arrays(tmp_path / "d.npz"))
    assert result.report.selection is not None
    assert result.report.selection.predicted_damage > 0


def test_outputs_name_what_counts() -> None:
    model = segmenter(scores=True)
    assert [o.name for o in verify(model, model, outputs=["b"]).outputs] == ["b"]
    with pytest.raises(UsageError, match="no output 'c': the models have map, b"):
        verify(model, model, outputs=["c"])
    named = named_classes(with_scores=True)
    with pytest.raises(UsageError, match=r"'listed' is seq\(tensor\(float\)\), which cannot be"):
        verify(named, named, outputs=["listed"])


def test_class_numbers_are_compared_by_the_share_that_is_equal() -> None:
    first, second = segmenter(), segmenter()
    bias = next(t for t in second.graph.initializer if t.name == "b_b")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 1.0
    bias.CopyFrom(onnx.numpy_helper.from_array(values, "b_b"))
    [output] = verify(first, second, Dataset(samples=20)).outputs
    assert output.agreement is not None
    assert 0.3 < output.agreement < 0.99
    assert output.relative is None
    bounds = Thresholds(min_agreement=1.0, atol=0.0)
    assert verify(first, first, Dataset(samples=4), thresholds=bounds).passed
    many = Dataset(samples=20)
    failed = verify(first, second, many, thresholds=Thresholds(0.995)).failures
    assert "of the class numbers are equal, which is below 0.995" in failed[0]
    bounded = verify(first, second, many, thresholds=Thresholds(rtol=0.5))
    assert "--min-agreement" in bounded.failures[0]


def test_damage_of_a_segmenter_is_agreement(tmp_path: Path) -> None:
    model = segmenter()
    data = open_data(arrays(tmp_path / "d.npz"), model_inputs(model))
    assert measure_damage(model, model, data) == DamageReport(agreement=1.0, samples=12)


def test_head_in_front_of_argmax_is_kept() -> None:
    report = compress(segmenter()).report
    [site] = [site for site in report.sites if not site.rewritten]
    assert site.reason == "head: only ArgMax, Cast before output 'map'"
    assert (
        len(
            compress(
                segmenter(), Published(4), sites=SiteFilter(include_heads=True)
            ).report.rewritten
        )
        == 2
    )


def test_one_nan_does_not_agree(tmp_path: Path) -> None:
    builder = GraphBuilder()
    builder.input("x", ["n", 4])
    builder.add("Sqrt", ["x"], "y")  # NaN for what is negative
    builder.output("y", ["n", 4])
    np.savez(tmp_path / "d.npz", x=np.array([[1, 2, 3, 4], [-1, 2, 3, 4]], np.float32))
    report = verify(builder.model(), builder.model(), data=tmp_path / "d.npz")
    assert report.classifier is not None
    assert report.classifier.agreement == 0.5
    assert "1 of 8 values are NaN or infinite in the original" in report.notes[0]


def test_models_that_differ_in_what_is_no_tensor() -> None:
    first, second = named_classes(with_scores=True), named_classes(with_scores=True)
    del second.graph.output[-1:]
    with pytest.raises(ModelError, match="output 'listed' is seq"):
        verify(first, second)
