"""Verification: figures, thresholds, data and labels, faults of the candidate, and its provider."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from onnx_igpc import compress
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.errors import CheckFailedError, DataError, ModelError, UsageError
from onnx_igpc.evaluation import comparison
from onnx_igpc.evaluation.options import Thresholds
from onnx_igpc.evaluation.verify import verify
from onnx_igpc.runtime.profile import ExecutionProfile, NodeRun
from onnx_igpc.runtime.session import PROVIDERS
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.sites.find import SiteFilter
from tests import runtime_graphs as graphs
from tests.helpers import GraphBuilder, pointwise_model

SWAP = np.eye(7)[[1, 0, 2, 3, 4, 5, 6]]  # exchanges the scores of classes 0 and 1


def save_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_same_model_passes_on_random_inputs_and_says_so() -> None:
    report = verify(
        graphs.classifier(), graphs.classifier(), thresholds=Thresholds(min_agreement=1.0, atol=0.0)
    )
    assert report.passed
    assert report.random
    assert report.samples == 8
    assert report.outputs[0].max_abs == 0.0
    assert report.executed["candidate"].startswith("cpu ran ")
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True


def test_differences_of_a_known_change() -> None:
    report = verify(
        graphs.affine(), graphs.affine(offset=0.5), Dataset(samples=20), setting=Setting(batch=8)
    )
    [output] = report.outputs
    assert output.elements == 60
    assert output.max_abs == pytest.approx(0.5, rel=1e-5)
    assert output.mean_abs == pytest.approx(0.5, rel=1e-5)
    assert report.passed  # no threshold was given


@pytest.mark.parametrize(
    ("atol", "rtol", "holds"),
    [(0.51, None, True), (0.49, None, False), (None, 0.01, False), (0.4, 0.5, True)],
)
def test_tolerances(atol: float | None, rtol: float | None, holds: bool) -> None:
    report = verify(
        graphs.affine(), graphs.affine(offset=0.5), thresholds=Thresholds(atol=atol, rtol=rtol)
    )
    assert report.passed == holds
    if not holds:
        assert "output scores: largest difference 0.5 is beyond" in report.failures[0]


def test_top1_and_top5_before_and_after(tmp_path: Path) -> None:
    """Scores are fed as they are, so accuracy and agreement can be computed by hand."""
    scores = np.eye(7, dtype=np.float32)[[0, 1, 2, 3]] + np.linspace(
        0.07, 0.01, 7, dtype=np.float32
    )
    data = save_npz(tmp_path / "d.npz", x=scores, labels=np.array([0, 1, 2, 6]))
    for batch_size in (1, 3, 4):
        report = verify(
            graphs.linear(np.eye(7)),
            graphs.linear(SWAP),
            data=data,
            thresholds=Thresholds(min_agreement=0.9),
            setting=Setting(batch=batch_size),
        )
        result = report.classifier
        assert result is not None
        assert result.original is not None
        assert result.candidate is not None
        assert (result.scores, result.classes, result.samples) == ("scores", 7, 4)
        assert result.agreement == 0.5
        assert (result.original.top1, result.original.top5) == (0.75, 0.75)
        assert (result.candidate.top1, result.candidate.top5) == (0.25, 0.75)
        assert report.failures == ("top-1 agreement 0.5000 is below 0.9 (4 samples)",)
        assert not report.random


def test_fixed_batch_runs_as_it_must_and_filled_rows_do_not_count(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 4])
    data = save_npz(tmp_path / "d.npz", x=x, labels=labels)
    reports = [
        verify(
            graphs.linear(np.eye(7), (b,)),
            graphs.linear(SWAP, (b,)),
            data=data,
            setting=Setting(batch=4),
        )
        for b in ("n", 1, 2)
    ]
    assert [r.samples for r in reports] == [5, 5, 5]
    assert reports[0].classifier == reports[1].classifier == reports[2].classifier
    assert {r.outputs[0].elements for r in reports} == {35}


def test_scores_behind_dimensions_of_one() -> None:
    model = graphs.classifier(dims=(1, 3, 8, 8), squeeze=False)
    report = verify(model, model, Dataset(samples=3))
    assert report.classifier is not None
    assert (report.classifier.classes, report.classifier.samples) == (5, 3)


def test_image_folder_with_labels(tmp_path: Path) -> None:
    for label, value in ((0, 255), (2, 0)):
        (tmp_path / f"{label:04}").mkdir()
        Image.new("RGB", (9, 9), (value, 0, 0)).save(tmp_path / f"{label:04}" / "a.png")
    weight = np.zeros((5, 3, 1, 1))
    weight[0, 0] = 1  # red is class 0; black ties, which is class 0 too
    model = graphs.classifier(weight)
    report = verify(model, model, Dataset(tmp_path, Preprocessing(resize=8)))
    assert report.classifier is not None
    assert report.classifier.original is not None
    assert report.classifier.original.top1 == 0.5
    assert report.data.preprocessing is not None
    assert report.data.preprocessing.crop == (8, 8)
    for folder in ("0000", "0002"):
        (tmp_path / folder).rename(tmp_path / f"class{folder}")
    with pytest.raises(DataError, match="2 class folders, the model 5 classes"):
        verify(model, model, data=tmp_path)


def test_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    data = save_npz(tmp_path / "d.npz", x=np.zeros((2, 7), np.float32), labels=np.array([1, 7]))
    model = graphs.linear(np.eye(7))
    with pytest.raises(DataError, match="label 7 is not one of the model's 7 classes"):
        verify(model, model, data=data)


def test_new_nan_is_a_failure_and_old_nan_is_not(tmp_path: Path) -> None:
    data = save_npz(tmp_path / "d.npz", x=np.array([[-1.0, 4.0, 9.0]], np.float32))
    root, plain = graphs.identity(operator="Sqrt"), graphs.identity()
    report = verify(plain, root, data=data)
    assert not report.passed
    assert report.failures[0].startswith("output scores: 1 of 3 values are NaN or infinite")
    assert verify(root, root, data=data).passed
    assert verify(root, plain, data=data).outputs[0].nonfinite_original == 1


def test_no_bound_holds_where_the_original_computes_nothing_finite(tmp_path: Path) -> None:
    data = save_npz(tmp_path / "d.npz", x=np.full((2, 3), -1, np.float32))
    root = graphs.identity(operator="Sqrt")
    assert verify(root, root, data=data).passed
    report = verify(root, root, data=data, thresholds=Thresholds(atol=1.0))
    assert report.failures[0].startswith("output scores: the bound says nothing, as all 6 values")


def test_float16_models_are_compared() -> None:
    model = graphs.classifier(elem_type=TensorProto.FLOAT16)
    assert verify(model, model, thresholds=Thresholds(atol=0.0)).passed


def test_dynamic_shapes_take_a_size() -> None:
    model = graphs.classifier(dims=("n", 3, "h", "w"))
    setting = Setting(shapes={"x": (1, 3, 5, 6)})
    assert verify(model, model, Dataset(samples=2), setting=setting).samples == 2
    with pytest.raises(UsageError, match="does not fit"):
        verify(model, model, setting=Setting(shapes={"x": (1, 4, 5, 6)}))


def renamed(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    model.graph.node[-1].output[0] = output
    model.graph.output[0].name = output
    return model


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (
            renamed(graphs.classifier(), "other"),
            "output 'other' of the candidate is not in the original",
        ),
        (
            graphs.classifier(dims=(1, 3, 8, 8)),
            r"x float32\[batch, 3, 8, 8\] of the original is x float32\[1",
        ),
        (graphs.classifier(elem_type=TensorProto.FLOAT16), "float16"),
        (graphs.classifier(classes=6), r"scores float32\[batch, 5\] of the original"),
    ],
)
def test_models_with_another_interface_are_refused(
    candidate: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        verify(graphs.classifier(), candidate)


def test_names_of_dynamic_dimensions_do_not_matter() -> None:
    assert verify(graphs.classifier(), graphs.classifier(dims=("n", 3, 8, 8))).passed


def test_outputs_whose_shape_depends_on_the_values() -> None:
    plain = graphs.identity(operator="NonZero")
    plain.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", 7, [2, "k"]))
    clipped = onnx.ModelProto()
    clipped.CopyFrom(plain)
    clipped.graph.node[0].input[0] = "r"
    clipped.graph.node.insert(0, helper.make_node("Relu", ["x"], ["r"]))
    assert verify(plain, plain).classifier is None
    report = verify(plain, clipped)
    assert not report.passed
    assert "nothing was compared" in report.failures[0]
    assert re.search(r"'scores' is not compared: .* is \[2, 24\] in the original", report.notes[0])
    with pytest.raises(ModelError, match=r"output 'scores' is \[2, 24\] in the original and \[2, "):
        verify(plain, clipped, outputs=["scores"])


METRICS = """
def gap(original, candidate, labels):
    return {"gap": abs(original["scores"] - candidate["scores"]).max(), "n": len(labels)}

def share(original, candidate, labels):
    return (original["scores"][:, 0] > 0).mean()

def words(original, candidate, labels):
    return "good"

def broken(original, candidate, labels):
    return original["nothing"]

class Total:
    def __init__(self):
        self.total = 0
    def update(self, original, candidate, labels):
        self.total += len(labels)
    def result(self):
        return {"total": self.total}
"""


def test_metric_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "igpc_test_metrics.py").write_text(METRICS)
    monkeypatch.chdir(tmp_path)
    x = np.array([[1.0], [-1.0], [-1.0]], np.float32) * np.ones((1, 3), np.float32)
    data = save_npz(tmp_path / "d.npz", x=x, labels=np.arange(3))

    def value_of(name: str) -> object:
        metric = f"igpc_test_metrics:{name}"
        model, other = graphs.affine(), graphs.affine(offset=0.5)
        return verify(model, other, data, setting=Setting(batch=2), metric=metric).metric

    assert value_of("gap") == {"gap": pytest.approx(0.5), "n": pytest.approx((2 * 2 + 1) / 3)}
    assert value_of("share") == {"share": pytest.approx(1 / 3)}
    assert value_of("Total") == {"total": 3.0}
    with pytest.raises(UsageError, match="must return a number"):
        value_of("words")
    with pytest.raises(UsageError, match="metric igpc_test_metrics:broken failed: KeyError"):
        value_of("broken")
    with pytest.raises(UsageError, match="cannot be imported"):
        value_of("absent")
    with pytest.raises(UsageError, match="module:function"):
        verify(graphs.affine(), graphs.affine(), metric="gap")


def test_options_are_checked() -> None:
    model = graphs.classifier()
    with pytest.raises(UsageError, match="no output 'logits': the models have scores"):
        verify(model, model, scores="logits")
    with pytest.raises(UsageError, match="min_agreement"):
        Thresholds(min_agreement=80)
    with pytest.raises(UsageError, match="atol"):
        Thresholds(atol=-1)
    flat = graphs.identity(("n", 3, 4, 4))
    with pytest.raises(UsageError, match="no output holds class scores"):
        verify(flat, flat, thresholds=Thresholds(min_agreement=0.5))
    with pytest.raises(UsageError, match="holds no class scores"):
        verify(flat, flat, scores="scores")


def test_provider_that_is_not_there() -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(CheckFailedError, match="cuda is not in the installed onnxruntime"):
        verify(graphs.classifier(), graphs.classifier(), setting=Setting("cuda"))


def test_arithmetic_on_another_provider_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that the provider asked for does not support runs on the CPU without a word."""
    runs = [
        NodeRun("conv", "Conv", PROVIDERS["cuda"], None, (), 1, 10),
        NodeRun("head", "Gemm", PROVIDERS["cpu"], None, (), 1, 10),
    ]
    monkeypatch.setattr(comparison, "read_profile", lambda path: ExecutionProfile(tuple(runs)))
    model = graphs.classifier()
    report = verify(model, model)
    assert report.failures == (
        "original: asked for cpu, but onnxruntime ran Conv conv on cuda",
        "candidate: asked for cpu, but onnxruntime ran Conv conv on cuda",
    )
    assert CheckFailedError.exit_code == 1
    del runs[1]
    assert (
        verify(model, model)
        .failures[0]
        .startswith("original: cpu ran none of the nodes; cuda ran 1")
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("whole", [True, False])
def test_other_precisions(tmp_path: Path, dtype: type[np.generic], whole: bool) -> None:
    """A network in another precision, and one that only takes and gives it."""
    if whole:
        model = pointwise_model(64, 64, dtype=dtype)
    else:
        builder = GraphBuilder()
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        builder.add("Cast", [builder.input("x", ["n", 64, 5, 5], kind)], "single", to=1)
        builder.add("Cast", [builder.conv("single", "conv", 64, 64)], "y", to=kind)
        builder.output("y", ["n", 64, 5, 5], kind)
        model = builder.model()
    small = compress(model, sites=SiteFilter(include_heads=True)).model
    data = save_npz(tmp_path / "d.npz", x=np.random.default_rng(0).random((4, 64, 5, 5)))
    report = verify(model, small, data=data)
    assert report.passed
    assert report.outputs[0].relative_norm is not None
    assert 0 < report.outputs[0].relative_norm < 1
    assert ("run in float32" in " ".join(report.notes)) == (whole and dtype is np.float64)
