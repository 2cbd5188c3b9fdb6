"""The benchmark on CIFAR-10, on a few synthetic images: nothing here says how good anything is."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from PIL import Image

from benchmarks.cifar10 import __main__ as program
from benchmarks.cifar10.arms import (
    METHODS,
    Arm,
    all_arms,
    left_per_site,
    pointwise_parameters,
)
from benchmarks.cifar10.average import averaged
from benchmarks.cifar10.data import prepare, subset
from benchmarks.cifar10.half import packed, unpacked
from benchmarks.cifar10.runs import Curve, Place, run_arm, take_baseline
from benchmarks.cifar10.setups import SETUPS, Setup
from benchmarks.cifar10.table import curves_svg, markdown, spread
from onnx_igpc.errors import DataError, ModelError, UsageError
from onnx_igpc.report.digest import read_digest
from onnx_igpc.torch_bridge.training.log import Progress
from onnx_igpc.torch_bridge.training.recipe import Recipe
from sample_models import build
from tests.torch_bridge.graphs import run_onnx

SMALL = partial(build, "cifar_net", alpha=0.25, classes=2)
QUICK = Recipe(base="many", epochs=1, batch_size=8, lr=1e-3)


def write_images(root: Path, *, train: int = 16, test: int = 8) -> Path:
    """Noise in two classes, one brighter than the other."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label, level in (("dark", 60), ("light", 190)):
            folder = root / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(level - 50, level + 50, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A prepared work folder with a baseline."""
    folder = tmp_path_factory.mktemp("cifar10")
    found = Place(
        *prepare(write_images(folder / "images"), folder / "work"), folder / "work", "cpu"
    )
    onnx.save(packed(SMALL()), folder / "packed.onnx")
    take_baseline(folder / "packed.onnx", found)
    return found


SETUP = Setup(build=SMALL, baseline=(QUICK,), arms=QUICK)


# -------------------------------------------------------------------------------- data


def test_images_become_the_arrays_they_show(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=3, test=2)
    train, test, calibration = prepare(images, tmp_path / "work")
    with np.load(train) as arrays:
        assert arrays["input"].shape == (6, 3, 32, 32)
        assert arrays["labels"].tolist() == [0, 0, 0, 1, 1, 1]
        pixels = np.asarray(Image.open(images / "train" / "dark" / "000.png"), np.float64)
        expected = pixels.transpose(2, 0, 1) / 127.5 - 1
        np.testing.assert_allclose(arrays["input"][0], expected, atol=1e-6)
        rows = {row.tobytes() for row in arrays["input"]}
    with np.load(calibration) as arrays:
        assert arrays.files == ["input"]
        assert {row.tobytes() for row in arrays["input"]} == rows
    assert np.load(test)["labels"].tolist() == [0, 0, 1, 1]


def test_a_subset_has_images_of_the_whole_with_their_labels(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=6, test=1)
    train, _, _ = prepare(images, tmp_path / "work")
    part = subset(train, 5)
    with np.load(train) as whole, np.load(part) as some:
        label = dict(zip((row.tobytes() for row in whole["input"]), whole["labels"], strict=True))
        assert len(some["input"]) == 5
        assert len({row.tobytes() for row in some["input"]}) == 5
        assert [label[row.tobytes()] for row in some["input"]] == some["labels"].tolist()
    assert subset(train, None) == subset(train, 12) == train


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    images = write_images(tmp_path, train=1, test=1)
    for label in ("dark", "light"):
        (images / "test" / label / "000.png").rename(images / "test" / f"{label}.png")
        (images / "test" / label).rmdir()
    with pytest.raises(DataError, match="a folder for each class"):
        prepare(images, tmp_path / "work")


# -------------------------------------------------------------------------- half weights


def test_a_packed_model_computes_what_the_unpacked_one_does() -> None:
    model = SMALL()
    small = packed(model)
    onnx.checker.check_model(small, full_check=True)
    back = unpacked(small)
    assert [n.name for n in back.graph.node] == [n.name for n in model.graph.node]
    before, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, back)
    )
    assert set(before) == set(after)
    for name, values in before.items():
        assert after[name].dtype == values.dtype
        expected = values.astype(np.float16) if values.ndim > 1 else values
        np.testing.assert_array_equal(after[name], expected)
    image = np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32)
    np.testing.assert_array_equal(run_onnx(small, image)[0], run_onnx(back, image)[0])
    assert unpacked(back) == back


def test_weights_beyond_float16_are_refused() -> None:
    model = SMALL()
    tensor = next(t for t in model.graph.initializer if t.name == "conv1/kernel")
    values = np.full(tuple(tensor.dims), 1e6, np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ModelError, match="conv1/kernel has values that float16 cannot hold"):
        packed(model)


def test_the_kept_baseline_is_small_and_is_the_network_of_its_setup() -> None:
    path = SETUPS["small"].trained
    assert path is not None
    assert path.stat().st_size < 3_000_000
    kept, fresh = unpacked(onnx.load(path)), SETUPS["small"].build()
    assert [n.name for n in kept.graph.node] == [n.name for n in fresh.graph.node]
    assert pointwise_parameters(kept) == pointwise_parameters(fresh)


# --------------------------------------------------------------------------------- arms


def test_every_arm_has_its_own_name() -> None:
    arms = all_arms(seeds=2)
    assert len({arm.name for arm in arms}) == len(arms)
    assert arms[0].name == "budget-25-features-0"
    assert {arm.method for arm in arms} == set(METHODS)
    # Seeds share a model only where no random weight is in it.
    assert Arm("svd", 25, "logits", 0).model_name == Arm("svd", 25, "features", 1).model_name
    assert Arm("paper", 25, "logits", 0).model_name != Arm("paper", 25, "logits", 1).model_name


def test_changes_of_the_recipe_are_in_the_name_and_the_table() -> None:
    arm = Arm("svd", 12, "logits", 2, (("lr", 0.002), ("batch_norm", "frozen")))
    assert arm.name == "svd-12-logits-2+lr=0.002+batch_norm=frozen"
    assert arm.trained_on == "logits, lr 0.002, batch_norm frozen"
    recipe = arm.recipe(QUICK)
    assert (recipe.lr, recipe.batch_norm, recipe.seed) == (0.002, "frozen", 2)
    assert recipe.feature_loss == 0
    assert recipe.batch_size == QUICK.batch_size
    assert Arm("svd", 12, "features").recipe(QUICK).feature_loss == QUICK.feature_loss
    with pytest.raises(UsageError, match="no field 'speed' in a recipe"):
        Arm("svd", 12, "logits", 0, (("speed", 1),)).recipe(QUICK)


@pytest.mark.parametrize("method", METHODS)
def test_an_arm_from_baseline_to_json(method: str, place: Place) -> None:
    arm = Arm(method, 60, "logits" if method == "paper" else "features")
    said: list[str] = []
    found = run_arm(arm, SETUP, place, QUICK, said.append, images=32)
    assert found is not None
    assert json.loads((place.results / f"{arm.name}.json").read_text()) == found
    assert found["steps"] == 3
    assert len(said) == 1
    assert len(found["curve"]) >= 1
    assert 0 <= found["before"]["accuracy"] <= 1
    tuned = onnx.load(place.work / "trained" / f"{arm.name}.onnx")
    assert found["pointwise_parameters"] == pointwise_parameters(tuned)
    dense = pointwise_parameters(onnx.load(place.baseline))
    assert found["pointwise_parameters"] < dense
    digest = read_digest(tuned)
    assert digest is not None
    assert digest.finetune is not None
    matched = digest.finetune.matched_sites
    assert bool(matched) == (arm.matching == "features")
    # What is done is not done again.
    assert run_arm(arm, SETUP, place, QUICK, said.append) == found
    assert len(said) == 1


def test_the_baseline_is_the_same_packed_or_not_and_no_other(place: Place, tmp_path: Path) -> None:
    before = place.baseline.read_bytes()
    onnx.save(SMALL(), tmp_path / "plain.onnx")
    found = take_baseline(tmp_path / "plain.onnx", place)
    assert place.baseline.read_bytes() == before
    assert found["agreement"] == 1
    assert found["pointwise_parameters"] == pointwise_parameters(onnx.load(place.baseline))
    onnx.save(SMALL(seed=1), tmp_path / "other.onnx")
    with pytest.raises(UsageError, match=r"has the runs of another baseline than .*other\.onnx"):
        take_baseline(tmp_path / "other.onnx", place)


def test_low_rank_has_no_more_weights_than_the_budget_in_any_layer(place: Place) -> None:
    for method in ("budget", "svd"):
        run_arm(Arm(method, 40, "logits"), SETUP, place, QUICK, str, train=False)
    models = place.work / "compressed"
    budget, svd = (left_per_site(models / f"{method}-40.onnx") for method in ("budget", "svd"))
    assert set(svd) == set(budget)
    assert all(svd[name] <= budget[name] for name in budget)
    total = sum(budget.values())
    assert total == pointwise_parameters(onnx.load(models / "budget-40.onnx"))
    assert not (place.results / "budget-40-logits-0.json").is_file()


# ------------------------------------------------------------------------ curve and table


def test_the_curve_has_the_means_of_pieces_of_an_epoch() -> None:
    agreed = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    curve = Curve()
    for epoch in (1, 2):
        for step in range(1, 9):
            mean = float(np.mean(agreed[:step]))
            curve.add(Progress(epoch, 2, step, 8, loss=2 * mean, agreement=mean))
        curve.add(Progress(epoch, 2, 8, 8, row={"loss": 1.0}))
    assert [point["step"] for point in curve.points] == list(range(1, 17))
    np.testing.assert_allclose([p["agreement"] for p in curve.points], agreed * 2, atol=1e-12)
    np.testing.assert_allclose(
        [p["loss"] for p in curve.points], [2 * a for a in agreed * 2], atol=1e-12
    )


def result(method: str, accuracy: float, seed: int = 0) -> dict[str, Any]:
    return {
        "arm": f"{method}-25-features-{seed}",
        "method": method,
        "share": 25,
        "matching": "features",
        "trained_on": "features",
        "seed": seed,
        "before": {"accuracy": 0.5},
        "accuracy": accuracy,
        "agreement": 0.91,
        "parameters": 30,
        "pointwise_parameters": 25,
        "macs": 1000,
        "steps": 10,
        "seconds": 61.4,
        "curve": [{"step": 5.0, "agreement": 0.6}, {"step": 10.0, "agreement": 0.8}],
    }


BASELINE = {"accuracy": 0.9, "parameters": 120, "pointwise_parameters": 100, "macs": 5000}


def test_the_table_has_what_the_files_say() -> None:
    text = markdown(BASELINE, [result("budget", 0.8875)])
    assert "Baseline: 90.00 % (standard error 0.30), 120 parameters, 100 of them pointwise" in text
    assert (
        "| 25.0 % | budget | features | 0 | 30 | 1,000 | 50.00 | 88.75 | 91.00 | 10 | 61 |" in text
    )


def test_the_spread_is_over_seeds() -> None:
    arms = [result("budget", 0.88), result("budget", 0.90, 1), result("svd", 0.7)]
    assert spread(arms) == ["- 25 %, budget, features: 89.00 over 2 seeds, standard deviation 1.41"]


def test_the_picture_has_a_line_for_each_arm() -> None:
    picture = curves_svg([result("budget", 0.88), result("svd", 0.87)], "agreement")
    assert picture.count("<polyline") == 2
    # 80 % on an axis from 60 to 100 %, at the last step.
    assert "530.0,180.0" in picture


# ------------------------------------------------------------------------------- program


def test_the_full_setup_is_the_network_of_the_papers_at_32_pixels() -> None:
    setup = SETUPS["full"]
    assert setup.published is not None
    dense, skeleton = setup.build(), setup.published()
    for model in (dense, skeleton):
        dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        assert dims[1:] == [3, 32, 32]
    # The k network has the same dense convolutions, without or with interleaves.
    assert pointwise_parameters(dense) == pointwise_parameters(skeleton)
    assert setup.published_channels == (16, 32)


def test_the_program_trains_a_baseline_and_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_images(tmp_path / "images")
    published = partial(build, "cifar_net", alpha=0.5, classes=2)
    tiny = Setup(
        build=SMALL,
        baseline=(QUICK, QUICK),
        arms=QUICK,
        published=published,
        published_channels=(16,),
    )
    monkeypatch.setitem(SETUPS, "full", tiny)
    command = [str(images), str(tmp_path / "work"), "--setup", "full", "--device", "cpu"]
    run = partial(CliRunner().invoke, program.main, catch_exceptions=False)
    first = run([*command, "--arm", "v2-25-logits-0", "--arm", "published-*"])
    assert first.exit_code == 0, first.output
    assert (tmp_path / "work" / "baseline.onnx").is_file()
    assert (tmp_path / "work" / "results" / "v2-25-logits-0.json").is_file()
    table = run([*command, "--table-only"])
    assert "| v2 | logits | 0 |" in table.output
    assert "| published, ch 16 | labels | 0 |" in table.output
    assert (tmp_path / "work" / "curves-25.svg").is_file()
    for words, code, said in (
        (["--arm", "v3-*"], 2, "--arm v3-* matches no arm"),
        (["--set", "lr"], 2, "--set lr: give KEY=VALUE"),
        (["--arm", "v2-25-logits-0", "--set", "speed=1"], 1, "no field 'speed' in a recipe"),
    ):
        wrong = run([*command, *words])
        assert wrong.exit_code == code
        assert said in wrong.output


def test_the_average_is_the_mean_of_the_weights() -> None:
    one, other = SMALL(seed=0), SMALL(seed=1)
    mean = averaged([one, other])
    arrays = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (one, other)]
    for tensor in mean.graph.initializer:
        a, b = (each[tensor.name] for each in arrays)
        np.testing.assert_allclose(numpy_helper.to_array(tensor), (a + b) / 2, rtol=1e-6, atol=1e-7)
    assert mean.graph.node == one.graph.node
    assert any((a != b).any() for a, b in zip(*(each.values() for each in arrays), strict=True))
