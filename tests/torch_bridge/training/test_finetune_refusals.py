"""What fine-tuning refuses: before the first step, of what is not finite, and of what does not fit."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from onnx_igpc.data.dataset import Dataset
from onnx_igpc.errors import CheckFailedError, DataError, ModelError, UsageError
from onnx_igpc.report.digest import read_digest, write_digest
from onnx_igpc.report.sections import LoweringReport
from onnx_igpc.torch_bridge import from_torch, to_torch
from onnx_igpc.torch_bridge.registry import _OPERATORS
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.options import Run
from tests.torch_bridge.graphs import make_model, random
from tests.torch_bridge.training.field_networks import C, model_of, node, pixels
from tests.torch_bridge.training_cases import classifier, short, smaller, write_data


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


@pytest.fixture
def no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("it began to train")

    monkeypatch.setattr("onnx_igpc.torch_bridge.training.finetune.Trainer.run", forbidden)


@pytest.mark.usefixtures("no_steps")
class TestBeforeTheFirstStep:
    @pytest.mark.parametrize("who", ["model", "teacher"])
    def test_training_mode(self, tmp_path: Path, who: str) -> None:
        good, bad = classifier(), classifier()
        norm = next(n for n in bad.graph.node if n.op_type == "BatchNormalization")
        norm.attribute.append(helper.make_attribute("training_mode", 1))
        models = {"model": good, "teacher": good} | {who: bad}
        with pytest.raises(ModelError, match=f"the {who} was exported in training mode .*eval"):
            finetune(
                models["model"],
                teacher=models["teacher"],
                data=write_data(tmp_path / "d.npz", good),
            )

    def test_dropout_in_training_mode(self, tmp_path: Path) -> None:
        nodes = [node("Dropout", ["seen", "ratio", "on"], ["y"])]
        tensors = {"ratio": np.array(0.5, np.float32), "on": np.array(True)}
        model = model_of(nodes, tensors, ["y"])
        with pytest.raises(ModelError, match=r"in training mode \(Dropout 'y'\)"):
            finetune(model, teacher=model, data=pixels(tmp_path / "d.npz"))

    def test_what_onnxruntime_computes_otherwise(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = classifier()
        [relu] = _OPERATORS[("", "Relu")]
        wrong = replace(relu, build=lambda _: lambda x: x.clamp_min(0.1))
        monkeypatch.setitem(_OPERATORS, ("", "Relu"), [wrong])
        with pytest.raises(CheckFailedError, match="do not agree on the model"):
            finetune(model, teacher=model, data=write_data(tmp_path / "d.npz", model))

    def test_what_onnxruntime_does_not_load(self, tmp_path: Path) -> None:
        model = classifier(dtype=np.float64)
        data = write_data(tmp_path / "d.npz", classifier())
        with pytest.raises(ModelError, match="onnxruntime cannot load it"):
            finetune(model, teacher=model, data=data)

    def test_a_folder_that_takes_no_files(self, tmp_path: Path) -> None:
        model = classifier()
        data = write_data(tmp_path / "d.npz", model)
        (tmp_path / "there").mkdir()
        for output, log in (
            (tmp_path / "there", None),
            (tmp_path / "none" / "out.onnx", None),
            (tmp_path / "out.onnx", tmp_path / "none" / "log"),
        ):
            with pytest.raises(UsageError, match="cannot write"):
                finetune(model, teacher=model, data=data, output=output, run=Run(log=log))


class TestNotFinite:
    def test_data(self, tmp_path: Path) -> None:
        model = classifier()
        images = random(64, 1, 5, 5)
        images[37, 0, 2, 2] = np.nan
        np.savez(tmp_path / "d.npz", x=images)
        with pytest.raises(DataError, match=r"sample 37 of 'x' holds NaN"):
            finetune(smaller(model), teacher=model, data=tmp_path / "d.npz", recipe=short())

    @pytest.mark.parametrize("first", [0, 40])
    def test_the_teacher(self, tmp_path: Path, first: int) -> None:
        """Log of what can be below 0 is NaN on some samples."""
        nodes = [node("GlobalAveragePool", ["seen"], ["p"]), node("Flatten", ["p"], ["f"])]
        student = model_of([*nodes, node("Gemm", ["f", "w"], ["y"])], {"w": random(2 * C, 3)}, "y")
        teacher = model_of(
            [
                *nodes,
                node("Gemm", ["f", "w"], ["z"]),
                node("ReduceMean", ["x", "axes"], ["level"], keepdims=0),
                node("Sqrt", ["level"], ["root"]),
                node("Add", ["z", "root"], ["y"]),
            ],
            {"w": random(2 * C, 3), "axes": np.array([1, 2, 3])},
            ["y"],
        )
        teacher.graph.node[-1].input[1] = "column"
        teacher.graph.node.insert(
            len(teacher.graph.node) - 1, node("Unsqueeze", ["root", "one"], ["column"])
        )
        teacher.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
        images = np.abs(random(64, 3, 8, 8))
        images[first] *= -1
        np.savez(tmp_path / "d.npz", x=images)
        with pytest.raises(DataError, match=rf"the teacher makes .* 'y' of sample {first} "):
            finetune(student, teacher=teacher, data=tmp_path / "d.npz", recipe=short())

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_weights(self, dtype: type[np.generic]) -> None:
        model = classifier(dtype=dtype)
        module = to_torch(model)
        # In half precision 1e6 is infinite.
        value = float("nan") if dtype is np.float32 else 1e6
        module.get_parameter("head_w").data[1, 1] = value
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ModelError, match="tensor 'head_w' hold 1 values that are NaN"):
                from_torch(module, model)
