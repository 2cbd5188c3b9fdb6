"""A cut is trained in as many epochs as there is time for, and those are kept over a stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from onnx_igpc import Optimization, Recipe
from onnx_igpc.compression.optimization import training
from onnx_igpc.compression.optimization.images import Shared
from onnx_igpc.compression.optimization.task import Task
from onnx_igpc.compression.optimization.workbench import Clock, Journal, Workbench
from onnx_igpc.errors import ModelError
from onnx_igpc.planning.promise import Promise
from onnx_igpc.report.optimization import ORIGINAL, ImagesReport

pytest.importorskip("torch")
from onnx_igpc.lowering.quantization import aware
from onnx_igpc.torch_bridge.training.log import Progress
from onnx_igpc.torch_bridge.training.loop import RunInterruptedError


@dataclass
class Trainer:
    """Stands for finetune: takes ``seconds`` an epoch on a clock of its own, and notes what it was asked."""

    seconds: float
    now: float = 0.0
    asked: list[int | None] = field(default_factory=list)
    precision: str | None = None
    error: Exception | None = None

    def __call__(self, *_: Any, recipe: Recipe, output: Path, progress: Any, **__: Any) -> Any:
        self.asked.append(recipe.epochs)
        self.precision = recipe.precision
        if self.error is not None:
            raise self.error
        epochs = recipe.epochs or 100
        for epoch in range(1, epochs + 1):
            self.now += self.seconds
            row: Any = SimpleNamespace()
            progress(Progress(epoch, epochs, 1, 1, row=row))
        onnx.save(onnx.ModelProto(ir_version=8), output)
        return SimpleNamespace(history=[None] * epochs, gained=True)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Task, Workbench]]:
    (tmp_path / "steps").mkdir()
    counts = ImagesReport(source="in", total=40, fit=20, choose=20, state=0)
    data = tmp_path / "data"
    images = Shared(data / "fit.npz", data / "choose.npz", None, counts, None)
    task = Task(tmp_path / "m.onnx", images, None, Promise("output", 0.1), Optimization())

    def make(trainer: Trainer, limit: float) -> tuple[Task, Workbench]:
        monkeypatch.setattr(aware, "finetune", trainer)
        monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: trainer.now))
        monkeypatch.setattr(training, "open_model", lambda _: SimpleNamespace(proto=None))
        monkeypatch.setattr(training, "read_digest", lambda _: None)
        bench = Workbench(
            tmp_path, Journal(tmp_path), Clock(limit), lambda *_: None, lambda _: None
        )
        return task, bench

    return make


def test_with_time_it_takes_what_the_recipe_takes(place: Any) -> None:
    trainer = Trainer(seconds=1.0)
    task, bench = place(trainer, 1000.0)
    assert training.train(task, bench, "cut, trained", "cut")
    assert trainer.asked == [None]
    assert "--epochs" not in bench.steps[0].command


def test_the_original_is_trained_for_int8(place: Any) -> None:
    trainer = Trainer(seconds=1.0)
    task, bench = place(trainer, 1000.0)
    assert training.train(task, bench, "trained for int8", ORIGINAL, precision="int8")
    assert trainer.precision == "int8"
    words = bench.steps[0].command.split()
    assert words[:3] == ["onnx-igpc", "finetune", str(task.model)]
    assert words[words.index("--precision") + 1] == "int8"


def test_what_would_take_longer_takes_fewer_epochs(place: Any) -> None:
    # 100 epochs of 10 s, and 0.6 x (600 - 60) s for them.
    trainer = Trainer(seconds=10.0)
    task, bench = place(trainer, 600.0)
    assert training.train(task, bench, "cut, trained", "cut")
    first, second = trainer.asked
    assert first is None
    assert second is not None
    assert 25 <= second <= 32
    assert bench.steps[0].command.endswith(f"--epochs {second}")
    assert bench.steps[0].note == f"trained for {second} epochs"
    # Killed before the step was kept, it goes on with as many.
    (bench.folder / "step-cut-trained.json").unlink()
    task, again = place(trainer, 600.0)
    assert training.train(task, again, "cut, trained", "cut")
    assert trainer.asked == [None, second, second]


def test_what_is_not_worth_its_time_is_left_out(place: Any) -> None:
    trainer = Trainer(seconds=100.0)
    task, bench = place(trainer, 600.0)
    assert not training.train(task, bench, "cut, trained", "cut")
    assert bench.steps[0].status == "skipped"
    assert bench.steps[0].note.startswith("no time: ")


def test_a_signal_stops_the_run_and_an_error_the_step(place: Any) -> None:
    task, bench = place(Trainer(1.0, error=RunInterruptedError("stopped", 2)), 600.0)
    with pytest.raises(KeyboardInterrupt):
        training.train(task, bench, "cut, trained", "cut")
    task, bench = place(Trainer(1.0, error=ModelError("no such operator")), 600.0)
    assert not training.train(task, bench, "cut, trained", "cut")
    assert (bench.steps[0].status, bench.steps[0].note) == ("failed", "no such operator")
