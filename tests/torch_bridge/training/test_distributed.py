"""Two processes under torchrun do what one does with the same batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_igpc.errors import UsageError
from onnx_igpc.report.digest import read_digest
from onnx_igpc.torch_bridge.training import rate_probe
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.recipe import Recipe
from onnx_igpc.torch_bridge.training.sampling import BatchPlan
from tests.torch_bridge.training_cases import arrays_of, classifier, short, smaller, write_data

# BatchNormalization over a part of the batch is something else than over the whole: it is left out.
OPTIONS = ["--epochs", "2", "--batch-size", "16", "--lr", "0.01", "--batch-norm", "frozen"]
SCRIPT = """
import sys
from torch.distributed import get_rank, init_process_group
from onnx_igpc.cli import main
import onnx_igpc.torch_bridge.training.finetune as home

run = home.finetune
def spy(*arguments, **options):
    result = run(*arguments, **options)
    with open(f"{sys.argv[0]}.{result.leads}", "wb") as file:
        file.write(result.model.graph.SerializeToString(deterministic=True))
    return result
home.finetune = spy
main()
"""


def run_two(folder: Path, code: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """The command line in two processes, each of which keeps its model for comparison."""
    script = folder / "spy.py"
    script.write_text(code)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *launch, str(script), *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(("base", "int8"), [("many", False), ("few", False), ("few", True)])
def test_two_processes_agree_with_each_other_and_with_one(
    tmp_path: Path, base: str, int8: bool
) -> None:
    teacher = classifier()
    small = smaller(teacher)
    onnx.save(teacher, tmp_path / "teacher.onnx")
    onnx.save(small, tmp_path / "small.onnx")
    data = write_data(tmp_path / "d.npz", teacher, 50)
    files = [str(tmp_path / name) for name in ("small.onnx", "teacher.onnx", "two.onnx")]
    command = ["finetune", files[0], "--teacher", files[1], "-o", files[2], *OPTIONS]
    command += ["--recipe", base, *(["--precision", "int8"] if int8 else [])]
    done = run_two(tmp_path, SCRIPT, [*command, "--data", str(data), "--val", str(data)])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 2/2") == 1, "one process speaks"
    graphs = [(tmp_path / f"spy.py.{leads}").read_bytes() for leads in (True, False)]
    assert graphs[0] == graphs[1], "both processes have the same weights"
    if int8:
        return  # a value that is rounded the other way is a whole step apart
    recipe = short(base=base, epochs=2, batch_norm="frozen")
    one = finetune(small, teacher=teacher, data=data, val=data, recipe=recipe)
    ours, theirs = arrays_of(onnx.load(tmp_path / "two.onnx")), arrays_of(one.model)
    before = arrays_of(small)
    for name, value in theirs.items():
        if value.dtype == np.float32 and not name.endswith(("_mean", "_var")):
            moved = np.abs(value - before[name]).max()
            if base == "few" and name.startswith(("head", "stem")):
                assert np.array_equal(ours[name], before[name])
                continue
            assert np.abs(ours[name] - value).max() < 1e-3 * moved, name


def test_two_processes_take_the_same_rate_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = classifier()
    small = smaller(teacher)
    onnx.save(teacher, tmp_path / "teacher.onnx")
    onnx.save(small, tmp_path / "small.onnx")
    data = write_data(tmp_path / "d.npz", teacher, 160, labels=False)
    code = SCRIPT.replace(
        "run = ", f"import {rate_probe.__name__} as probe\nprobe._FEWEST_STEPS = 3\nrun = ", 1
    )
    files = [str(tmp_path / name) for name in ("small.onnx", "teacher.onnx", "two.onnx")]
    command = ["finetune", files[0], "--teacher", files[1], "-o", files[2], "--data", str(data)]
    done = run_two(tmp_path, code, [*command, "--epochs", "20"])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("learning rate") == 1
    graphs = [(tmp_path / f"spy.py.{leads}").read_bytes() for leads in (True, False)]
    assert graphs[0] == graphs[1], "both processes took the same rate"
    monkeypatch.setattr(rate_probe, "_FEWEST_STEPS", 3)
    one = finetune(small, data, teacher=teacher, recipe=Recipe(epochs=20)).report.finetune
    two = read_digest(onnx.load(files[2]))
    assert one is not None
    assert one.rates
    assert two is not None
    assert two.finetune is not None
    assert two.finetune.rates == pytest.approx(one.rates, rel=1e-3)
    assert two.finetune.recipe["lr"] == one.recipe["lr"]


class TestBatchPlan:
    def test_processes_share_out_the_batches_of_one(self) -> None:
        one = list(BatchPlan(50, 16, seed=3).batches(epoch=2))
        two = [list(BatchPlan(50, 16, 3, rank, 2).batches(2)) for rank in (0, 1)]
        assert [len(batch) for batch in one] == [16, 16, 16]
        for whole, *parts in zip(one, *two, strict=True):
            assert sorted(index for part in parts for index in part) == sorted(whole)
            assert [len(part) for part in parts] == [8, 8]

    def test_epochs_differ_and_repeat(self) -> None:
        plan = BatchPlan(20, 4, seed=0)
        assert list(plan.batches(0)) == list(plan.batches(0))
        assert list(plan.batches(0)) != list(plan.batches(1))
        assert list(plan.batches(1, start=3)) == list(plan.batches(1))[3:]

    def test_fewer_samples_than_a_batch(self) -> None:
        plan = BatchPlan(5, 64, seed=0)
        assert plan.steps == 1
        assert [sorted(batch) for batch in plan.batches(0)] == [[0, 1, 2, 3, 4]]

    def test_validation_covers_every_sample_once(self) -> None:
        plans = [BatchPlan(50, 8, 0, rank, 2) for rank in (0, 1)]
        seen = [index for plan in plans for batch in plan.in_order(11) for index in batch]
        assert sorted(seen) == list(range(11))

    def test_a_batch_that_cannot_be_shared(self) -> None:
        with pytest.raises(UsageError, match="cannot be shared evenly by 3 processes"):
            BatchPlan(50, 16, 0, 0, 3)
