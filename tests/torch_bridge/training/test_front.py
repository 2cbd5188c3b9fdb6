"""What lies before the first rewritten layer: found, computed once for both, and left as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from onnx_igpc.compression.pipeline import compress
from onnx_igpc.errors import UsageError
from onnx_igpc.planning.options import Published
from onnx_igpc.sites.find import SiteFilter
from onnx_igpc.torch_bridge import to_torch
from onnx_igpc.torch_bridge.running import as_list
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.front import Split, Whole, ahead, measured_alone, picked, split
from onnx_igpc.torch_bridge.training.options import Run
from onnx_igpc.torch_bridge.training.pairing import with_outputs
from onnx_igpc.torch_bridge.training.recipe import Recipe
from tests.torch_bridge.graphs import random, run_onnx
from tests.torch_bridge.training_cases import SIDE, arrays_of, classifier, smaller, write_data

X = random(4, 1, SIDE, SIDE)
STEM = ("stem_bn_mean", "stem_bn_scale", "stem_bn_shift", "stem_bn_var", "stem_w")


@pytest.fixture
def teacher() -> onnx.ModelProto:
    return classifier()


def late(teacher: onnx.ModelProto) -> onnx.ModelProto:
    """The teacher with its last site rewritten alone."""
    return compress(teacher, Published(4), sites=SiteFilter(include=("deep_node",))).model


def cut(student: onnx.ModelProto, teacher: onnx.ModelProto, *outputs: str) -> Split | None:
    names = [*outputs, *(output.name for output in student.graph.output)]
    return split((student, teacher), (names, names), {"x": torch.from_numpy(X)})


def test_the_front_ends_at_the_first_rewritten_layer(teacher: onnx.ModelProto) -> None:
    early = cut(smaller(teacher), teacher)
    assert early is not None
    assert early.frozen == STEM
    found = cut(late(teacher), teacher)
    assert found is not None
    assert set(STEM) < set(found.frozen)
    assert {name.split("_")[0] for name in found.frozen} == {"stem", "wide"}


@pytest.mark.parametrize("compressed", [smaller, late])
def test_both_parts_compute_what_the_whole_does(teacher: onnx.ModelProto, compressed: Any) -> None:
    student = compressed(teacher)
    found = cut(student, teacher, "deep")
    assert found is not None
    inputs = {"x": torch.from_numpy(X)}
    values = ahead(found.front, inputs)
    for part, whole in ((found.student, student), (found.teacher, teacher)):
        module = to_torch(part).eval()
        made = as_list(module(*picked(module, values)))
        assert list(module.output_names) == ["deep", "scores"]
        wanted = run_onnx(with_outputs(whole, [], ["deep", "scores"]), X)
        again = as_list(Whole(found.front, module, ["x"])(*inputs.values()))
        for ours, theirs, same in zip(made, wanted, again, strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-4, atol=1e-5)
            assert torch.equal(ours, same)


def test_inputs_of_which_the_shape_alone_is_read(teacher: onnx.ModelProto) -> None:
    assert measured_alone(teacher) == set()
    model = onnx.ModelProto()
    model.CopyFrom(teacher)
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[1].name = "other"
    assert measured_alone(model) == {"other"}
    model.graph.node.append(helper.make_node("Shape", ["other"], ["dims"]))
    assert measured_alone(model) == {"other"}
    model.graph.node.append(helper.make_node("Relu", ["other"], ["positive"]))
    assert measured_alone(model) == set()


def changed(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy with another value in a weight."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(each for each in copy.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, name))
    return copy


class TestWhereThereIsNone:
    def test_the_first_layer_is_another(self, teacher: onnx.ModelProto) -> None:
        assert cut(changed(late(teacher), "stem_w"), teacher) is None

    def test_a_statistic_differs_further_on(self, teacher: onnx.ModelProto) -> None:
        found = cut(changed(late(teacher), "wide_bn_mean"), teacher)
        assert found is not None
        assert set(found.frozen) == {*STEM, "wide_w"}

    def test_other_operators(self, teacher: onnx.ModelProto) -> None:
        student = late(teacher)
        student.opset_import[0].version += 1
        assert cut(student, teacher) is None

    def test_a_weight_that_is_used_behind_as_well(self, teacher: onnx.ModelProto) -> None:
        """Trained there, it would no longer be the original's in front."""
        models = []
        for model in (late(teacher), teacher):
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            nodes = [n for n in copy.graph.node if n.output[0] == "scores"]
            nodes[0].output[0] = "before"
            total = helper.make_node("ReduceSum", ["stem_w"], ["total"], keepdims=0)
            copy.graph.node.extend(
                [total, helper.make_node("Add", ["before", "total"], ["scores"])]
            )
            models.append(copy)
        student, original = models
        assert cut(student, original) is None


def told(result: Any) -> Any:
    return result.report.finetune


class TestRuns:
    @pytest.mark.parametrize("batch_norm", ["train", "frozen"])
    def test_it_stays_to_the_bit_and_the_rest_learns(
        self, tmp_path: Path, teacher: onnx.ModelProto, batch_norm: str
    ) -> None:
        student, data = smaller(teacher), write_data(tmp_path / "d.npz", teacher, labels=False)
        recipe = Recipe(base="few", epochs=10, lr=1e-2, batch_norm=batch_norm)
        result = finetune(student, data, teacher=teacher, recipe=recipe, run=Run(workers=0))
        assert result.gained
        assert told(result).recipe["front"] == "frozen"
        assert any("5 weights before the first rewritten layer" in n for n in told(result).notes)
        old, new = arrays_of(student), arrays_of(result.model)
        assert old.keys() == new.keys()
        assert all(np.array_equal(old[name], new[name]) for name in STEM)
        assert not np.array_equal(old["deep_bn_scale"], new["deep_bn_scale"])

    def test_it_is_what_frozen_weights_are(self, tmp_path: Path, teacher: onnx.ModelProto) -> None:
        """With the same seed the run is the one in which the same weights are frozen by name."""
        student, data = smaller(teacher), write_data(tmp_path / "d.npz", teacher, labels=False)
        runs = []
        for front, freeze in (("frozen", ("head*",)), ("train", ("head*", "stem*"))):
            recipe = Recipe(base="few", epochs=4, lr=1e-3, front=front, freeze=freeze)
            result = finetune(student, data, teacher=teacher, recipe=recipe, run=Run(workers=0))
            runs.append(arrays_of(result.model))
        for name, value in runs[0].items():
            if value.dtype == np.float32:
                np.testing.assert_allclose(value, runs[1][name], rtol=1e-3, atol=1e-5)

    def test_a_weight_in_it_can_be_named_to_freeze(
        self, tmp_path: Path, teacher: onnx.ModelProto
    ) -> None:
        student, data = smaller(teacher), write_data(tmp_path / "d.npz", teacher, labels=False)
        recipe = Recipe(base="few", epochs=1, freeze=("stem*",))
        assert finetune(student, data, teacher=teacher, recipe=recipe, run=Run(workers=0)).history

    @pytest.mark.parametrize("base", ["few", "many"])
    def test_it_is_trained_where_it_is_asked_for(
        self, tmp_path: Path, teacher: onnx.ModelProto, base: str
    ) -> None:
        student, data = smaller(teacher), write_data(tmp_path / "d.npz", teacher, labels=False)
        front = "train" if base == "few" else None
        recipe = Recipe(base=base, epochs=20, batch_size=16, lr=1e-2, front=front)
        result = finetune(student, data, teacher=teacher, recipe=recipe, run=Run(workers=0))
        assert told(result).recipe["front"] == "train"
        assert not np.array_equal(arrays_of(student)["stem_w"], arrays_of(result.model)["stem_w"])

    def test_a_model_that_nothing_was_rewritten_in_is_trained_whole(
        self, tmp_path: Path, teacher: onnx.ModelProto
    ) -> None:
        data = write_data(tmp_path / "d.npz", teacher)
        recipe = Recipe(base="few", epochs=1)
        result = finetune(teacher, data, teacher=teacher, recipe=recipe, run=Run(workers=0))
        assert told(result).recipe["front"] == "train"

    def test_int8_rounds_all_of_the_model(self) -> None:
        with pytest.raises(UsageError, match="`front` frozen is not for `precision` int8"):
            Recipe(front="frozen", precision="int8")

    def test_in_half_precision_all_is_trained(self, tmp_path: Path) -> None:
        """What was trained is rounded to what the model holds, and judged anew, as a whole."""
        teacher = classifier(dtype=np.float16)
        data = write_data(tmp_path / "d.npz", classifier(), labels=False)
        recipe = Recipe(base="few", epochs=10, lr=1e-2)
        student = smaller(teacher)
        result = finetune(student, data, teacher=teacher, recipe=recipe, run=Run(workers=0))
        assert result.gained
        assert told(result).recipe["front"] == "train"
