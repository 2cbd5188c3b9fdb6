"""Fine-tuning from ONNX to ONNX: what it learns from, what it keeps, what it reports and refuses."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch

from onnx_igpc.data.dataset import Dataset
from onnx_igpc.errors import CheckFailedError, DataError, ModelError, UsageError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.report.damage import large_damage_warning
from onnx_igpc.report.digest import read_digest, write_digest
from onnx_igpc.report.sections import DamageReport, JudgedReport, LoweringReport, MeasuredOn
from onnx_igpc.report.tree import NO_DATA_WARNING, RANDOM_WARNING, Permutation, RewriteReport
from onnx_igpc.report.typed_json import to_values
from onnx_igpc.torch_bridge.training.distributed import World
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.log import COLUMNS
from onnx_igpc.torch_bridge.training.losses import scale_of
from onnx_igpc.torch_bridge.training.options import Run
from onnx_igpc.torch_bridge.training.output import fold, no_gain, update_report, worse_than_before
from onnx_igpc.torch_bridge.training.preparation import Job, prepare
from onnx_igpc.torch_bridge.training.result import FinetuneResult
from onnx_igpc.torch_bridge.training.run_files import checkpoint_path
from tests.html_reports import finetune_report
from tests.lowering_cases import add_function_with_dead
from tests.torch_bridge.graphs import difference, make_model, random, run_onnx
from tests.torch_bridge.training_cases import arrays_of, classifier, short, smaller, write_data


@pytest.fixture(scope="module")
def teacher() -> onnx.ModelProto:
    return classifier()


@pytest.fixture(scope="module")
def compressed(teacher: onnx.ModelProto) -> onnx.ModelProto:
    return smaller(teacher)


@pytest.fixture
def data(tmp_path: Path, teacher: onnx.ModelProto) -> Path:
    return write_data(tmp_path / "train.npz", teacher)


@pytest.fixture
def unlabelled(tmp_path: Path, teacher: onnx.ModelProto) -> Path:
    return write_data(tmp_path / "unlabelled.npz", teacher, labels=False)


class TestLearning:
    def test_unlabelled_data_and_a_teacher_are_enough(
        self,
        tmp_path: Path,
        compressed: onnx.ModelProto,
        teacher: onnx.ModelProto,
        unlabelled: Path,
    ) -> None:
        before = onnx.ModelProto()
        before.CopyFrom(compressed)
        val = write_data(tmp_path / "val.npz", teacher, 32, labels=False, seed=1)
        recipe = short(epochs=12)
        result = finetune(compressed, teacher=teacher, data=unlabelled, val=val, recipe=recipe)
        assert compressed == before, "the model that was given is not changed"
        first, last = result.history[0], result.history[-1]
        assert last.val_loss < first.val_loss
        assert last.feature_loss < first.feature_loss
        assert last.accuracy is None
        assert result.report.finetune
        assert result.report.finetune.val_before
        assert last.val_loss < result.report.finetune.val_before.loss

    def test_labels_alone(self, compressed: onnx.ModelProto, data: Path) -> None:
        result = finetune(compressed, data=data, recipe=short(epochs=8))
        assert result.report.finetune
        assert result.report.finetune.recipe["loss"] == "ce"
        assert result.history[-1].label_loss < result.history[0].label_loss
        assert result.history[-1].agreement is None
        assert result.report.damage is None

    def test_labels_are_used_for_the_accuracy_of_a_distillation(
        self, compressed: onnx.ModelProto, teacher: onnx.ModelProto, data: Path
    ) -> None:
        row = finetune(compressed, teacher=teacher, data=data, recipe=short(epochs=1)).history[0]
        # They are what the teacher says.
        assert row.accuracy == row.agreement
        assert row.label_loss == 0

    def test_both_losses(
        self, compressed: onnx.ModelProto, teacher: onnx.ModelProto, data: Path
    ) -> None:
        recipe = short(epochs=1, loss="kd+ce", label_weight=0.25, feature_loss=2.0)
        row = finetune(compressed, teacher=teacher, data=data, recipe=recipe).history[0]
        parts = 0.75 * row.output_loss + 0.25 * row.label_loss + 2 * row.feature_loss
        assert row.loss == pytest.approx(parts)

    @pytest.mark.parametrize(
        "changes",
        [
            {"optimizer": "sgd", "lr": 1e-2},
            {"loss": "mse"},
            {"schedule": "linear"},
            {"schedule": "constant", "warmup": 0.0},
            {"batch_norm": "frozen"},
            {"amp": "bf16"},
            {"augment": ("flip", "shift=1")},
            {"feature_loss": 0.0},
            {"temperature": 1.0},
        ],
        ids=str,
    )
    def test_recipes_learn(
        self,
        compressed: onnx.ModelProto,
        teacher: onnx.ModelProto,
        unlabelled: Path,
        changes: dict[str, Any],
    ) -> None:
        recipe = short(epochs=4, **changes)
        history = finetune(compressed, teacher=teacher, data=unlabelled, recipe=recipe).history
        assert history[-1].loss < history[0].loss

    def test_outputs_that_are_no_scores_are_matched_by_value(self, tmp_path: Path) -> None:
        node = onnx.helper.make_node
        nodes = [
            node("Conv", ["x", "boxes_w"], ["boxes"], "boxes"),
            node("Conv", ["x", "mask_w"], ["mask"], "mask"),
            node("ArgMax", ["mask"], ["chosen"], axis=1),
        ]
        tensors = {"boxes_w": random(4, 3, 1, 1), "mask_w": random(5, 3, 1, 1, seed=1)}
        inputs = {"x": ["n", 3, "h", "w"]}
        teacher = make_model(nodes, tensors, inputs, ["boxes", "mask", "chosen"])
        teacher.graph.output[2].type.tensor_type.elem_type = onnx.TensorProto.INT64
        student = onnx.ModelProto()
        student.CopyFrom(teacher)
        for tensor in student.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor) + 0.3
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        # Outputs are paired by name.
        reordered = teacher.graph.output[::-1]
        del teacher.graph.output[:]
        teacher.graph.output.extend(reordered)
        np.savez(tmp_path / "d.npz", x=random(43, 3, 4, 4))  # 33 of them are trained on
        recipe = short(epochs=20, lr=1e-1)
        result = finetune(student, teacher=teacher, data=tmp_path / "d.npz", recipe=recipe)
        assert result.history[-1].output_loss < 0.05 * result.history[0].output_loss
        for name, value in arrays_of(teacher).items():
            assert np.allclose(arrays_of(result.model)[name], value, atol=0.05)

    def test_probabilities_are_distilled_as_the_scores_behind_them(self, tmp_path: Path) -> None:
        plain, soft = classifier(), classifier(end="Softmax")
        data = write_data(tmp_path / "d.npz", plain)
        recipe = short(epochs=1, feature_loss=0.0)
        rows = [
            finetune(smaller(model), teacher=model, data=data, recipe=recipe).history[0]
            for model in (plain, soft)
        ]
        assert rows[0].output_loss == pytest.approx(rows[1].output_loss, rel=1e-3)


class TestWhatIsKept:
    def test_only_float_weights_change(
        self, compressed: onnx.ModelProto, teacher: onnx.ModelProto, unlabelled: Path
    ) -> None:
        recipe = short(epochs=12)
        result = finetune(compressed, teacher=teacher, data=unlabelled, recipe=recipe)
        old, new = arrays_of(compressed), arrays_of(result.model)
        assert {name for name in old if not np.array_equal(old[name], new[name])} == {
            name for name, value in old.items() if value.dtype == np.float32
        }
        stripped = []
        for model in (compressed, result.model):
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            del copy.graph.initializer[:]
            del copy.metadata_props[:]
            stripped.append(copy.SerializeToString())
        assert stripped[0] == stripped[1]

    def test_frozen_weights_stay(
        self, compressed: onnx.ModelProto, teacher: onnx.ModelProto, unlabelled: Path
    ) -> None:
        recipe = short(epochs=1, freeze=("stem_*", "head_w"), batch_norm="frozen")
        result = finetune(compressed, teacher=teacher, data=unlabelled, recipe=recipe)
        old, new = arrays_of(compressed), arrays_of(result.model)
        same = {name for name in old if np.array_equal(old[name], new[name])}
        floats = {name for name, value in old.items() if value.dtype == np.float32}
        frozen = {"stem_w", "stem_bn_scale", "stem_bn_shift", "head_w"}
        statistics = {name for name in floats if name.endswith(("_mean", "_var"))}
        assert same & floats == frozen | statistics

    def test_half_precision_is_written_back_as_such(self, tmp_path: Path) -> None:
        teacher = classifier(dtype=np.float16)
        data = write_data(tmp_path / "d.npz", classifier(), labels=False)
        result = finetune(smaller(teacher), teacher=teacher, data=data, recipe=short())
        assert {v.dtype for v in arrays_of(result.model).values()} == {
            np.dtype("float16"),
            np.dtype("int64"),
        }
        assert result.report.finetune
        assert result.report.finetune.check
        assert result.report.finetune.check.bound == 5e-3

    def test_a_fixed_batch_is_the_batch_size(self, tmp_path: Path) -> None:
        teacher = classifier(batch=8)
        small = smaller(teacher)
        data = write_data(tmp_path / "d.npz", classifier(), 20)
        result = finetune(
            small, teacher=teacher, data=data, val=data, recipe=short(batch_size=None)
        )
        assert result.report.finetune
        assert result.report.finetune.recipe["batch_size"] == 8
        assert result.history[-1].step == 6
        with pytest.raises(UsageError, match="takes 8 samples at a time"):
            finetune(small, teacher=teacher, data=data, recipe=short(batch_size=16))

    def test_folding_on_the_way_out(
        self, compressed: onnx.ModelProto, teacher: onnx.ModelProto, unlabelled: Path
    ) -> None:
        result, folded = (
            finetune(
                compressed, teacher=teacher, data=unlabelled, recipe=short(), fold_batch_norm=f
            )
            for f in (False, True)
        )
        kinds = [node.op_type for node in folded.model.graph.node]
        # Behind the Add of a rewritten site there is no convolution to fold into.
        assert kinds.count("BatchNormalization") == 1
        assert folded.report.folded == ["stem_bn_node", "wide_bn_node"]
        images = random(4, 1, 5, 5)
        assert difference(*run_onnx(folded.model, images), *run_onnx(result.model, images)) < 1e-5
        assert folded.report.totals.parameters.after == sum(
            value.size
            for name, value in arrays_of(folded.model).items()
            if value.dtype == np.float32 and not name.endswith(("_mean", "_var"))
        )

    def test_folding_leaves_what_nothing_read_before(self, compressed: onnx.ModelProto) -> None:
        model = OpenModel(onnx.ModelProto())
        model.proto.CopyFrom(compressed)
        report = read_digest(compressed)
        assert report is not None
        weight = next(node for node in compressed.graph.node if node.name == "stem_bn_node").input[
            1
        ]
        function = add_function_with_dead(model, weight)
        folded = fold(model.proto, report)
        assert weight not in {tensor.name for tensor in folded.graph.initializer}
        assert list(folded.functions) == [function]


class TestReport:
    def test_digest_and_log_tell_the_run(
        self, tmp_path: Path, compressed: onnx.ModelProto, teacher: onnx.ModelProto, data: Path
    ) -> None:
        output = tmp_path / "out.onnx"
        result = finetune(
            compressed, teacher=teacher, data=data, val=data, output=output, recipe=short()
        )
        digest = read_digest(onnx.load(output))
        assert digest is not None
        assert digest.finetune is not None
        assert digest.finetune.epochs == [row.portable() for row in result.history]
        assert digest.finetune.data.source == "train.npz"
        assert [row.epoch for row in result.history] == [1, 2, 3]
        assert digest.finetune.matched_sites == ["wide_node", "deep_node"]
        assert digest.finetune.check
        assert digest.finetune.check.relative < 1e-4
        assert digest.damage is not None
        assert digest.damage.agreement == result.history[-1].val_agreement
        assert not digest.warnings
        rows = list(csv.DictReader((tmp_path / "out.finetune.csv").open()))
        assert tuple(rows[0]) == COLUMNS
        assert [float(row["loss"]) for row in rows] == [row.loss for row in result.history]
        log = json.loads((tmp_path / "out.finetune.json").read_text())
        assert log["epochs"] == to_values(result.history)
        assert not checkpoint_path(output).exists()

    def test_the_same_run_gives_the_same_bytes(
        self, compressed: onnx.ModelProto, teacher: onnx.ModelProto, unlabelled: Path
    ) -> None:
        torch.manual_seed(5)
        state = torch.get_rng_state()
        first, again = (
            finetune(compressed, teacher=teacher, data=unlabelled, recipe=short()).model
            for _ in range(2)
        )
        assert first.SerializeToString() == again.SerializeToString()
        assert torch.equal(torch.get_rng_state(), state), "the caller's random state is its own"


def test_permuted_channels_are_put_back_in_order(
    tmp_path: Path, compressed: onnx.ModelProto, teacher: onnx.ModelProto, unlabelled: Path
) -> None:
    order = [int(i) for i in np.random.default_rng(0).permutation(24)]
    swapped = onnx.ModelProto()
    swapped.CopyFrom(teacher)
    for tensor in swapped.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.name == "wide_w" or tensor.name.startswith("wide_bn"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(values[order], tensor.name))
        if tensor.name == "deep_w":
            tensor.CopyFrom(onnx.numpy_helper.from_array(values[:, order].copy(), tensor.name))
    digest = read_digest(compressed)
    assert digest is not None
    losses = []
    for permutation in ([], [Permutation({"wide": "wide", "wide_relu": "wide_relu"}, order)]):
        digest.permutations = permutation
        write_digest(swapped, digest)
        world = World(0, 1, torch.device("cpu"))
        sources = (Dataset(unlabelled), None)
        job = prepare(swapped, teacher, digest, sources, short(), world, None)
        batch = job.some_batch()
        losses.append(
            float(job.networks.objective(*job.networks.forward_plain(batch), None).feature)
        )
    assert losses[0] > 0.1
    assert losses[1] < 1e-10


def test_the_teacher_only_runs_forward(
    compressed: onnx.ModelProto, teacher: onnx.ModelProto, unlabelled: Path
) -> None:
    world = World(0, 1, torch.device("cpu"))
    job = prepare(
        compressed,
        teacher,
        read_digest(compressed),
        (Dataset(unlabelled), None),
        short(),
        world,
        None,
    )
    job.networks.set_training(True)
    student, taught = job.networks.forward(job.some_batch())
    assert job.networks.student.training
    assert job.networks.teacher is not None
    assert not job.networks.teacher.training
    assert not any(p.requires_grad for p in job.networks.teacher.parameters())
    assert taught is not None
    assert not any(value.requires_grad for value in taught)
    assert all(value.requires_grad for value in student)


def test_an_output_that_hardly_varies_does_not_outweigh_the_others() -> None:
    values = torch.tensor([1.0, 1.0 + 1e-9, 1.0])
    assert scale_of(values) == pytest.approx(1e6, rel=1e-3)
    assert scale_of(values * 1e-9, bounded=True) == pytest.approx(1e4)
    assert scale_of(torch.zeros(3)) == 1
    assert scale_of(torch.tensor([-2.0, 2.0])) == pytest.approx(0.25)


class TestRefusals:
    def test_lowered_model(
        self, compressed: onnx.ModelProto, teacher: onnx.ModelProto, data: Path
    ) -> None:
        lowered = onnx.ModelProto()
        lowered.CopyFrom(compressed)
        digest = read_digest(lowered)
        assert digest is not None
        digest.lowering = LoweringReport(mode="auto", provider="tensorrt", batch=1, sites={})
        write_digest(lowered, digest)
        with pytest.raises(ModelError, match="lowered for a runtime, which is final: fine-tune"):
            finetune(lowered, teacher=teacher, data=data)

    def test_no_labels_and_no_teacher(self, compressed: onnx.ModelProto, unlabelled: Path) -> None:
        with pytest.raises(DataError, match=r"has no labels .* give a `teacher`"):
            finetune(compressed, data=unlabelled)

    def test_distillation_without_a_teacher(self, compressed: onnx.ModelProto, data: Path) -> None:
        with pytest.raises(UsageError, match="`loss` kd learns from a teacher"):
            finetune(compressed, data=data, recipe=short(loss="kd"))

    def test_labels_of_other_classes(
        self, tmp_path: Path, compressed: onnx.ModelProto, teacher: onnx.ModelProto
    ) -> None:
        np.savez(tmp_path / "d.npz", x=random(20, 1, 5, 5), labels=np.full(20, 7))
        with pytest.raises(DataError, match=r"label 7 .* is not one of the model's 3 classes"):
            finetune(compressed, data=tmp_path / "d.npz")
        recipe = short(epochs=1)
        result = finetune(compressed, teacher=teacher, data=tmp_path / "d.npz", recipe=recipe)
        assert result.report.finetune
        assert "labels are not used" in result.report.finetune.notes[0]
        assert result.history[0].accuracy is None

    def test_labels_behind_a_background_class(
        self, tmp_path: Path, compressed: onnx.ModelProto
    ) -> None:
        np.savez(tmp_path / "d.npz", x=random(20, 1, 5, 5), labels=np.arange(20) % 2)
        recipe = short(epochs=1)
        plain = finetune(compressed, data=tmp_path / "d.npz", recipe=recipe).report.finetune
        assert plain is not None
        assert any("the model has 3 classes: if the first one" in note for note in plain.notes)
        told = finetune(compressed, data=Dataset(tmp_path / "d.npz", label_offset=1), recipe=recipe)
        assert told.report.finetune is not None
        assert not any("background" in note for note in told.report.finetune.notes)
        with pytest.raises(DataError, match=r"label 3 .* is not one of the model's 3 classes"):
            finetune(compressed, data=Dataset(tmp_path / "d.npz", label_offset=2), recipe=recipe)

    def test_validation_data_by_its_path_is_read_as_the_training_data(
        self, tmp_path: Path, compressed: onnx.ModelProto
    ) -> None:
        for name, labels in (("d", np.arange(20) % 2), ("v", np.arange(20) % 3)):
            np.savez(tmp_path / f"{name}.npz", x=random(20, 1, 5, 5), labels=labels)
        shifted = Dataset(tmp_path / "d.npz", label_offset=1)
        with pytest.raises(DataError, match=r"label 3 of .*v\.npz is not one"):
            finetune(compressed, shifted, val=tmp_path / "v.npz", recipe=short(epochs=1))
        finetune(compressed, shifted, val=Dataset(tmp_path / "v.npz"), recipe=short(epochs=1))

    def test_a_part_of_the_training_data(self, compressed: onnx.ModelProto, data: Path) -> None:
        with pytest.raises(UsageError, match="all samples of its data"):
            finetune(compressed, Dataset(data, samples=5))

    def test_another_teacher(self, compressed: onnx.ModelProto, data: Path) -> None:
        other = classifier(end="Softmax")
        with pytest.raises(ModelError, match="only the teacher has an output 'ended'"):
            finetune(compressed, teacher=other, data=data)

    def test_quantized_model(self, tmp_path: Path) -> None:
        model = make_model(
            [onnx.helper.make_node("Relu", ["x"], ["y"])], {}, {"x": ["n", 1, 5, 5]}, ["y"]
        )
        np.savez(tmp_path / "d.npz", x=random(4, 1, 5, 5))
        with pytest.raises(ModelError, match="no float weights: fine-tune before it is quantized"):
            finetune(model, teacher=model, data=tmp_path / "d.npz")

    def test_unknown_glob(self, compressed: onnx.ModelProto, data: Path) -> None:
        with pytest.raises(UsageError, match="`freeze` 'conv\\*' matches none"):
            finetune(compressed, data=data, recipe=short(freeze=("conv*",)))

    def test_a_gpu_that_is_not_there(
        self, monkeypatch: pytest.MonkeyPatch, compressed: onnx.ModelProto, data: Path
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UsageError, match="sees no CUDA GPU"):
            finetune(compressed, data=data, run=Run(device="cuda"))
        with pytest.raises(UsageError, match="fp16 needs a CUDA GPU"):
            finetune(compressed, data=data, recipe=short(amp="fp16"))

    def test_divergence_keeps_the_last_good_checkpoint(
        self, tmp_path: Path, compressed: onnx.ModelProto, data: Path
    ) -> None:
        output = tmp_path / "out.onnx"
        recipe = short(optimizer="sgd", lr=1e30, warmup=0.9, epochs=2)
        with pytest.raises(
            CheckFailedError, match="NaN or infinite in epoch 1: take a smaller `lr`"
        ):
            finetune(compressed, data=data, output=output, recipe=recipe)
        assert not output.exists()


def trained(before: dict[str, Any], after: dict[str, Any]) -> RewriteReport:
    """The report of a run of two epochs with that damage before and after."""
    run = replace(finetune_report(2), val_before=None, check=None)
    run.damage_before = DamageReport(samples=1, **before)
    return RewriteReport(finetune=run, damage=DamageReport(samples=1, **after))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            {"agreement": 0.28},
            {"agreement": 0.015},
            "agrees less with the original (1.5%, not 28.0%)",
        ),
        ({"agreement": 0.28}, {"agreement": 0.28}, None),
        ({"relative_error": 0.1}, {"relative_error": 0.25}, "(relative error 0.25, not 0.1)"),
        ({"relative_error": 0.1}, {"relative_error": 0.1}, None),
        ({"relative_error": None}, {"relative_error": 0.25}, None),
        ({"agreement": 0.28}, {"relative_error": 0.25}, None),
        ({"not_finite": 3}, {"agreement": 0.0}, None),
    ],
)
def test_what_training_made_worse_is_told(
    before: dict[str, Any], after: dict[str, Any], words: str | None
) -> None:
    report = trained(before, after)
    found = worse_than_before(report)
    assert found is None if words is None else words in str(found)


def test_the_summary_ends_with_what_is_to_be_known() -> None:
    report = trained({"agreement": 0.75}, {"agreement": 0.5})
    report.warnings = ["worse than before"]
    assert report.finetune is not None
    lines = FinetuneResult(classifier(), report, report.finetune.epochs).summary()
    assert lines == [
        "fine-tuned: loss 2 -> 1",
        "agreement with the original: 75.0% -> 50.0%",
        "warning: worse than before",
    ]


def test_another_run_takes_back_what_the_one_before_warned_of() -> None:
    report = trained({"agreement": 0.75}, {"agreement": 0.5})
    worse, damage = worse_than_before(report), report.damage
    large = large_damage_warning(damage)
    assert worse is not None
    assert large is not None
    other = f"not ours, but in the same words: {worse}"
    report.warnings = [large, NO_DATA_WARNING, RANDOM_WARNING, worse, other]
    report.notes = [*(each.note for each in MeasuredOn), "the damage was measured elsewhere"]
    val = SimpleNamespace(data=SimpleNamespace(preprocessing=None))
    run, job = finetune_report(1), SimpleNamespace(val=val)
    update_report(cast(Job, job), report, run, None, None, classifier())
    assert report.warnings == [other]
    assert report.notes == ["the damage was measured elsewhere"]
    assert report.damage is None
    assert report.finetune is run
    assert run.damage_before == damage


def test_a_run_without_gain_leaves_the_advice_to_train() -> None:
    damage = DamageReport(agreement=0.1, samples=3)
    large = str(large_damage_warning(damage))
    warnings = [large, NO_DATA_WARNING]
    report = RewriteReport(finetune=finetune_report(1), damage=damage, warnings=warnings)
    val = SimpleNamespace(data=SimpleNamespace(preprocessing=None))
    judged = JudgedReport(
        on="held-out",
        samples=3,
        before=1.0,
        after=1.0,
        least_after_training=2.0,
        epoch=0,
        gained=False,
    )
    for before in (1.0, 1.5):
        run = replace(finetune_report(1), judged=replace(judged, before=before))
        update_report(cast(Job, SimpleNamespace(val=val)), report, run, None, None, classifier())
        told = no_gain(run)
        assert told is not None
        assert f"was {before:.3g} before and at best 2 after" in told
        assert report.warnings == [large, NO_DATA_WARNING, told]
