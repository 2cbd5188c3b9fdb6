"""Stopping and going on: bit for bit on a CPU, and nothing is lost when a run is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from onnx_igpc.cli import main
from onnx_igpc.errors import CheckFailedError, ModelError, UsageError
from onnx_igpc.torch_bridge.tensor_files import read_tensors, write_tensors
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.log import Progress
from onnx_igpc.torch_bridge.training.loop import RunInterruptedError
from onnx_igpc.torch_bridge.training.options import Run
from onnx_igpc.torch_bridge.training.run_files import checkpoint_path
from tests.torch_bridge.training_cases import classifier, short, smaller, write_data


class Case:
    """A run with Dropout, augmentation and momentum, which can be stopped at a step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.front: str | None = None
        self.views: int | None = None
        self.teacher = classifier()
        self.small = smaller(self.teacher)
        # Dropout draws from the random state, which a checkpoint must hold.
        for model in (self.small, self.teacher):
            head = next(node for node in model.graph.node if node.op_type == "MatMul")
            dropout = onnx.helper.make_node("Dropout", [head.input[0]], ["dropped"], "dropout")
            model.graph.node.insert(len(model.graph.node) - 1, dropout)
            head.input[0] = "dropped"
        self.data = write_data(folder / "d.npz", classifier(), 44)

    def run(
        self, name: str, stop: tuple[int, int] | None = None, *, resume: bool = False
    ) -> tuple[Path, list[dict[str, object]]]:
        """Run to the end, or until a signal in step ``stop`` (epoch and step, counted from 1)."""
        output = self.folder / name
        result = finetune(
            self.small,
            teacher=self.teacher,
            data=self.data,
            val=self.data,
            output=output,
            recipe=short(
                epochs=4, augment=("shift=1",), batch_size=8, front=self.front, views=self.views
            ),
            run=Run(resume=resume),
            progress=stopping(stop) if stop else None,
        )
        return output, result.history


def stopping(at: tuple[int, int]) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if (progress.epoch, progress.step) == at and progress.row is None:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    # Every step is reported, so that a test can stop at any.
    monkeypatch.setattr("onnx_igpc.torch_bridge.training.loop._REPORT_SECONDS", 0.0)
    return Case(tmp_path)


@pytest.mark.parametrize(
    ("front", "views"), [("train", 4), ("frozen", 4), ("train", 1), ("frozen", 2)]
)
def test_a_resumed_run_is_the_same_bit_for_bit(case: Case, front: str, views: int) -> None:
    """Also where views come again, and are kept: they are made again from the batches of the first run."""
    case.front, case.views = front, views
    whole, history = case.run("whole.onnx")
    with pytest.raises(RunInterruptedError, match="SIGTERM in epoch 2, step 4 of 5; `resume`"):
        case.run("parts.onnx", (2, 3))
    with pytest.raises(RunInterruptedError, match="epoch 4, step 1"):
        case.run("parts.onnx", (3, 5), resume=True)
    parts, parts_history = case.run("parts.onnx", resume=True)
    weights = [
        onnx.load(path).graph.SerializeToString(deterministic=True) for path in (whole, parts)
    ]
    assert weights[0] == weights[1]
    assert len(history) == len(parts_history) == 4
    for row, other in zip(history, parts_history, strict=True):
        assert row.portable() == other.portable()
    assert not checkpoint_path(parts).exists()


def test_optimizer_and_random_state_are_the_same(case: Case) -> None:
    with pytest.raises(RunInterruptedError):
        case.run("whole.onnx", (3, 2))
    with pytest.raises(RunInterruptedError):
        case.run("parts.onnx", (1, 4))
    with pytest.raises(RunInterruptedError):
        case.run("parts.onnx", (3, 2), resume=True)
    states = [load_file(checkpoint_path(case.folder / f"{n}.onnx")) for n in ("whole", "parts")]
    assert states[0].keys() == states[1].keys()
    assert {name.split("/")[0] for name in states[0]} == {"model", "best", "optimizer", "random"}
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_the_exit_code_is_that_of_the_signal(case: Case) -> None:
    with pytest.raises(RunInterruptedError) as caught:
        case.run("o.onnx", (1, 1))
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "handlers are put back"
    assert not (case.folder / "o.onnx").exists()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are added up in another order by another number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    teacher = classifier()
    onnx.save(teacher, tmp_path / "teacher.onnx")
    onnx.save(smaller(teacher), tmp_path / "small.onnx")
    data = write_data(tmp_path / "d.npz", teacher, 44)
    command = [sys.executable, "-m", "onnx_igpc", "finetune", str(tmp_path / "small.onnx"), "-q"]
    command += ["--teacher", str(tmp_path / "teacher.onnx"), "--data", str(data), "--lr", "0.01"]
    command += ["--epochs", "12", "--batch-size", "4", "-o", str(tmp_path / "o.onnx")]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    checkpoint = checkpoint_path(tmp_path / "o.onnx")
    try:
        deadline = time.monotonic() + 60
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    refused = CliRunner().invoke(main, command[3:])
    assert refused.exit_code == 2
    assert "is left of a run that was stopped: --resume goes on with it" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o.onnx").exists()
    finished = CliRunner().invoke(main, [*command[3:], "--resume"])
    assert finished.exit_code == 0, finished.output
    whole = CliRunner().invoke(main, [*command[3:-1], str(tmp_path / "whole.onnx")])
    assert whole.exit_code == 0, whole.output
    graphs = [onnx.load(tmp_path / f"{name}.onnx").graph for name in ("o", "whole")]
    assert graphs[0] == graphs[1]


class TestRefusals:
    def test_nothing_to_resume(self, case: Case) -> None:
        with pytest.raises(UsageError, match="nothing to resume"):
            case.run("o.onnx", resume=True)

    def test_other_settings(self, case: Case) -> None:
        with pytest.raises(RunInterruptedError):
            case.run("o.onnx", (1, 1))
        with pytest.raises(UsageError, match="is of a run with batch_size 8, not 16"):
            finetune(
                case.small,
                teacher=case.teacher,
                data=case.data,
                output=case.folder / "o.onnx",
                recipe=short(epochs=4, augment=("shift=1",)),
                run=Run(resume=True),
            )

    @pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x80\x04K\x01."])
    def test_a_damaged_checkpoint(self, case: Case, content: bytes) -> None:
        checkpoint_path(case.folder / "o.onnx").write_bytes(content)
        with pytest.raises(ModelError, match="is not a safetensors file"):
            case.run("o.onnx", resume=True)

    def test_tensors_that_are_no_checkpoint(self, case: Case) -> None:
        write_tensors(checkpoint_path(case.folder / "o.onnx"), {"a": torch.zeros(2)})
        with pytest.raises(ModelError, match="is not a checkpoint"):
            case.run("o.onnx", resume=True)

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"version": 1}, "was written by another release"),
            ({"judged": []}, "is not a checkpoint"),
            ({"best_epoch": 2}, "is not a checkpoint"),
        ],
    )
    def test_a_state_that_cannot_be(self, case: Case, changes: dict[str, Any], told: str) -> None:
        with pytest.raises(RunInterruptedError):
            case.run("o.onnx", (2, 1))
        path = checkpoint_path(case.folder / "o.onnx")
        tensors, header = read_tensors(path)
        run = json.loads(header["onnx_igpc.run"]) | changes
        write_tensors(path, tensors, {"onnx_igpc.run": json.dumps(run)})
        with pytest.raises(ModelError, match=told):
            case.run("o.onnx", resume=True)


def test_divergence_leaves_the_checkpoint_of_the_last_good_epoch(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small in the first epoch of 5 steps, far too large after it.
    monkeypatch.setattr(
        "onnx_igpc.torch_bridge.training.loop.learning_rate",
        lambda recipe, step, steps: 1e-3 if step < 5 else 1e30,
    )
    with pytest.raises(CheckFailedError, match=r"epoch 2: .* is from the end of epoch 1") as caught:
        case.run("o.onnx")
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert not (case.folder / "o.onnx").exists()
    tensors, header = read_tensors(checkpoint_path(case.folder / "o.onnx"))
    assert json.loads(header["onnx_igpc.run"])["epoch"] == 1
    assert all(t.isfinite().all() for n, t in tensors.items() if n.startswith("model/"))
