"""Few samples: what is chosen, from what a model and its data are, and what that does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from onnx_igpc.calibration.options import Calibration
from onnx_igpc.compression.pipeline import compress
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.errors import UsageError
from onnx_igpc.planning.options import Published
from onnx_igpc.report.digest import write_digest
from onnx_igpc.report.sections import DamageReport, FinetuneReport
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.losses import comparable
from onnx_igpc.torch_bridge.training.options import Run
from onnx_igpc.torch_bridge.training.pairing import Pair
from onnx_igpc.torch_bridge.training.recipe import (
    DEFAULTS,
    FEWEST_SOME,
    MOST_FEW,
    MUCH_LOST,
    Form,
    Recipe,
)
from onnx_igpc.torch_bridge.training.recipe_file import read_recipe
from tests.torch_bridge.graphs import make_model, random
from tests.torch_bridge.training_cases import arrays_of, write_data

CLASSIFIER = Form(penultimate=True, head=("head_w",), images=True, sized=True)


def decided(form: Form, samples: int = 200, **given: Any) -> Recipe:
    return Recipe(**given).resolved(None, samples, 1).fitted(form)


class TestChoice:
    def test_by_the_number_of_samples(self) -> None:
        few, many = (decided(CLASSIFIER, count) for count in (MOST_FEW, MOST_FEW + 1))
        assert (few.base, many.base) == ("few", "many")
        assert few.lr is not None
        assert many.lr is not None
        assert few.lr < many.lr
        assert (few.batch_norm, many.batch_norm) == ("frozen", "train")
        assert (few.features, many.features) == ("penultimate", "sites")
        assert (few.interpolation, many.interpolation) == (0.75, 1.0)
        assert (few.freeze, many.freeze) == (("head_w",), ())
        assert (few.augment, many.augment) == (("flip", "resized-crop", "mixup"), ("shift",))

    @pytest.mark.parametrize(
        ("samples", "given", "views"),
        [
            (180, {}, 32),
            (600, {}, 27),
            (1079, {}, 15),
            (1079, {"base": "some"}, 15),
            (180, {"epochs": 20}, 20),
            (180, {"views": 3}, 3),
            (180, {"base": "many", "epochs": 9}, 9),
            (5000, {}, 7),
            (180, {"augment": "none"}, 1),
        ],
    )
    def test_views_come_again(self, samples: int, given: dict[str, Any], views: int) -> None:
        assert decided(CLASSIFIER, samples, **given).views == views

    @pytest.mark.parametrize(
        ("samples", "lost", "precision", "base"),
        [
            (FEWEST_SOME, MUCH_LOST, None, "some"),
            (MOST_FEW, 2.0, None, "some"),
            (FEWEST_SOME - 1, 2.0, None, "few"),
            (MOST_FEW, MUCH_LOST - 0.01, None, "few"),
            (MOST_FEW, None, None, "few"),
            (MOST_FEW, 2.0, "int8", "few"),
            (MOST_FEW + 1, 2.0, None, "many"),
        ],
    )
    def test_by_what_was_lost(
        self, samples: int, lost: float | None, precision: str | None, base: str
    ) -> None:
        recipe = Recipe(precision=precision).resolved(None, samples, 1, lost=lost)
        assert recipe.base == base
        assert Recipe().resolved(None, samples, 1, trained=False, lost=lost).base == "many"

    @pytest.mark.parametrize(
        ("given", "fixed", "base"),
        [
            ({"epochs": 67}, None, "some"),
            ({"epochs": 66}, None, "few"),
            ({"batch_size": 32}, None, "few"),
            ({"batch_norm": "frozen"}, None, "few"),
            ({}, 1, "few"),
            ({"base": "some", "epochs": 1, "batch_norm": "frozen"}, 1, "some"),
        ],
    )
    def test_large_steps_are_for_whole_runs_and_large_batches(
        self, given: dict[str, Any], fixed: int | None, base: str
    ) -> None:
        assert Recipe(**given).resolved(fixed, 1000, 1, lost=1.0).base == base

    def test_some_takes_the_steps_of_many_and_the_views_of_few(self) -> None:
        some, few, many = (decided(CLASSIFIER, 1000, base=each) for each in ("some", "few", "many"))
        assert some.epochs == 134, "2,010 steps"
        assert (some.lr, some.batch_norm, some.features) == (many.lr, "train", "sites")
        assert (some.freeze, some.augment) == ((), few.augment)
        assert some.augment != many.augment
        assert decided(Form(images=True, sized=True), 1000, base="some").augment == ("shift",)

    def test_int8_goes_all_the_way(self) -> None:
        assert decided(CLASSIFIER, precision="int8").interpolation == 1.0
        assert decided(CLASSIFIER, precision="int8", interpolation=0.5).interpolation == 0.5

    def test_what_is_given_stays(self) -> None:
        given: dict[str, Any] = {
            "base": "few",
            "lr": 0.5,
            "epochs": 2,
            "batch_size": 8,
            "batch_norm": "train",
            "interpolation": 0.5,
            "features": "sites",
            "feature_loss": 0.0,
            "augment": ("flip",),
            "freeze": (),
        }
        recipe = decided(CLASSIFIER, 10_000, **given)
        assert {name: getattr(recipe, name) for name in given} == given

    def test_no_classifier_is_matched_at_its_sites(self) -> None:
        recipe = decided(Form(images=True, sized=True))
        assert (recipe.base, recipe.batch_norm) == ("few", "frozen")
        assert (recipe.features, recipe.feature_loss) == ("sites", 1.0)
        assert (recipe.freeze, recipe.augment) == ((), ("shift",))

    def test_data_that_cannot_be_cut_or_mixed(self) -> None:
        arrays = replace(CLASSIFIER, images=False, sized=False)
        assert decided(arrays).augment == ("shift", "mixup")
        assert decided(replace(CLASSIFIER, sized=False)).augment == ("shift",)
        assert decided(replace(CLASSIFIER, labels=True)).augment == ("flip", "resized-crop")

    @pytest.mark.parametrize(
        ("form", "given", "message"),
        [
            (Form(), {"features": "penultimate"}, "`features` penultimate"),
            (Form(labels=True), {"augment": "mixup"}, "`augment` mixup"),
            (Form(images=True), {"augment": "resized-crop"}, "give `resize`"),
        ],
    )
    def test_refusals(self, form: Form, given: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            decided(form, **given)


class TestFiles:
    def test_names_and_files(self, tmp_path: Path) -> None:
        assert read_recipe("many") == Recipe(base="many")
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({"base": "few", "lr": 1e-3, "freeze": [], "epochs": None}))
        assert read_recipe(str(path)) == Recipe(base="few", lr=1e-3, freeze=())

    def test_what_a_run_was_is_a_recipe(self, tmp_path: Path) -> None:
        recipe = decided(CLASSIFIER)
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(recipe.to_dict()))
        assert read_recipe(str(path)) == recipe

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "[]",
            '{"rate": 1}',
            '{"epochs": "2"}',
            '{"freeze": 3}',
            '{"base": "all"}',
            "[" * 9999,
        ],
    )
    def test_refusals(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "recipe.json"
        path.write_text(content)
        with pytest.raises(UsageError, match=r"recipe.*recipe\.json") as error:
            read_recipe(str(path))
        assert "\n" not in str(error.value)

    def test_neither_name_nor_file(self) -> None:
        with pytest.raises(UsageError, match="few, some, many or a JSON file, not 'som'"):
            read_recipe("som")


def told_of(model: onnx.ModelProto, data: Any, **options: Any) -> FinetuneReport:
    """What the report says of a run."""
    result = finetune(model, data, run=Run(device="cpu", workers=0), **options)
    assert result.report.finetune is not None
    return result.report.finetune


class TestRuns:
    def test_a_classifier(
        self, tmp_path: Path, teacher: onnx.ModelProto, compressed: onnx.ModelProto
    ) -> None:
        data = write_data(tmp_path / "d.npz", teacher, labels=False)
        result = finetune(compressed, data, teacher=teacher, recipe=Recipe(epochs=30, lr=1e-2))
        told = result.report.finetune
        assert told is not None
        assert told.judged is not None
        assert told.judged.gained
        assert told.recipe["base"] == "few"
        assert told.recipe["freeze"] == ["head_w"]
        assert told.penultimate == "flat"
        assert told.matched_sites == []
        assert any("recipe few was chosen for 48 training samples" in note for note in told.notes)
        old, new = arrays_of(compressed), arrays_of(result.model)
        assert old.keys() == new.keys()
        same = {name for name in old if np.array_equal(old[name], new[name])}
        still = {name for name in same if old[name].dtype == np.float32}
        front = {"stem_w", "stem_bn_scale", "stem_bn_shift"}
        assert still == {"head_w", *front, *(n for n in old if n.endswith(("_mean", "_var")))}
        assert told.epochs[-1].feature_loss < told.epochs[0].feature_loss

    def test_it_is_judged_by_the_divergence_itself(
        self, tmp_path: Path, teacher: onnx.ModelProto, compressed: onnx.ModelProto
    ) -> None:
        data = write_data(tmp_path / "d.npz", teacher, labels=False)
        recipe = Recipe(epochs=1)
        cold = told_of(compressed, data, teacher=teacher, recipe=replace(recipe, temperature=1))
        warm = told_of(compressed, data, teacher=teacher, recipe=recipe)
        assert cold.judged is not None
        assert warm.judged is not None
        assert warm.judged.before == pytest.approx(cold.judged.before)

    def test_many_can_be_asked_for(
        self, tmp_path: Path, teacher: onnx.ModelProto, compressed: onnx.ModelProto
    ) -> None:
        data = write_data(tmp_path / "d.npz", teacher, labels=False)
        told = told_of(compressed, data, teacher=teacher, recipe=Recipe(base="many", epochs=1))
        assert told.matched_sites == ["wide_node", "deep_node"]
        assert told.penultimate is None
        assert not any("was chosen" in note for note in told.notes)

    def test_labels_alone(
        self, tmp_path: Path, teacher: onnx.ModelProto, compressed: onnx.ModelProto
    ) -> None:
        data = write_data(tmp_path / "d.npz", teacher)
        told = told_of(compressed, data, recipe=Recipe(epochs=1))
        assert told.recipe["base"] == "many"
        assert told.penultimate is None

    def test_outputs_that_are_no_scores(self, tmp_path: Path) -> None:
        node = onnx.helper.make_node("Conv", ["x", "w"], ["boxes"], "boxes")
        inputs = {"x": ["n", 1, 5, 5]}
        model = make_model([node], {"w": random(4, 1, 1, 1)}, inputs, ["boxes"])
        images = np.random.default_rng(0).standard_normal((16, 1, 5, 5)).astype(np.float32)
        np.savez(tmp_path / "d.npz", x=images)
        recipe = Recipe(epochs=1)
        told = told_of(model, tmp_path / "d.npz", teacher=model, recipe=recipe)
        assert told.recipe["features"] == "sites"
        assert any("no penultimate feature is matched" in note for note in told.notes)

    def test_images_are_cropped_flipped_and_mixed(
        self, tmp_path: Path, teacher: onnx.ModelProto, compressed: onnx.ModelProto
    ) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        for index in range(12):
            pixels = np.random.default_rng(index).integers(0, 256, (9, 7), np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
        data = Dataset(folder, Preprocessing(resize=5, crop=5))
        told = told_of(compressed, data, teacher=teacher, recipe=Recipe(epochs=2))
        assert told.recipe["augment"] == ["flip", "resized-crop", "mixup"]


def test_a_pooled_pair_is_compared_by_its_mean_over_the_image() -> None:
    values = torch.arange(24.0).reshape(1, 2, 3, 4)
    pair = Pair("s", "a", "a", pooled=True)
    assert comparable(pair, values).tolist() == [[5.5, 17.5]]
    assert comparable(replace(pair, pooled=False), values) is values


class TestFittedToWhatJudges:
    """compress fitted the model to the samples that are held out of the training."""

    @pytest.fixture
    def data(self, tmp_path: Path, teacher: onnx.ModelProto) -> Path:
        return write_data(tmp_path / "d.npz", teacher, labels=False)

    def fitted(self, teacher: onnx.ModelProto, data: Path, honest: float) -> onnx.ModelProto:
        """A model whose report says that it is ``honest`` times as far away where it was not fitted."""
        result = compress(teacher, Published(4), calibration=Calibration(data))
        result.report.damage = DamageReport(
            samples=32, kl=honest, fitted=DamageReport(samples=64, kl=1.0)
        )
        write_digest(result.model, result.report)
        return result.model

    def test_it_counts_as_half_way_to_what_it_is_elsewhere(
        self, teacher: onnx.ModelProto, data: Path
    ) -> None:
        model = self.fitted(teacher, data, 1e6)
        result = finetune(model, data, teacher=teacher, recipe=Recipe(epochs=2, lr=0.05))
        assert result.report.finetune is not None
        judged = result.report.finetune.judged
        assert judged is not None
        assert judged.counted == pytest.approx(judged.before * 1e3)
        assert (judged.epoch, judged.gained) == (2, True)
        assert judged.after == result.history[-1].val_judged
        assert any("fitted to them: counts as" in line for line in result.summary())
        assert any("as --val" in note for note in result.report.finetune.notes)

    def test_much_that_was_lost_asks_for_large_steps(
        self, teacher: onnx.ModelProto, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(f"{Recipe.__module__}.FEWEST_SOME", 16)
        monkeypatch.setitem(DEFAULTS, "some", replace(DEFAULTS["some"], steps=(1, 1)))
        model = self.fitted(teacher, data, MUCH_LOST)
        told = told_of(model, data, teacher=teacher, recipe=Recipe(epochs=1))
        assert (told.recipe["base"], told.recipe["lr"]) == ("some", 0.01)
        assert told.recipe["augment"] == ["shift", "mixup"]
        assert any(
            "much was lost (compress measured a divergence of 0.40)" in n for n in told.notes
        )

    def test_without_batch_norm_the_steps_stay_small(
        self, teacher: onnx.ModelProto, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(f"{Recipe.__module__}.FEWEST_SOME", 16)
        result = compress(
            teacher, Published(4), calibration=Calibration(data), fold_batch_norm=True
        )
        result.report.damage = DamageReport(samples=32, kl=9.0)
        write_digest(result.model, result.report)
        told = told_of(result.model, data, teacher=teacher, recipe=Recipe(epochs=1))
        assert told.recipe["base"] == "few"

    def test_a_last_epoch_that_is_worse_is_not_taken(
        self, teacher: onnx.ModelProto, data: Path
    ) -> None:
        model = self.fitted(teacher, data, 1.0001)
        told = told_of(model, data, teacher=teacher, recipe=Recipe(epochs=1, lr=3.0, warmup=0))
        assert told.judged is not None
        assert told.judged.counted is not None
        assert told.judged.least_after_training > told.judged.counted
        assert (told.judged.epoch, told.judged.gained) == (0, False)
        assert told.judged.after == told.judged.before

    def test_other_data_counts_as_it_is(
        self, tmp_path: Path, teacher: onnx.ModelProto, data: Path
    ) -> None:
        model = self.fitted(teacher, data, 4.0)
        other = write_data(tmp_path / "other.npz", teacher, labels=False, seed=1)
        (tmp_path / "more").mkdir()
        more = write_data(tmp_path / "more" / data.name, teacher, 65, labels=False)
        for source, val in ((other, None), (more, None), (data, other)):
            told = told_of(model, source, teacher=teacher, val=val, recipe=Recipe(epochs=1))
            assert told.judged is not None
            assert told.judged.counted is None
