"""Training of the baseline and of the arms; each arm ends as a JSON file, of which the table is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.cifar10.arms import Arm, Compressor, pointwise_parameters
from benchmarks.cifar10.average import averaged
from benchmarks.cifar10.data import subset
from benchmarks.cifar10.half import packed, unpacked
from benchmarks.cifar10.setups import Setup
from onnx_igpc.compression.pipeline import compress
from onnx_igpc.errors import UsageError
from onnx_igpc.evaluation.verify import verify
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import load_model, open_model, save_model, write_atomically
from onnx_igpc.planning.options import Published
from onnx_igpc.report.typed_json import to_values
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.log import Progress
from onnx_igpc.torch_bridge.training.options import Run
from onnx_igpc.torch_bridge.training.recipe import Recipe
from onnx_igpc.torch_bridge.training.run_files import checkpoint_path

_POINTS = 10
"""Points of the curve of one epoch."""


@dataclass(frozen=True)
class Place:
    """Where a benchmark reads and writes."""

    train: Path
    test: Path
    calibration: Path
    work: Path
    device: str | None = None

    @property
    def baseline(self) -> Path:
        """The baseline as float32 model, as every arm reads it."""
        return self.work / "teacher.onnx"

    @property
    def results(self) -> Path:
        return self.work / "results"


def train_baseline(
    setup: Setup, place: Place, recipes: Sequence[Recipe], say: Callable[[str], None]
) -> Path:
    """Train the baseline, going on from a checkpoint, and pack it; the file that was written.

    It is the mean of what its stages ended with.
    """
    target = place.work / "baseline.onnx"
    if not target.is_file():
        untrained, trained = place.work / "untrained.onnx", place.work / "trained.onnx"
        save_model(setup.build(), untrained)
        train_stages(untrained, trained, place, recipes, say)
        stages = [load_model(stage_file(trained, n)) for n in range(1, len(recipes) + 1)]
        save_model(packed(averaged(stages)), target)
    return target


def train_stages(
    source: Path,
    target: Path,
    place: Place,
    recipes: Sequence[Recipe],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train with labels, one recipe after the other; steps, seconds and curve of all together."""
    found: dict[str, Any] = {}
    for number, recipe in enumerate(recipes, start=1):
        stage = stage_file(target, number)
        facts_file = stage.with_suffix(".json")
        if not facts_file.is_file():
            # The best epoch is written: the test images must have no part in choosing it.
            _write_json(facts_file, _finetune(source, stage, place, recipe, say))
        facts = json.loads(facts_file.read_text())
        before = found.get("steps", 0)
        found = {
            "steps": before + facts["steps"],
            "seconds": found.get("seconds", 0.0) + facts["seconds"],
            "images_per_second": facts["images_per_second"],
            "recipe": [*found.get("recipe", []), facts["recipe"]],
            "curve": found.get("curve", [])
            + [{**point, "step": before + point["step"]} for point in facts["curve"]],
            "epochs": [*found.get("epochs", []), *facts["epochs"]],
        }
        source = stage
    save_model(load_model(source), target)
    return found


def stage_file(target: Path, number: int) -> Path:
    """Where the model at the end of a stage lies."""
    return target.with_name(f"{target.stem}-{number}.onnx")


def take_baseline(source: Path, place: Place) -> dict[str, Any]:
    """Put the baseline at ``place.baseline`` and measure it.

    It has the weights that its packed form can hold, whether ``source`` is packed or not: the arms are the
    same in both cases.

    Raises:
        UsageError: the folder has the runs of another baseline.
    """
    result = place.results / "baseline.json"
    model = unpacked(packed(unpacked(load_model(source))))
    if not place.baseline.is_file():
        save_model(model, place.baseline)
    elif load_model(place.baseline) != model:
        raise UsageError(
            f"{place.work} has the runs of another baseline than {source}: give an empty folder"
        )
    if not result.is_file():
        _write_json(result, {"arm": "baseline", **_measured(place.baseline, place)})
    return dict(json.loads(result.read_text()))


def run_arm(
    arm: Arm,
    setup: Setup,
    place: Place,
    recipe: Recipe,
    say: Callable[[str], None],
    *,
    images: int | None = None,
    train: bool = True,
) -> dict[str, Any] | None:
    """Compress, measure, train, measure; what is done already is not done again.

    Args:
        images: how many of the training images to use; None for all.
        train: whether to go on after the compressed model was measured.

    Returns:
        What the JSON file of the arm says; None where ``train`` is off and it has not been trained.
    """
    result = place.results / f"{arm.name}.json"
    if result.is_file():
        return dict(json.loads(result.read_text()))
    models = place.work / "compressed"
    maker = Compressor(place.baseline, setup.build(), place.calibration, place.test, models)
    compressed = maker.model(arm)
    before_file = models / f"{arm.model_name}.json"
    if not before_file.is_file():
        _write_json(before_file, _measured(compressed, place))
    if not train:
        return None
    (place.work / "trained").mkdir(exist_ok=True)
    tuned = place.work / "trained" / f"{arm.name}.onnx"
    some = replace(place, train=subset(place.train, images))
    facts = _finetune(compressed, tuned, some, arm.recipe(recipe), say, teacher=place.baseline)
    found = {
        "arm": arm.name,
        "method": arm.method,
        "share": arm.share,
        "matching": arm.matching,
        "trained_on": arm.trained_on,
        "changes": dict(arm.changes),
        "seed": arm.seed,
        "before": json.loads(before_file.read_text()),
        **_measured(tuned, place),
        **facts,
    }
    _write_json(result, found)
    return found


def run_published(
    channels: int,
    setup: Setup,
    place: Place,
    recipes: Sequence[Recipe],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train a published network from scratch with labels, as the baseline was, and measure it."""
    name = f"published-ch{channels}"
    result = place.results / f"{name}.json"
    if result.is_file():
        return dict(json.loads(result.read_text()))
    assert setup.published is not None
    models, trained = place.work / "compressed", place.work / "trained"
    for folder in (models, trained):
        folder.mkdir(exist_ok=True)
    untrained, tuned = models / f"{name}.onnx", trained / f"{name}.onnx"
    compress(setup.published(), Published(channels, form="paper")).save(untrained)
    before = _measured(untrained, place)
    facts = train_stages(untrained, tuned, place, recipes, say)
    after = _measured(tuned, place)
    dense = json.loads((place.results / "baseline.json").read_text())
    found = {
        "arm": name,
        "method": f"published, ch {channels}",
        "share": round(100 * pointwise_share(after, dense)),
        "matching": "labels",
        "trained_on": "labels",
        "seed": recipes[0].seed,
        "before": before,
        **after,
        **facts,
    }
    _write_json(result, found)
    return found


@dataclass
class Curve:
    """Means over pieces of an epoch, out of the means of the epoch so far that a run reports."""

    points: list[dict[str, float]] = field(default_factory=list)
    _epoch: int = 0
    _step: int = 0
    _sums: dict[str, float] = field(default_factory=dict)

    def add(self, progress: Progress) -> None:
        """Take what a run reports; a point is made when a tenth of the epoch has passed."""
        if progress.row is not None or progress.loss is None:
            return
        if progress.epoch != self._epoch:
            self._epoch, self._step, self._sums = progress.epoch, 0, {}
        steps = progress.step - self._step
        if steps < max(progress.steps // _POINTS, 1):
            return
        means = {"loss": progress.loss, "agreement": progress.agreement}
        point = {"step": float((progress.epoch - 1) * progress.steps + progress.step)}
        for key, mean in means.items():
            if mean is not None:
                total = mean * progress.step
                point[key] = (total - self._sums.get(key, 0.0)) / steps
                self._sums[key] = total
        self._step = progress.step
        self.points.append(point)


def _finetune(
    source: Path,
    target: Path,
    place: Place,
    recipe: Recipe,
    say: Callable[[str], None],
    *,
    teacher: Path | None = None,
) -> dict[str, Any]:
    """Run finetune, resuming where it can; steps, seconds and the curve."""
    curve = Curve()

    def report(progress: Progress) -> None:
        curve.add(progress)
        if progress.row is not None:
            row = {k: v for k, v in to_values(progress.row).items() if v is not None}
            say(f"{target.stem}: epoch {progress.epoch}/{progress.epochs} {json.dumps(row)}")

    result = finetune(
        source,
        teacher=teacher,
        data=place.train,
        output=target,
        recipe=recipe,
        run=Run(device=place.device, resume=checkpoint_path(target).is_file()),
        progress=report,
    )
    run, last = result.report.finetune, result.history[-1]
    return {
        "steps": last.step,
        "seconds": last.seconds,
        "images_per_second": last.images_per_second,
        "recipe": run.recipe if run is not None else None,
        "curve": curve.points,
        "epochs": to_values(result.history),
    }


def _measured(path: Path, place: Place) -> dict[str, Any]:
    """What onnxruntime says of a model on the test images, and what its graph costs."""
    found = verify(place.baseline, path, place.test, setting=Setting(batch=100)).classifier
    assert found is not None
    assert found.candidate is not None
    cost = count(open_model(path))
    return {
        "accuracy": found.candidate.top1,
        "agreement": found.agreement,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "pointwise_parameters": pointwise_parameters(load_model(path)),
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = (json.dumps(values, indent=1) + "\n").encode()
    write_atomically(path, lambda file: file.write(content))


def pointwise_share(found: dict[str, Any], baseline: dict[str, Any]) -> float:
    """Pointwise parameters as a share of the baseline's."""
    return float(found["pointwise_parameters"] / baseline["pointwise_parameters"])
