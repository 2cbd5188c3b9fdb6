"""The training loop: steps, epochs, checkpoints, and stopping in good order."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from onnx_igpc.errors import CheckFailedError, IgpcError, ModelError
from onnx_igpc.report.sections import EpochReport, FinetuneReport, JudgedMeans
from onnx_igpc.torch_bridge.training.checkpoint import RunState, save_checkpoint
from onnx_igpc.torch_bridge.training.distributed import World
from onnx_igpc.torch_bridge.training.evaluation import Tally, evaluate
from onnx_igpc.torch_bridge.training.held_out import Part
from onnx_igpc.torch_bridge.training.int8_training import first_epoch, observe
from onnx_igpc.torch_bridge.training.kept import KeptBatches
from onnx_igpc.torch_bridge.training.loader import BatchLoader, TensorBatch
from onnx_igpc.torch_bridge.training.log import Progress, Reporter, RunLog
from onnx_igpc.torch_bridge.training.losses import Losses, Objective
from onnx_igpc.torch_bridge.training.networks import Networks
from onnx_igpc.torch_bridge.training.preparation import Validation
from onnx_igpc.torch_bridge.training.recipe import Recipe
from onnx_igpc.torch_bridge.training.sampling import BatchPlan, learning_rate
from onnx_igpc.torch_bridge.training.start_checks import explain_not_finite
from onnx_igpc.torch_bridge.training.views import Views

# On a GPU, looking at the loss means waiting for it: not at every step.
_STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 20}
_REPORT_SECONDS = 0.5


class RunInterruptedError(IgpcError):
    """A signal stopped the run after a checkpoint; the exit code is 128 + its number, as shells have it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def train_step(
    networks: Networks,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: TensorBatch,
    rate: float,
) -> tuple[Losses, list[torch.Tensor], list[torch.Tensor] | None, torch.Tensor | None]:
    """One step of the optimizer at a learning rate.

    Returns:
        What :meth:`~onnx_igpc.torch_bridge.training.evaluation.Tally.add` takes: the losses, the outputs of student
        and teacher, and the labels, on the device.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    student, teacher = networks.forward(batch)
    labels = batch.labels
    if labels is not None:
        labels = labels.to(networks.world.device, non_blocking=True)
    losses = networks.objective(student, teacher, labels)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(scaler.scale(losses.total))
    scaler.step(optimizer)
    scaler.update()
    return losses, student, teacher, labels


@dataclass
class Trainer:
    """One run over the data, from where ``state`` stands to the end.

    Attributes:
        networks: Student, teacher and objective.
        data, train: The training data and its loader; ``plan`` says which samples when, ``views`` how they are seen.
        val: What the model is judged by after every epoch; the weights that are best there stay.
        given: The student's state before the first step.
        checkpoint: Where checkpoints go; None for none.
        log: Where the log goes; None for none.
        facts: What the log says, besides the rows.
    """

    networks: Networks
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    plan: BatchPlan
    epochs: int
    data: Part
    train: BatchLoader
    views: Views
    val: Validation
    world: World
    state: RunState
    given: Mapping[str, torch.Tensor]
    facts: FinetuneReport
    checkpoint: Path | None = None
    log: RunLog | None = None
    report: Reporter | None = None

    def __post_init__(self) -> None:
        self._signal: int | None = None
        self._started = time.monotonic() - self.state.seconds
        self._last_report = 0.0
        self._labelled = self.networks.labelled
        int8 = self.networks.int8
        if int8 is not None:
            int8.ranges = self.state.ranges
        places = list(self.plan.in_order(self.val.data.size))
        self._judged_by = KeptBatches(self.val.loader, places, self.networks.known)
        self._scaler = torch.amp.GradScaler(
            self.world.device.type, enabled=self.recipe.amp == "fp16"
        )
        if self.state.scaler:
            self._scaler.load_state_dict(self.state.scaler)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.plan.steps

    def run(self) -> None:
        """Train to the end, and give the student the weights that were judged best, those that it was
        given with among them.

        Raises:
            CheckFailedError: the loss became NaN or infinite; the last checkpoint is from before that.
            RunInterruptedError: SIGINT or SIGTERM came; a checkpoint was written.
            DataError: training data cannot be read, or is such that the teacher makes NaN of it.
        """
        if not self.state.best_weights:
            self.state.best_weights = snapshot(self.networks.student)
        if not self.state.judged:
            self.state.val_before = self._measure_start()
            self.state.judged = [self.state.val_before.judged]
        self.facts.val_before = self.state.val_before
        self.views.catch_up(self.state.epoch, self.state.step)
        with self._listening():
            while self.state.epoch < self.epochs:
                self._run_epoch()
        self.networks.student.load_state_dict(self.state.best_weights)

    def _run_epoch(self) -> None:
        epoch, first = self.state.epoch, self.state.step
        rounded = epoch >= first_epoch(self.recipe)
        self.networks.set_training(self.recipe.batch_norm == "train" and not rounded)
        tally = Tally(self.networks.objective, self.world.device, self._labelled)
        if self.state.sums:
            tally.restore(self.state.sums)
        batches = self.views.batches(epoch, first)
        begun = time.monotonic()
        for step, batch in enumerate(batches, first):
            with self.networks.in_int8(rounded):
                self._step(batch, self._rate(step), tally)
            last = step + 1 == self.plan.steps
            if last or not (step + 1) % _STEPS_BETWEEN_LOOKS[self.world.device.type]:
                speed = self._speed(step + 1 - first, begun)
                self._look(tally, step + 1, speed)
        speed = self._speed(self.plan.steps - first, begun)
        self._end_epoch(tally, speed)

    def _rate(self, step: int) -> float:
        return learning_rate(
            self.recipe, self.state.epoch * self.plan.steps + step, self.total_steps
        )

    def _step(self, batch: TensorBatch, rate: float, tally: Tally) -> None:
        made = train_step(self.networks, self.optimizer, self._scaler, batch, rate)
        tally.add(*made, batch.count)

    def _look(self, tally: Tally, done: int, speed: float) -> None:
        """Is the loss finite, did a signal come, is it time to say something?"""
        finite = math.isfinite(tally.local()["loss"])
        broken, stopped = self.world.sum([float(not finite), float(self._signal or 0)])
        if broken:
            self._stop_diverged()
        self.state.step = done
        if stopped:
            self._stop_interrupted(tally, self._signal or signal.SIGTERM)
        now = time.monotonic()
        if self.report is None or not self.world.leads or now - self._last_report < _REPORT_SECONDS:
            return
        self._last_report = now
        # The means of this process alone: asking the others would take their time.
        means = tally.means(World(0, 1, self.world.device))
        steps_left = self.total_steps - self.state.epoch * self.plan.steps - done
        self.report(
            Progress(
                epoch=self.state.epoch + 1,
                epochs=self.epochs,
                step=done,
                steps=self.plan.steps,
                loss=means.loss,
                accuracy=means.accuracy,
                agreement=means.agreement,
                images_per_second=speed,
                seconds_left=steps_left * self.plan.samples_per_step / max(speed, 1e-9),
            )
        )

    def _end_epoch(self, tally: Tally, speed: float) -> None:
        self.world.average_statistics(self.networks.student)
        if self.state.epoch + 1 >= self.epochs:
            self._interpolate()
        means, measured = tally.means(self.world), self.validate()
        if not self._is_finite() or not math.isfinite(measured.loss):
            self._stop_diverged()
        row = EpochReport(
            epoch=self.state.epoch + 1,
            step=(self.state.epoch + 1) * self.plan.steps,
            learning_rate=self._rate(self.plan.steps - 1),
            **vars(means),
            val_loss=measured.loss,
            val_judged=measured.judged,
            val_accuracy=measured.accuracy,
            val_agreement=measured.agreement,
            images_per_second=speed,
            seconds=time.monotonic() - self._started,
        )
        if self.is_better(measured.judged):
            self.state.best_epoch = self.state.epoch + 1
            self.state.best_weights = snapshot(self.networks.student)
        self.state.judged.append(measured.judged)
        self.state.history.append(row)
        self.state.epoch, self.state.step, self.state.sums = self.state.epoch + 1, 0, {}
        self._save()
        if self.log is not None and self.world.leads:
            self.log.write(replace(self.facts, epochs=self.state.history))
        if self.report is not None and self.world.leads:
            epoch = self.state.epoch
            self.report(Progress(epoch, self.epochs, self.plan.steps, self.plan.steps, row=row))

    def _interpolate(self) -> None:
        """Take the student back part of the way that the run has led it."""
        part = self.recipe.interpolation or 1.0
        if part == 1.0:
            return
        state = self.networks.student.state_dict()
        for name, trained in state.items():
            if trained.is_floating_point():
                given = self.given[name].to(trained.device)
                trained.copy_(torch.lerp(given, trained, part))

    def is_better(self, judged: float) -> bool:
        """Whether the weights after this epoch are the best so far.

        Where the model was fitted to what judges it, epochs are not compared with each other: what training wears off
        first is that it was. The last one is compared with what the model counts as that was given.
        """
        if self.val.allowance is None:
            return judged < min(self.state.judged)
        last = self.state.epoch + 1 >= self.epochs
        return last and judged < self.state.judged[0] * self.val.allowance

    def _measure_start(self) -> JudgedMeans:
        measured = self.validate()
        if not math.isfinite(measured.loss):
            explain_not_finite(self.networks, self._sources, student=True)
            raise ModelError(
                "the loss is NaN or infinite before the first step: the models overflow"
            )
        return measured

    @property
    def _sources(self) -> list[tuple[Part, BatchLoader]]:
        return [(self.val.data, self.val.loader), (self.data, self.train)]

    def validate(self) -> JudgedMeans:
        """Means over the validation data as it is, and what the model is judged by; in fake int8 where it is
        trained for that."""
        judge = self.networks.judge
        if self.networks.int8 is not None:
            self.state.ranges = observe(self.networks, self.data, self.train)
        with self.networks.in_int8():
            return self._measured(judge)

    def _measured(self, judge: Objective) -> JudgedMeans:
        found = evaluate(
            self.networks.student,
            self.networks.forward_plain,
            judge,
            self._judged_by,
            self.world,
            self.val.labelled,
        )
        return JudgedMeans(**vars(found), judged=judge.judged(found))

    def _save(self) -> None:
        self.state.seconds = time.monotonic() - self._started
        self.state.scaler = self._scaler.state_dict()
        if self.checkpoint is not None and self.world.leads:
            save_checkpoint(self.checkpoint, self.state, self.networks.student, self.optimizer)
        self.world.wait()

    def _speed(self, steps: int, begun: float) -> float:
        return steps * self.plan.samples_per_step / max(time.monotonic() - begun, 1e-9)

    def _stop_diverged(self) -> None:
        explain_not_finite(self.networks, self._sources, student=False)
        kept = ""
        if self.checkpoint is not None and self.checkpoint.is_file():
            kept = f"; {self.checkpoint} is from the end of epoch {self.state.epoch}"
        raise CheckFailedError(
            f"the loss became NaN or infinite in epoch {self.state.epoch + 1}: take a smaller `lr` "
            f"than {self.recipe.learning_rate:g}{kept}"
        )

    def _is_finite(self) -> bool:
        """Whether all weights are: the last step can have broken them without its loss showing it."""
        return all(bool(value.isfinite().all()) for value in self.networks.student.parameters())

    def _stop_interrupted(self, tally: Tally, number: int) -> None:
        if not self._is_finite():
            self._stop_diverged()
        self.state.sums = tally.local()
        self._save()
        name = signal.Signals(number).name
        where = f"epoch {self.state.epoch + 1}, step {self.state.step} of {self.plan.steps}"
        how = f"; `resume` continues from {self.checkpoint}" if self.checkpoint else ""
        raise RunInterruptedError(f"{name} in {where}{how}", number)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGINT and SIGTERM are noted, and acted on after the step; a second one ends the process."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        before: dict[signal.Signals, Any] = {}

        def note(number: int, _: FrameType | None) -> None:
            self._signal = number
            for each, handler in before.items():
                signal.signal(each, handler)

        for each in (signal.SIGINT, signal.SIGTERM):
            before[each] = signal.signal(each, note)
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
