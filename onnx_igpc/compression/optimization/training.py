"""Training a cut back, or a model for int8, against the original, in as many epochs as there is time for."""

from __future__ import annotations

import importlib.util
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnx_igpc.compression.optimization.task import Task
from onnx_igpc.compression.optimization.workbench import LeftOutError, Workbench
from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import IgpcError
from onnx_igpc.graph.model import open_model
from onnx_igpc.report.digest import read_digest
from onnx_igpc.torch_bridge.training.recipe import INT8, Recipe

if TYPE_CHECKING:
    from onnx_igpc.torch_bridge.training.log import Progress as Trained

# Of the time that is left, what one training may take: measuring it and other cuts need some, too.
_SHARE_OF_LEFT = 0.6
# How much of a run must be behind it before what is left of it can be told.
_EPOCHS_TO_TELL, _SECONDS_TO_TELL = 2, 20.0
# Runs that would have to be shorter than this part of what the recipe takes are not worth their time.
_LEAST_OF_RECIPE = 0.1


@dataclass(frozen=True)
class Epochs:
    """How many epochs a training takes; kept, so that a run that is stopped goes on with them."""

    count: int


class _TooLongError(IgpcError):
    """A run that would take longer than it may; ``share`` of its epochs would fit."""

    def __init__(self, epochs: int, share: float) -> None:
        super().__init__("the training would take too long")
        self.epochs = math.floor(epochs * share)
        self.enough = share >= _LEAST_OF_RECIPE and self.epochs >= 1


def torch_is_there() -> bool:
    """Whether anything can be trained."""
    return importlib.util.find_spec("torch") is not None


@dataclass(frozen=True)
class Training:
    """What is trained, ``source``, into what, ``point``, and how."""

    point: str
    source: str
    recipe: Recipe

    @property
    def int8(self) -> bool:
        """Whether it is trained for int8."""
        return self.recipe.precision == INT8


def train(
    task: Task, bench: Workbench, point: str, source: str, precision: str | None = None
) -> bool:
    """Train a model as a step of its own, for int8 where that is asked for; whether that is done, and made it
    better."""
    recipe = task.options.recipe
    if precision is not None:
        recipe = replace(recipe, precision=precision)
    training = Training(point, source, recipe)
    epochs = bench.journal.read(f"epochs {point}", Epochs)
    allowed = _SHARE_OF_LEFT * bench.clock.left

    def make(progress: Progress) -> str:
        nonlocal epochs
        try:
            return _run(task, bench, training, epochs, (allowed, progress))
        except _TooLongError as told:
            if not told.enough:
                raise LeftOutError(f"no time: {allowed:.0f} s are too few to train in") from None
            epochs = Epochs(told.epochs)
        bench.journal.write(f"epochs {point}", epochs)
        _forget(task, bench, point)
        return _run(task, bench, training, epochs, (math.inf, progress))

    def command() -> str:
        return task.command(
            "finetune",
            task.place(source),
            teacher=task.model,
            **task.data(task.images.dataset(task.images.fit)),
            o=task.file(point),
            epochs=epochs.count if epochs is not None else recipe.epochs,
            precision=INT8 if training.int8 else None,
        )

    if not bench.step(point, "finetune", command, make):
        return False
    digest = read_digest(open_model(bench.file(task.file(point))).proto)
    judged = digest.finetune.judged if digest is not None and digest.finetune is not None else None
    return judged is None or judged.gained


def _forget(task: Task, bench: Workbench, point: str) -> None:
    from onnx_igpc.torch_bridge.training.run_files import checkpoint_path

    checkpoint_path(bench.file(task.file(point))).unlink(missing_ok=True)


def _run(
    task: Task,
    bench: Workbench,
    training: Training,
    epochs: Epochs | None,
    within: tuple[float, Progress],
) -> str:
    """Train, and say what came of it; raises _TooLongError where it would take longer than it may."""
    from onnx_igpc.lowering.quantization.aware import finetune
    from onnx_igpc.torch_bridge.training.loop import RunInterruptedError
    from onnx_igpc.torch_bridge.training.options import Run
    from onnx_igpc.torch_bridge.training.run_files import checkpoint_path

    allowed, progress = within
    output = bench.file(task.file(training.point))
    recipe = training.recipe
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs.count)
    begun = time.monotonic()

    def tell(trained: Trained) -> None:
        done = max(trained.epoch - 1, 0) * trained.steps + trained.step
        progress(done, trained.epochs * trained.steps, f"epoch {trained.epoch}/{trained.epochs}")
        spent = time.monotonic() - begun
        if trained.row is not None and trained.epoch >= _EPOCHS_TO_TELL:
            left = spent / trained.epoch * (trained.epochs - trained.epoch)
        elif trained.seconds_left is not None and spent >= _SECONDS_TO_TELL:
            left = trained.seconds_left
        else:
            return
        if spent + left > allowed:
            raise _TooLongError(trained.epochs, (allowed - spent) / (spent + left))

    try:
        result = finetune(
            bench.file(task.place(training.source)),
            task.images.dataset(task.images.fit),
            teacher=task.model,
            recipe=recipe,
            output=output,
            run=Run(resume=checkpoint_path(output).is_file()),
            progress=tell,
        )
    except RunInterruptedError as stopped:  # of which it says how to go on with that command
        raise KeyboardInterrupt from stopped
    gain = "" if result.gained else ", which made it no better"
    return f"trained for {len(result.history)} epochs{gain}"
