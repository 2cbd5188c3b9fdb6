"""Training of the arms, which goes on where it was stopped; each ends as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar10.arms import pointwise_parameters
from benchmarks.cifar10.runs import Place, stage_file, train_stages
from benchmarks.from_scratch.arms import SETUPS, Arm, Setup
from onnx_igpc.errors import DataError, UsageError
from onnx_igpc.evaluation.verify import verify
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import load_model, open_model, save_model, write_atomically
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.torch_bridge.training.log import RunLog, log_base
from onnx_igpc.torch_bridge.training.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What a folder of runs is for: the same at every start.

    ``images`` is how many of the training images are used, None for all of them.
    """

    setup_name: str
    recipe: Recipe
    images: int | None = None

    @property
    def setup(self) -> Setup:
        return SETUPS[self.setup_name]

    def write(self, runs: Path) -> None:
        """Put the plan into a folder of runs, or see that it is the one that is there.

        Raises:
            UsageError: the folder has runs with another one.
        """
        values = {"setup": self.setup_name, "recipe": self.recipe.to_dict(), "images": self.images}
        path = runs / "plan.json"
        if not path.is_file():
            _write_json(path, values)
        elif (there := json.loads(path.read_text())) != values:
            raise UsageError(f"{runs} has runs of {_in_words(there)}: give an empty folder")


def epochs_planned(runs: Path) -> tuple[str, int]:
    """Name of the setup and epochs of each arm in a folder of runs.

    Raises:
        DataError: nothing was started there.
    """
    try:
        plan = json.loads((runs / "plan.json").read_text())
        return str(plan["setup"]), int(plan["recipe"]["epochs"])
    except FileNotFoundError as error:
        raise DataError(f"{runs} has no runs: start them with the command train") from error


@dataclass(frozen=True)
class Row:
    """One arm as it stands; ``accuracy`` is None until it is finished, 0 to 1.

    ``so_far`` is the accuracy on the test images after the last complete epoch.
    """

    arm: Arm
    parameters: int
    pointwise_parameters: int
    macs: int
    epochs: int = 0
    seconds: float = 0.0
    so_far: float | None = None
    accuracy: float | None = None


def write_untrained(arms: Sequence[Arm], setup: Setup, runs: Path) -> None:
    """The models that the arms begin with; those that are there are kept."""
    for arm in arms:
        target = untrained_path(arm, runs)
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            save_model(setup.untrained(arm), target)


def train_arm(arm: Arm, plan: Plan, place: Place, say: Callable[[str], None]) -> None:
    """Train one arm with labels, going on where it was stopped, and measure it in onnxruntime.

    What counts is the end of the last epoch: nothing is chosen by the test images.
    """
    result = place.results / f"{arm.name}.json"
    if result.is_file():
        return
    source, target = untrained_path(arm, place.work), trained_path(arm, place.work)
    target.parent.mkdir(exist_ok=True)
    facts = train_stages(source, target, place, [replace(plan.recipe, seed=arm.seed)], say)
    measured = verify(source, target, place.test, setting=Setting(batch=100)).classifier
    assert measured is not None
    assert measured.candidate is not None
    accuracy = measured.candidate.top1
    threads = torch.get_num_threads()
    _write_json(result, {"arm": arm.name, "accuracy": accuracy, "threads": threads, **facts})
    say(f"{arm.name}: {accuracy:.2%}")


def read_row(arm: Arm, runs: Path) -> Row | None:
    """How an arm stands, counted on its graph as it is; None if it is not part of these runs."""
    source, target = untrained_path(arm, runs), trained_path(arm, runs)
    if not source.is_file():
        return None
    path = target if target.is_file() else source
    cost = count(open_model(path))
    row = Row(arm, cost.parameters, pointwise_parameters(load_model(path)), cost.macs)
    result = runs / "results" / f"{arm.name}.json"
    if result.is_file():
        found = json.loads(result.read_text())
        row = replace(row, accuracy=found["accuracy"])
        epochs = found["epochs"]
    else:
        log = RunLog(log_base(stage_file(target, 1))).json
        epochs = json.loads(log.read_text())["epochs"] if log.is_file() else []
    if not epochs:
        return row
    last = epochs[-1]
    seconds, so_far = last["seconds"], last["val_accuracy"]
    return replace(row, epochs=last["epoch"], seconds=seconds, so_far=so_far)


def untrained_path(arm: Arm, runs: Path) -> Path:
    """Where the model lies that an arm begins with."""
    return runs / "untrained" / f"{arm.name}.onnx"


def trained_path(arm: Arm, runs: Path) -> Path:
    """Where the trained model of an arm lies."""
    return runs / "trained" / f"{arm.name}.onnx"


def _in_words(values: dict[str, Any]) -> str:
    images = values["images"] or "all"
    return f"--setup {values['setup']}, {values['recipe']['epochs']} epochs of {images} images"


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = (json.dumps(values, indent=1) + "\n").encode()
    write_atomically(path, lambda file: file.write(content))
