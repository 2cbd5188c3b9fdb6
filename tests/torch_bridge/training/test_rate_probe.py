"""The learning rate is confirmed before a run, which is then the one that this rate alone would make."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import onnx_igpc
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.errors import UsageError
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.sections import FinetuneReport
from onnx_igpc.torch_bridge.training import rate_probe
from onnx_igpc.torch_bridge.training.distributed import World
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.log import Progress
from onnx_igpc.torch_bridge.training.loop import RunInterruptedError, snapshot
from onnx_igpc.torch_bridge.training.options import Run
from onnx_igpc.torch_bridge.training.preparation import Job, prepare
from onnx_igpc.torch_bridge.training.rate_probe import RateProbe, best_rate, plan_probe, try_rates
from onnx_igpc.torch_bridge.training.recipe import Recipe
from tests.torch_bridge.training_cases import write_data

SAMPLES = 160  # 120 are trained on, of which 30 judge the rates
RECIPE = Recipe(base="few", batch_size=8, epochs=4)


@pytest.fixture(autouse=True)
def short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of the 60 of the runs here."""
    monkeypatch.setattr(rate_probe, "_FEWEST_STEPS", 3)


@pytest.fixture
def data(tmp_path: Path, teacher: onnx.ModelProto) -> Path:
    return write_data(tmp_path / "d.npz", teacher, SAMPLES, labels=False)


@pytest.fixture
def models(compressed: onnx.ModelProto, teacher: onnx.ModelProto) -> dict[str, onnx.ModelProto]:
    """With Dropout, which reads the random state."""
    made = {}
    for name, given in (("compressed", compressed), ("teacher", teacher)):
        model = onnx.ModelProto()
        model.CopyFrom(given)
        head = next(node for node in model.graph.node if node.op_type == "MatMul")
        dropout = onnx.helper.make_node("Dropout", [head.input[0]], ["dropped"], "dropout")
        model.graph.node.insert(len(model.graph.node) - 1, dropout)
        head.input[0] = "dropped"
        made[name] = model
    return made


def prepared(models: dict[str, onnx.ModelProto], data: Path, recipe: Recipe = RECIPE) -> Job:
    world = World(0, 1, torch.device("cpu"))
    digest = read_digest(models["compressed"])
    sources = (Dataset(data), None)
    return prepare(*models.values(), digest, sources, recipe, world, None)


def told_of(model: onnx.ModelProto) -> FinetuneReport:
    digest = read_digest(model)
    assert digest is not None
    assert digest.finetune is not None
    return digest.finetune


def weights(model: onnx.ModelProto) -> bytes:
    return model.graph.SerializeToString(deterministic=True)


class TestRuns:
    def ruin(self, monkeypatch: pytest.MonkeyPatch, ruined: str) -> None:
        """Let one rate count as one that ruins the model."""
        monkeypatch.setattr(rate_probe, "_ruins", lambda _, rate: rate == ruined)

    @pytest.mark.parametrize("batch_norm", ["frozen", "train"])
    def test_a_run_is_the_one_of_the_rate_that_was_chosen(
        self,
        models: dict[str, onnx.ModelProto],
        data: Path,
        batch_norm: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.ruin(monkeypatch, "0.002")
        recipe = replace(RECIPE, batch_norm=batch_norm)
        lines: list[str] = []
        probed = finetune(
            **models, data=data, recipe=recipe, progress=lambda said: lines.extend(said.notes)
        )
        told = told_of(probed.model)
        assert told.rates is not None
        assert list(told.rates) == ["start", "0.002", "0.00067"]
        assert len(set(told.rates.values())) == 3
        chosen = "0.00067"
        assert told.recipe["lr"] == float(chosen)
        (note,) = (note for note in told.notes if note.startswith("learning rate"))
        assert lines.count(note) == 1
        for rate, loss in told.rates.items():
            assert f"{rate} ({loss:.4g})" in note
        assert note.startswith(f"learning rate {chosen} was taken")
        given = finetune(**models, data=data, recipe=replace(recipe, lr=float(chosen)))
        assert weights(given.model) == weights(probed.model)
        assert told_of(given.model).rates is None
        assert not any("learning rate" in note for note in told_of(given.model).notes)
        assert [row.portable() for row in given.history] == [
            row.portable() for row in probed.history
        ]
        moved = {row.val_judged for row in given.history}
        assert len(moved) > 1, "the runs trained"

    def test_a_run_for_int8_tries_its_rates_in_int8(
        self, compressed: onnx.ModelProto, teacher: onnx.ModelProto, data: Path
    ) -> None:
        in_float = finetune(compressed, data, teacher=teacher, recipe=RECIPE)
        recipe = replace(RECIPE, precision="int8")
        probed = onnx_igpc.finetune(compressed, data, teacher=teacher, recipe=recipe)
        told = told_of(probed.model)
        assert told.rates is not None
        assert told.rates != told_of(in_float.model).rates
        chosen = replace(recipe, lr=told.recipe["lr"])  # type: ignore[arg-type]
        given = onnx_igpc.finetune(compressed, data, teacher=teacher, recipe=chosen)
        assert weights(given.model) == weights(probed.model)

    def test_a_resumed_run_keeps_its_rate(
        self,
        tmp_path: Path,
        models: dict[str, onnx.ModelProto],
        data: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("onnx_igpc.torch_bridge.training.loop._REPORT_SECONDS", 0.0)

        def run(name: str, recipe: Recipe = RECIPE, **options: Any) -> Path:
            output = tmp_path / name
            finetune(**models, data=data, recipe=recipe, output=output, **options)
            return output

        self.ruin(monkeypatch, "0.002")
        whole = run("whole.onnx")
        with pytest.raises(RunInterruptedError):
            run("parts.onnx", progress=stop_in_the_second_epoch)
        with pytest.raises(UsageError, match="is of a run with rates"):
            run("parts.onnx", replace(RECIPE, lr=0.002), run=Run(resume=True))

        def refuse(*_: object) -> None:
            raise AssertionError("it is tried again")

        monkeypatch.setattr(rate_probe, "_tried", refuse)
        parts = run("parts.onnx", run=Run(resume=True))
        models_written = [onnx.load(path) for path in (whole, parts)]
        assert weights(models_written[0]) == weights(models_written[1])
        told = [told_of(model) for model in models_written]
        assert told[0] == told[1]

    def test_images_that_judge_the_run_do_not_choose_its_rate(
        self,
        tmp_path: Path,
        models: dict[str, onnx.ModelProto],
        teacher: onnx.ModelProto,
        data: Path,
    ) -> None:
        judged = [write_data(tmp_path / f"{n}.npz", teacher, 40, seed=n) for n in (1, 2)]
        told = [
            told_of(finetune(**models, data=data, val=val, recipe=RECIPE).model) for val in judged
        ]
        assert told[0].rates
        assert told[0].rates == told[1].rates
        assert told[0].judged != told[1].judged


def stop_in_the_second_epoch(progress: Progress) -> None:
    if (progress.epoch, progress.step) == (2, 4) and progress.row is None:
        os.kill(os.getpid(), signal.SIGTERM)


class TestProbe:
    def test_nothing_is_left_of_it(self, models: dict[str, onnx.ModelProto], data: Path) -> None:
        job = prepared(models, data, replace(RECIPE, batch_norm="train"))
        before = snapshot(job.networks.student)
        probe = plan_probe(job, RECIPE)
        tried = try_rates(job, probe)
        assert list(tried) == ["start", "0.002"]
        after = snapshot(job.networks.student)
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert torch.equal(value, after[name]), name
        assert all(each.grad is None for each in job.networks.student.parameters())
        assert not job.networks.student.training
        assert not job.optimizer.state
        assert try_rates(job, probe) == tried

    def test_samples_that_judge_it_are_not_trained_on(
        self, models: dict[str, onnx.ModelProto], data: Path
    ) -> None:
        job = prepared(models, data)
        trained, judged = rate_probe._parts(job)
        assert judged is not None
        seen = [{part.number(index) for index in range(part.size)} for part in (trained, judged)]
        assert [len(each) for each in seen] == [90, 30]
        assert seen[0] | seen[1] == set(range(120)), "places in the training data"
        assert job.data.size + job.val.data.size == SAMPLES

    def test_a_rate_that_diverges_is_not_taken(
        self, models: dict[str, onnx.ModelProto], data: Path
    ) -> None:
        job = prepared(models, data)
        probe = RateProbe(rates=(1e30, 3.0, 0.002, 0.001), steps=3)
        tried = try_rates(job, probe)
        assert list(tried) == ["start", "1e+30", "3", "0.002"], "the rest is not tried"
        start, lost, large, small = tried.values()
        assert lost is None
        assert start is not None
        assert large is not None
        assert small is not None
        assert large > 2 * start + 0.1 > small
        assert best_rate(tried, 0.5) == 0.002
        assert "1e+30 (diverged), 3 (" in probe.note(tried, 0.002)[0]
        assert best_rate({"start": 1.0, "0.2": None, "0.1": 9.0}, 0.5) == 0.1
        assert best_rate({}, 0.5) == 0.5


class TestWhere:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({}, None),
            ({"lr": 0.002}, None),
            ({"base": "many"}, None),
            ({"epochs": 1}, "15 steps are too few to spare some of them, 60 are not"),
            ({"batch_size": 120}, "4 steps are too few"),
            ({"batch_size": 112, "epochs": 80}, "120 training samples leave too few"),
            ({"hold_out": 0.5}, "80 training samples leave too few"),
        ],
    )
    def test_it_is_left_out_with_a_reason(
        self,
        models: dict[str, onnx.ModelProto],
        data: Path,
        changes: dict[str, Any],
        reason: str | None,
    ) -> None:
        recipe = replace(RECIPE, **changes)
        if "hold_out" in changes:
            recipe = replace(recipe, epochs=20)
        job = prepared(models, data, recipe)
        probe = plan_probe(job, recipe)
        assert bool(probe.rates) == (not changes)
        if reason is None:
            assert probe.reason is None
        else:
            assert probe.reason is not None
            assert reason in probe.reason
            assert "was not confirmed" in probe.note({}, 0.002)[0]
        if not probe.rates:
            assert try_rates(job, probe) == {}
