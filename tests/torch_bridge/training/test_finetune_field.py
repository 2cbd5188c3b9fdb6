"""Networks and data as people have them: heads of five axes, sound, boxes that are chosen, maps, NaN."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.cli import main
from onnx_igpc.compression.pipeline import compress
from onnx_igpc.errors import CheckFailedError, DataError, ModelError, UsageError
from onnx_igpc.planning.options import Published
from onnx_igpc.report.sections import JudgedReport
from onnx_igpc.torch_bridge import from_torch, to_torch
from onnx_igpc.torch_bridge.registry import _OPERATORS
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.options import Run
from onnx_igpc.torch_bridge.training.result import FinetuneResult
from tests.torch_bridge.graphs import make_model, random
from tests.torch_bridge.training_cases import arrays_of, classifier, short, smaller, write_data

node = helper.make_node
C = 16


def trunk(axes: int = 2) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """x -> stem -> Relu -> a pointwise layer that is rewritten -> Relu -> "seen", in so many axes."""
    nodes = [
        node("Conv", ["x", "stem_w", "stem_b"], ["a"], "stem", pads=[1] * 2 * axes),
        node("Relu", ["a"], ["b"], "stem_relu"),
        node("Conv", ["b", "wide_w", "wide_b"], ["c"], "wide"),
        node("Relu", ["c"], ["seen"], "wide_relu"),
    ]
    tensors = {
        "stem_w": random(C, 3, *[3] * axes) / 5,
        "stem_b": random(C, seed=1),
        "wide_w": random(2 * C, C, *[1] * axes, seed=2) / 4,
        "wide_b": random(2 * C, seed=3),
    }
    return nodes, tensors


def model_of(
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    outputs: Sequence[str],
    axes: int = 2,
) -> onnx.ModelProto:
    first, own = trunk(axes)
    return whole([*first, *nodes], {**own, **tensors}, outputs, axes)


def whole(
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    outputs: Sequence[str],
    axes: int = 2,
) -> onnx.ModelProto:
    model = make_model(nodes, tensors, {"x": ["n", 3, *[8] * axes]}, list(outputs), opset=18)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    inferred = onnx.shape_inference.infer_shapes(model)
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
    return model


def compressed(model: onnx.ModelProto) -> onnx.ModelProto:
    result = compress(model, Published(4))
    assert result.report.rewritten[0].name == "wide"
    return result.model


def pixels(path: Path, axes: int = 2, count: int = 64, **more: Any) -> Path:
    np.savez(path, x=random(count, 3, *[8] * axes, seed=9), **more)
    return path


def yolo() -> onnx.ModelProto:
    """Colours are centred in front, boxes are decoded behind: 3 anchors on a grid of 8 x 8, 5 axes."""
    f = np.float32
    y, x = np.meshgrid(np.arange(8, dtype=f), np.arange(8, dtype=f), indexing="ij")
    nodes, tensors = trunk()
    nodes[0].input[0] = "scaled"
    nodes[:0] = [
        node("Sub", ["x", "mean"], ["centred"]),
        node("Div", ["centred", "std"], ["scaled"]),
    ]
    nodes += [
        node("Mul", ["seen", "gamma"], ["gated"]),
        node("Conv", ["gated", "head_w", "head_b"], ["h"], "head"),
        node("Reshape", ["h", "split"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[0, 1, 3, 4, 2]),
        node("Sigmoid", ["t"], ["s"]),
        node("Split", ["s", "sizes"], ["xy", "wh", "rest"], axis=4),
        node("Add", ["xy", "grid"], ["at"]),
        node("Mul", ["at", "stride"], ["centre"]),
        node("Pow", ["wh", "two"], ["square"]),
        node("Mul", ["square", "anchors"], ["size"]),
        node("Concat", ["centre", "size", "rest"], ["all"], axis=4),
        node("Reshape", ["all", "flat"], ["boxes"]),
    ]
    tensors |= {
        "mean": np.full((1, 3, 1, 1), 0.5, f),
        "std": np.array([0.2, 0.3, 0.4], f).reshape(1, 3, 1, 1),
        "gamma": random(2 * C, 1, 1, seed=4),
        "head_w": random(21, 2 * C, 1, 1, seed=5) / 4,
        "head_b": random(21, seed=6),
        "split": np.array([0, 3, 7, 8, 8]),
        "sizes": np.array([2, 2, 3]),
        "grid": np.stack([x, y], -1).reshape(1, 1, 8, 8, 2),
        "stride": np.array([8.0, 8.0], f),
        "two": np.array(2.0, f),
        "anchors": np.array([10, 13, 16, 30, 33, 23], f).reshape(1, 3, 1, 1, 2),
        "flat": np.array([0, 192, 7]),
    }
    return whole(nodes, tensors, ["boxes"])


class TestAxes:
    def test_constants_around_the_network_are_no_weights(self) -> None:
        trained = {name for name, _ in to_torch(yolo()).named_parameters()}
        layers = {f"{name}_{kind}" for name in ("stem", "wide", "head") for kind in "wb"}
        assert trained == layers | {"gamma"}

    def test_heads_of_five_axes(self, tmp_path: Path) -> None:
        teacher = yolo()
        data = pixels(tmp_path / "d.npz")
        result = finetune(compressed(teacher), teacher=teacher, data=data, recipe=short(epochs=4))
        assert result.gained
        old, new = arrays_of(teacher), arrays_of(result.model)
        for name in ("mean", "std", "grid", "stride", "anchors"):
            assert np.array_equal(old[name], new[name])
        assert not np.array_equal(old["gamma"], new["gamma"])

    @pytest.mark.parametrize("axes", [1, 3])
    def test_sound_and_volumes(self, tmp_path: Path, axes: int) -> None:
        nodes = [
            node("GlobalAveragePool", ["seen"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "head_w", "head_b"], ["scores"]),
        ]
        tensors = {"head_w": random(2 * C, 5, seed=5), "head_b": random(5, seed=6)}
        teacher = model_of(nodes, tensors, ["scores"], axes)
        data = pixels(tmp_path / "d.npz", axes)
        small = compressed(teacher)
        result = finetune(small, teacher=teacher, data=data, recipe=short(epochs=4))
        assert result.gained
        assert not np.array_equal(arrays_of(small)["stem_w"], arrays_of(result.model)["stem_w"])


class TestRoles:
    def parameters(
        self, nodes: Sequence[onnx.NodeProto], tensors: dict[str, np.ndarray], output: str = "y"
    ) -> set[str]:
        module = to_torch(model_of(nodes, tensors, [output]))
        return {name for name, _ in module.named_parameters()} & tensors.keys()

    def test_the_bias_of_the_last_layer(self) -> None:
        nodes = [
            node("GlobalAveragePool", ["seen"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("MatMul", ["f", "w"], ["m"]),
            node("Add", ["m", "bias"], ["scores"]),
            node("Mul", ["scores", "unit"], ["y"]),
        ]
        tensors = {"w": random(2 * C, 4), "bias": random(4), "unit": random(4, seed=1)}
        # Behind the bias nothing belongs to the layer: a unit in which the results are given.
        assert self.parameters(nodes, tensors) == {"w", "bias"}

    def test_normalization_in_single_steps_at_the_end(self) -> None:
        nodes = [
            node("GlobalAveragePool", ["seen"], ["mean"]),
            node("Sub", ["seen", "mean"], ["centred"]),
            node("Mul", ["centred", "centred"], ["square"]),
            node("GlobalAveragePool", ["square"], ["var"]),
            node("Add", ["var", "eps"], ["safe"]),
            node("Sqrt", ["safe"], ["std"]),
            node("Div", ["centred", "std"], ["normal"]),
            node("Mul", ["normal", "gamma"], ["scaled"]),
            node("Add", ["scaled", "beta"], ["y"]),
        ]
        tensors = {
            "eps": np.array(1e-5, np.float32),
            "gamma": random(1, 2 * C, 1, 1),
            "beta": random(1, 2 * C, 1, 1, seed=1),
        }
        assert self.parameters(nodes, tensors) == {"gamma", "beta"}

    def test_tokens_and_positions_are_learned_and_masks_are_not(self) -> None:
        f = np.float32
        nodes = [
            node("Reshape", ["seen", "shape"], ["flat"]),
            node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
            node("Add", ["tokens", "positions"], ["t"]),
            node("MatMul", ["t", "q"], ["scores"]),
            node("Add", ["scores", "mask"], ["masked"]),
            node("Softmax", ["masked"], ["share"], axis=-1),
            node("MatMul", ["share", "t"], ["mixed"]),
            node("MatMul", ["mixed", "o"], ["y"]),
        ]
        tensors = {
            "shape": np.array([0, 2 * C, 64]),
            "positions": random(1, 64, 2 * C),
            "q": random(2 * C, 64),
            "mask": np.triu(np.full((1, 64, 64), -1e9, f), 1),
            "o": random(2 * C, 4),
        }
        assert self.parameters(nodes, tensors) == {"positions", "q", "o"}

    def test_the_projection_of_a_box_head_counts(self) -> None:
        """Sides of boxes as the mean of a distribution over 16 distances: a Conv with 0 to 15."""
        nodes = [
            node("Conv", ["seen", "head_w"], ["h"]),
            node("Reshape", ["h", "sides"], ["r"]),
            node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3]),
            node("Softmax", ["t"], ["s"], axis=1),
            node("Conv", ["s", "dfl"], ["d"]),
            node("Reshape", ["d", "flat"], ["ltrb"]),
            node("Sub", ["points", "ltrb"], ["corner"]),
            node("Mul", ["corner", "strides"], ["y"]),
        ]
        tensors = {
            "head_w": random(64, 2 * C, 1, 1),
            "sides": np.array([0, 4, 16, 64]),
            "dfl": np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1),
            "flat": np.array([0, 4, 64]),
            "points": np.indices((2, 64)).sum(0).astype(np.float32).repeat(2, 0)[None],
            "strides": np.repeat(np.array([8, 16], np.float32), 32)[None],
        }
        assert self.parameters(nodes, tensors) == {"head_w"}

    def test_standardized_weights_are_weights(self) -> None:
        nodes = [
            node("ReduceMean", ["w", "axes"], ["m"]),
            node("Sub", ["w", "m"], ["centred"]),
            node("Conv", ["seen", "centred"], ["y"]),
        ]
        tensors = {"w": random(4, 2 * C, 1, 1), "axes": np.array([1])}
        assert self.parameters(nodes, tensors) == {"w"}


def detector() -> onnx.ModelProto:
    """Boxes that are chosen by their scores: how many depends on the image."""
    nodes = [
        node("Conv", ["seen", "box_w"], ["bm"]),
        node("Reshape", ["bm", "box_shape"], ["br"]),
        node("Transpose", ["br"], ["boxes"], perm=[0, 2, 1]),
        node("Conv", ["seen", "score_w"], ["sm"]),
        node("Reshape", ["sm", "score_shape"], ["sr"]),
        node("Sigmoid", ["sr"], ["scores"]),
        node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["selected"]),
        node("Gather", ["selected", "third"], ["places"], axis=1),
        node("SequenceConstruct", ["places", "places"], ["both"]),
    ]
    tensors = {
        "box_w": random(4, 2 * C, 1, 1, seed=5),
        "score_w": random(2, 2 * C, 1, 1, seed=6) / 4,
        "box_shape": np.array([0, 4, 64]),
        "score_shape": np.array([0, 2, 64]),
        "most": np.array([20]),
        "iou": np.array([0.5], np.float32),
        "least": np.array([0.6], np.float32),
        "third": np.array([2]),
    }
    model = model_of(nodes, tensors, ["selected", "both"])
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("selected", TensorProto.INT64, ["k", 3])
    )
    model.graph.output[1].CopyFrom(
        helper.make_tensor_sequence_value_info("both", TensorProto.INT64, None)
    )
    return model


def named_classes() -> onnx.ModelProto:
    """A classifier as services export it: the name of the class, and a map from names to shares."""
    nodes = [
        node("GlobalAveragePool", ["seen"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "head_w"], ["logits"]),
        node("Softmax", ["logits"], ["shares"], axis=1),
        node("ArgMax", ["shares"], ["best"], axis=1, keepdims=0),
        node("ArrayFeatureExtractor", ["names", "best"], ["name"], domain="ai.onnx.ml"),
        node("ZipMap", ["shares"], ["map"], domain="ai.onnx.ml", classlabels_strings=list("abc")),
    ]
    model = model_of(nodes, {"head_w": random(2 * C, 3, seed=5)}, ["name", "map"])
    model.graph.initializer.append(
        numpy_helper.from_array(np.array(["a", "b", "c"], dtype=object), "names")
    )
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("name", TensorProto.STRING, ["m", "n"])
    )
    entry = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    model.graph.output[1].type.CopyFrom(helper.make_sequence_type_proto(entry))
    return model


class TestOutputs:
    @pytest.mark.parametrize("build", [detector, named_classes])
    def test_sites_are_enough(self, tmp_path: Path, build: Any) -> None:
        teacher = build()
        small, output = compressed(teacher), tmp_path / "t.onnx"
        data = pixels(tmp_path / "d.npz")
        result = finetune(small, teacher=teacher, data=data, output=output, recipe=short(epochs=8))
        facts, damage = result.report.finetune, result.report.damage
        assert facts
        assert damage
        for value in teacher.graph.output:
            assert any(f"output {value.name!r} is left out" in note for note in facts.notes)
        assert facts.outputs == []
        assert str(damage.output).startswith("site ")
        assert facts.damage_before
        assert damage.relative_error is not None
        assert facts.damage_before.relative_error is not None
        assert damage.relative_error < facts.damage_before.relative_error
        assert "relative error of site " in "\n".join(result.summary())
        nodes = [(n.op_type, n.name) for n in small.graph.node]
        assert [(n.op_type, n.name) for n in onnx.load(output).graph.node] == nodes

    def test_scores_can_name_an_inner_tensor(self, tmp_path: Path) -> None:
        teacher = named_classes()
        data = pixels(tmp_path / "d.npz")
        recipe = short(epochs=8, scores="shares")
        result = finetune(compressed(teacher), teacher=teacher, data=data, recipe=recipe)
        assert result.report.finetune
        assert result.report.finetune.outputs == ["shares"]
        assert result.report.damage
        assert result.report.damage.agreement is not None
        assert 0 <= result.report.damage.agreement <= 1
        with pytest.raises(UsageError, match=r"`scores` 'map' cannot be compared: .*ZipMap"):
            finetune(teacher, teacher=teacher, data=data, recipe=short(scores="map"))

    def test_nothing_to_learn_from(self, tmp_path: Path) -> None:
        nodes = [node("NonZero", ["seen"], ["y"])]
        model = model_of(nodes, {}, ["y"])
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
        with pytest.raises(ModelError, match="nothing to learn from: no output can be compared"):
            finetune(model, teacher=model, data=pixels(tmp_path / "d.npz"))


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


def judgement(result: FinetuneResult) -> JudgedReport:
    run = result.report.finetune
    assert run
    assert run.judged
    return run.judged


def _ruin(module: torch.nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data *= 3


# A rate that stays high: the curve goes up again.
RUN: dict[str, Any] = {
    "lr": 0.3, "schedule": "constant", "warmup": 0.0, "epochs": 24, "feature_loss": 0.0
}  # fmt: skip


class TestNeverWorse:
    def test_a_rate_that_ruins_the_network(self, tmp_path: Path) -> None:
        teacher = classifier()
        small = smaller(teacher)
        data = write_data(tmp_path / "d.npz", teacher, labels=False)
        output = tmp_path / "out.onnx"
        recipe = short(lr=3.0, epochs=2)
        result = finetune(small, teacher=teacher, data=data, output=output, recipe=recipe)
        assert not result.gained
        judged = judgement(result)
        assert judged.epoch == 0
        assert judged.on == "held-out"
        assert judged.samples == 16
        assert judged.before == judged.after < judged.least_after_training
        for before, after in zip(
            small.graph.initializer, onnx.load(output).graph.initializer, strict=True
        ):
            assert before.SerializeToString() == after.SerializeToString()
        [warning] = [text for text in result.report.warnings if "did not help" in text]
        assert f"warning: {warning}" in result.summary()
        assert "the weights are as they were given" in warning

    def test_the_best_epoch_is_what_is_written(self, tmp_path: Path) -> None:
        teacher = classifier()
        data = write_data(tmp_path / "d.npz", teacher, labels=False)
        result = finetune(smaller(teacher), teacher=teacher, data=data, recipe=short(**RUN))
        judged = judgement(result)
        curve = [row.val_judged or 0.0 for row in result.history]
        assert judged.after == min(judged.before, *curve)
        best = judged.epoch
        assert 0 < best < RUN["epochs"]
        shorter = finetune(
            smaller(teacher), teacher=teacher, data=data, recipe=short(**{**RUN, "epochs": best})
        )
        assert shorter.model.graph.initializer == result.model.graph.initializer

    def test_a_gain_that_rounding_takes_away(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half precision: judged are the weights as they are written."""
        teacher = classifier(dtype=np.float16)
        data = write_data(tmp_path / "d.npz", classifier(), labels=False)
        small = smaller(teacher)
        result = finetune(small, teacher=teacher, data=data, recipe=short(epochs=12))
        judged = judgement(result)
        assert result.gained
        assert judged.after != result.history[judged.epoch - 1].val_judged
        monkeypatch.setattr(
            "onnx_igpc.torch_bridge.training.finetune.to_torch",
            lambda model: to_torch(model).apply(_ruin),
        )
        ruined = finetune(small, teacher=teacher, data=data, recipe=short(epochs=12))
        assert not ruined.gained
        assert ruined.model.graph.initializer == small.graph.initializer

    def test_the_sites_do_not_hide_the_outputs(self, tmp_path: Path) -> None:
        """With a heavy weight on the sites the loss falls while the outputs go astray."""
        teacher = classifier()
        data = write_data(tmp_path / "d.npz", teacher, labels=False)
        recipe = short(feature_loss=1e6, epochs=1, freeze=("head_w",))
        row = finetune(smaller(teacher), teacher=teacher, data=data, recipe=recipe).history[0]
        assert row.val_judged is not None
        assert row.val_loss is not None
        assert row.val_judged < 1e3 < row.val_loss

    def test_exit_code(self, tmp_path: Path) -> None:
        teacher = classifier()
        onnx.save(teacher, tmp_path / "m.onnx")
        onnx.save(smaller(teacher), tmp_path / "s.onnx")
        data = write_data(tmp_path / "d.npz", teacher, labels=False)
        words = ["finetune", str(tmp_path / "s.onnx"), "--teacher", str(tmp_path / "m.onnx")]
        words += ["--data", str(data), "-o", str(tmp_path / "o.onnx"), "--epochs", "1", "--lr", "3"]
        plain = CliRunner().invoke(main, words)
        assert plain.exit_code == 0, plain.output
        assert "training did not help" in plain.stdout
        assert re.search(r"  val loss [0-9.]+  val agreement [0-9.]+%  ", plain.stderr)
        strict = CliRunner().invoke(main, [*words, "--require-gain"])
        assert strict.exit_code == 1
        assert "error: training made nothing better" in strict.stderr
        assert (tmp_path / "o.onnx").is_file()

    @pytest.mark.parametrize(("count", "kind", "held"), [
        (1, "training", 1), (2, "held-out", 1), (12, "held-out", 3), (64, "held-out", 16),
        (200, "held-out", 40), (600, "held-out", 60),
    ])  # fmt: skip
    def test_how_much_is_held_out(self, tmp_path: Path, count: int, kind: str, held: int) -> None:
        teacher = classifier()
        data = write_data(tmp_path / "d.npz", teacher, count)
        result = finetune(smaller(teacher), teacher=teacher, data=data, recipe=short(epochs=1))
        judged, run = judgement(result), result.report.finetune
        assert (judged.on, judged.samples) == (kind, held)
        assert run
        assert run.data.samples == (count if kind == "training" else count - held)
        assert run.val
        assert (run.val.kind, run.val.samples) == (kind, held)


def test_float64(tmp_path: Path) -> None:
    """What onnxruntime computes in float64 is trained in float64."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Gemm", ["h", "v", "b"], ["y"])]
    tensors = {"w": random(6, 8), "v": random(8, 3, seed=1), "b": random(3, seed=2)}
    doubles = {name: value.astype(np.float64) for name, value in tensors.items()}
    kind = {"input_type": TensorProto.DOUBLE, "output_type": TensorProto.DOUBLE}
    teacher = make_model(nodes, doubles, {"x": ["n", 6]}, ["y"], **kind)
    doubles["w"] = doubles["w"] + 0.2
    student = make_model(nodes, doubles, {"x": ["n", 6]}, ["y"], **kind)
    np.savez(tmp_path / "d.npz", x=random(64, 6).astype(np.float64))
    result = finetune(student, teacher=teacher, data=tmp_path / "d.npz", recipe=short(epochs=8))
    assert result.gained
    assert {value.dtype for value in arrays_of(result.model).values()} == {np.dtype("float64")}


def test_warnings_of_others_are_one_line_without_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(*_: object, **__: object) -> None:
        for _again in range(2):
            warnings.warn_explicit("two\nlines", UserWarning, "/somewhere/torch.py", 7)
        raise UsageError("the end")

    monkeypatch.setattr("onnx_igpc.torch_bridge.state_files.export_state", noisy)
    onnx.save(classifier(), tmp_path / "m.onnx")
    words = ["to-torch", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "w")]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = CliRunner().invoke(main, words)
    assert result.stderr.splitlines() == ["warning: two lines", "error: the end"]


def test_a_reshape_to_one_batch_size_is_told_with_what_to_do(tmp_path: Path) -> None:
    teacher = classifier()
    teacher.graph.initializer.append(numpy_helper.from_array(np.array([1, 16]), "one_row"))
    flat = next(each for each in teacher.graph.node if each.op_type == "Flatten")
    flat.CopyFrom(node("Reshape", ["pooled", "one_row"], ["flat"], "flat_node"))
    del teacher.graph.value_info[:]
    data = write_data(tmp_path / "d.npz", classifier(), labels=False)
    with pytest.raises(ModelError, match="export the model with a dynamic batch"):
        finetune(smaller(teacher), teacher=teacher, data=data, recipe=short())
