"""Networks as people have them: boxes that are chosen, maps, float64, one batch size."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.cli import main
from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.torch_bridge.training.finetune import finetune
from tests.torch_bridge.graphs import make_model, random
from tests.torch_bridge.training.field_networks import C, compressed, model_of, node, pixels
from tests.torch_bridge.training_cases import arrays_of, classifier, short, smaller, write_data


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
