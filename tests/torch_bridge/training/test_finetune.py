"""Fine-tuning from ONNX to ONNX: what it learns from, and what it keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnx_igpc.data.dataset import Dataset
from onnx_igpc.errors import UsageError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.report.digest import read_digest, write_digest
from onnx_igpc.report.tree import Permutation
from onnx_igpc.torch_bridge.training.distributed import World
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.losses import scale_of
from onnx_igpc.torch_bridge.training.output import fold
from onnx_igpc.torch_bridge.training.preparation import prepare
from tests.lowering_cases import add_function_with_dead
from tests.torch_bridge.graphs import difference, make_model, random, run_onnx
from tests.torch_bridge.training_cases import arrays_of, classifier, short, smaller, write_data


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

    def test_the_end_lies_on_the_way_from_the_start(
        self, compressed: onnx.ModelProto, teacher: onnx.ModelProto, unlabelled: Path
    ) -> None:
        """After one epoch, which is better than none: its weights are written."""
        recipe = short(epochs=1, lr=1e-3, batch_norm="frozen", augment="none")
        results = [
            finetune(
                compressed,
                unlabelled,
                teacher=teacher,
                val=unlabelled,
                recipe=replace(recipe, interpolation=part),
            )
            for part in (1.0, 0.25)
        ]
        assert all(result.gained for result in results)
        given, whole, part = map(arrays_of, (compressed, *(each.model for each in results)))
        floats = [name for name, value in given.items() if value.dtype == np.float32]
        assert any(np.any(whole[name] != given[name]) for name in floats)
        for name in floats:
            expected = given[name] + 0.25 * (whole[name] - given[name])
            np.testing.assert_allclose(part[name], expected, rtol=1e-5, atol=1e-6)

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
