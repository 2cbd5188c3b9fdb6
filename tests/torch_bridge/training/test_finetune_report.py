"""What the report of a fine-tuned model tells, warns of and takes back."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import onnx
import pytest
import torch

from onnx_igpc.report.damage import large_damage_warning
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.sections import DamageReport, JudgedReport, MeasuredOn
from onnx_igpc.report.tree import NO_DATA_WARNING, RANDOM_WARNING, RewriteReport
from onnx_igpc.report.typed_json import to_values
from onnx_igpc.torch_bridge.training.finetune import finetune
from onnx_igpc.torch_bridge.training.log import COLUMNS
from onnx_igpc.torch_bridge.training.output import no_gain, update_report, worse_than_before
from onnx_igpc.torch_bridge.training.preparation import Job
from onnx_igpc.torch_bridge.training.result import FinetuneResult
from onnx_igpc.torch_bridge.training.run_files import checkpoint_path
from tests.html_reports import finetune_report
from tests.torch_bridge.training_cases import classifier, short


class TestReport:
    def test_digest_and_log_tell_the_run(
        self, tmp_path: Path, compressed: onnx.ModelProto, teacher: onnx.ModelProto, data: Path
    ) -> None:
        output = tmp_path / "out.onnx"
        result = finetune(
            compressed, teacher=teacher, data=data, val=data, output=output, recipe=short()
        )
        digest = read_digest(onnx.load(output))
        assert digest is not None
        assert digest.finetune is not None
        assert digest.finetune.epochs == [row.portable() for row in result.history]
        assert digest.finetune.data.source == "train.npz"
        assert [row.epoch for row in result.history] == [1, 2, 3]
        assert digest.finetune.matched_sites == ["wide_node", "deep_node"]
        assert digest.finetune.check
        assert digest.finetune.check.relative < 1e-4
        assert digest.damage is not None
        assert digest.damage.agreement == result.history[-1].val_agreement
        assert not digest.warnings
        rows = list(csv.DictReader((tmp_path / "out.finetune.csv").open()))
        assert tuple(rows[0]) == COLUMNS
        assert [float(row["loss"]) for row in rows] == [row.loss for row in result.history]
        log = json.loads((tmp_path / "out.finetune.json").read_text())
        assert log["epochs"] == to_values(result.history)
        assert not checkpoint_path(output).exists()

    def test_the_same_run_gives_the_same_bytes(
        self, compressed: onnx.ModelProto, teacher: onnx.ModelProto, unlabelled: Path
    ) -> None:
        torch.manual_seed(5)
        state = torch.get_rng_state()
        first, again = (
            finetune(compressed, teacher=teacher, data=unlabelled, recipe=short()).model
            for _ in range(2)
        )
        assert first.SerializeToString() == again.SerializeToString()
        assert torch.equal(torch.get_rng_state(), state), "the caller's random state is its own"


def trained(before: dict[str, Any], after: dict[str, Any]) -> RewriteReport:
    """The report of a run of two epochs with that damage before and after."""
    run = replace(finetune_report(2), val_before=None, check=None)
    run.damage_before = DamageReport(samples=1, **before)
    return RewriteReport(finetune=run, damage=DamageReport(samples=1, **after))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            {"agreement": 0.28},
            {"agreement": 0.015},
            "agrees less with the original (1.5%, not 28.0%)",
        ),
        ({"agreement": 0.28}, {"agreement": 0.28}, None),
        ({"relative_error": 0.1}, {"relative_error": 0.25}, "(relative error 0.25, not 0.1)"),
        ({"relative_error": 0.1}, {"relative_error": 0.1}, None),
        ({"relative_error": None}, {"relative_error": 0.25}, None),
        ({"agreement": 0.28}, {"relative_error": 0.25}, None),
        ({"not_finite": 3}, {"agreement": 0.0}, None),
    ],
)
def test_what_training_made_worse_is_told(
    before: dict[str, Any], after: dict[str, Any], words: str | None
) -> None:
    report = trained(before, after)
    found = worse_than_before(report)
    assert found is None if words is None else words in str(found)


def test_the_summary_ends_with_what_is_to_be_known() -> None:
    report = trained({"agreement": 0.75}, {"agreement": 0.5})
    report.warnings = ["worse than before"]
    assert report.finetune is not None
    lines = FinetuneResult(classifier(), report, report.finetune.epochs).summary()
    assert lines == [
        "fine-tuned: loss 2 -> 1",
        "agreement with the original: 75.0% -> 50.0%",
        "warning: worse than before",
    ]


def test_another_run_takes_back_what_the_one_before_warned_of() -> None:
    report = trained({"agreement": 0.75}, {"agreement": 0.5})
    worse, damage = worse_than_before(report), report.damage
    large = large_damage_warning(damage)
    assert worse is not None
    assert large is not None
    other = f"not ours, but in the same words: {worse}"
    report.warnings = [large, NO_DATA_WARNING, RANDOM_WARNING, worse, other]
    report.notes = [*(each.note for each in MeasuredOn), "the damage was measured elsewhere"]
    val = SimpleNamespace(data=SimpleNamespace(preprocessing=None))
    run, job = finetune_report(1), SimpleNamespace(val=val)
    update_report(cast(Job, job), report, run, None, None, classifier())
    assert report.warnings == [other]
    assert report.notes == ["the damage was measured elsewhere"]
    assert report.damage is None
    assert report.finetune is run
    assert run.damage_before == damage


def test_a_run_without_gain_leaves_the_advice_to_train() -> None:
    damage = DamageReport(agreement=0.1, samples=3)
    large = str(large_damage_warning(damage))
    warnings = [large, NO_DATA_WARNING]
    report = RewriteReport(finetune=finetune_report(1), damage=damage, warnings=warnings)
    val = SimpleNamespace(data=SimpleNamespace(preprocessing=None))
    judged = JudgedReport(
        on="held-out",
        samples=3,
        before=1.0,
        after=1.0,
        least_after_training=2.0,
        epoch=0,
        gained=False,
    )
    for before in (1.0, 1.5):
        run = replace(finetune_report(1), judged=replace(judged, before=before))
        update_report(cast(Job, SimpleNamespace(val=val)), report, run, None, None, classifier())
        told = no_gain(run)
        assert told is not None
        assert f"was {before:.3g} before and at best 2 after" in told
        assert report.warnings == [large, NO_DATA_WARNING, told]
