"""Damage on held-out data: what is held out decides nothing, and no fit that it is measured by saw it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from onnx_igpc import compress
from onnx_igpc.calibration import plan_fits
from onnx_igpc.calibration.collect import collect_moments
from onnx_igpc.calibration.division import FOLDS, divide
from onnx_igpc.calibration.held_samples import HeldSamples
from onnx_igpc.calibration.options import Calibration
from onnx_igpc.calibration.site_fitter import SiteCalibrator
from onnx_igpc.cli import main
from onnx_igpc.compression import basis
from onnx_igpc.compression.pipeline import CompressResult
from onnx_igpc.evaluation.damage import measure_damage
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.planning.options import Budget, Published
from tests.calibration_graphs import ListData, images, residual_model, saved

SAMPLES = 40


def held_out_numbers(proto: onnx.ModelProto, x: np.ndarray) -> list[int]:
    with HeldSamples(ListData(proto, {"x": x}), model_inputs(proto)) as held:
        held_out = divide(held).held_out
    assert held_out is not None
    return held_out.numbers


def test_what_is_held_out_decides_nothing_but_the_last_fit() -> None:
    proto, x = residual_model(16, blocks=1), images(SAMPLES, 16)
    poisoned = x.copy()
    numbers = held_out_numbers(proto, x)
    poisoned[numbers] = 7 * images(len(numbers), 16, seed=5) - 3

    def run(values: np.ndarray) -> CompressResult:
        data = Calibration(ListData(proto, {"x": values}))
        return compress(proto, Budget("pointwise-parameters=50%"), calibration=data)

    clean, other = run(x), run(poisoned)
    for first, second in zip(clean.report.sites, other.report.sites, strict=True):
        assert first.layout == second.layout, first.name
        assert (first.status, first.reason) == (second.status, second.reason)
    used, again = clean.report.calibration, other.report.calibration
    assert used is not None
    assert again is not None
    assert used.chosen_by
    assert (used.fit, used.chosen_by) == (again.fit, again.chosen_by)
    assert len(numbers) == SAMPLES // 2
    assert used.held_out == again.held_out == SAMPLES, "the parts are exchanged as well"
    assert clean.report.selection is not None
    assert clean.report.selection.tried
    assert clean.report.selection == other.report.selection
    # The last fit is to all of the data, and the figure is of what was held out.
    assert clean.report.damage != other.report.damage
    assert clean.model.SerializeToString() != other.model.SerializeToString()


def assert_moments_of(model: Any, data: Any, options: dict[str, Any]) -> None:
    """The moments that a fit is given are those of the samples that it is given."""
    known = options["moments"]()
    for tap, expected in collect_moments(model, list(known), data).items():
        assert known[tap].count == expected.count
        np.testing.assert_allclose(known[tap].mean, expected.mean, rtol=1e-5, atol=1e-5)


def test_each_fold_is_measured_by_weights_that_were_fitted_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proto, x = residual_model(8, blocks=1), images(SAMPLES, 8)
    held_out, everything = set(held_out_numbers(proto, x)), set(range(SAMPLES))
    chosen_by: list[set[int]] = [set(), set()]
    steps: list[tuple[str, set[int]]] = []

    def read(data: Any) -> set[int]:
        """The samples that the data really holds."""
        rows = [row for batch in data for row in batch.feeds["x"][: batch.count]]
        return {int(np.flatnonzero([np.array_equal(row, each) for each in x])[0]) for row in rows}

    def while_choosing(model: Any, sites: Any, data: Any, **options: Any) -> SiteCalibrator:
        part = sum(kind == "measured" for kind, _ in steps) // FOLDS
        chosen_by[part] |= read(data)
        assert_moments_of(model, data, options)
        return SiteCalibrator(model, sites, data, **options)

    def for_weights(model: Any, sites: Any, data: Any, **options: Any) -> SiteCalibrator:
        steps.append(("fitted", read(data)))
        assert_moments_of(model, data, options)
        return SiteCalibrator(model, sites, data, **options)

    def measured(original: Any, rewritten: Any, data: Any, **options: Any) -> Any:
        steps.append(("measured", read(data)))
        return measure_damage(original, rewritten, data, **options)

    monkeypatch.setattr(plan_fits, "SiteCalibrator", while_choosing)
    monkeypatch.setattr(basis, "SiteCalibrator", for_weights)
    monkeypatch.setattr(basis, "measure_damage", measured)
    data = Calibration(ListData(proto, {"x": x}))
    report = compress(proto, Published(4), calibration=data).report

    assert chosen_by == [everything - held_out, held_out]
    assert steps.pop() == ("fitted", everything), "the weights that are written"
    assert [kind for kind, _ in steps] == ["fitted", "measured"] * 2 * FOLDS
    fits, folds = [each for _, each in steps[::2]], [each for _, each in steps[1::2]]
    for number, (fitted, fold) in enumerate(zip(fits, folds, strict=True)):
        assert fitted == everything - fold
        assert not fold & chosen_by[number // FOLDS]
    assert sorted(number for fold in folds for number in fold) == sorted(everything)
    assert report.damage is not None
    assert report.damage.samples == SAMPLES
    assert report.damage.fitted is not None
    assert report.damage.fitted.samples == SAMPLES


def run_holdout(folder: Path, samples: int, *arguments: object) -> tuple[Result, dict[str, Any]]:
    """compress on so many samples, and the report that it wrote."""
    onnx.save(residual_model(8, blocks=1), folder / "model.onnx")
    data, report = saved(folder, x=images(samples, 8)), folder / "report.json"
    command = ["compress", folder / "model.onnx", "-o", folder / "small.onnx", "--ch", 4]
    command += ["--calibration", data, "--report", report, *arguments]
    result = CliRunner().invoke(main, [str(each) for each in command])
    return result, json.loads(report.read_text()) if report.exists() else {}


def test_holdout_holds_out_the_share_that_was_asked_for(tmp_path: Path) -> None:
    result, report = run_holdout(tmp_path, 30, "--holdout", 0.5)
    assert result.exit_code == 0, result.output
    assert report["damage"]["samples"] == report["calibration"]["held_out"] == 15
    assert report["damage"]["fitted"]["samples"] == report["calibration"]["samples"] == 30
    assert "15 of 30 samples held out" in result.stdout


def test_holdout_0_measures_nothing_and_says_so(tmp_path: Path) -> None:
    result, report = run_holdout(tmp_path, 30, "--holdout", 0)
    assert result.exit_code == 0, result.output
    assert report["calibration"]["held_out"] == report["damage"]["samples"] == 0
    assert report["damage"]["unknown"]
    assert not {"agreement", "kl", "interval"} & set(report["damage"])
    assert report["damage"]["fitted"]["samples"] == 30
    told = " ".join(result.stdout.split())
    assert f"damage: {report['damage']['unknown']}" in told
    assert "on the fitted data, which flatters, " in told
    assert "none of 30 samples held out" in told


def test_too_few_samples_to_hold_any_out_are_told(tmp_path: Path) -> None:
    result, report = run_holdout(tmp_path, 12)
    assert result.exit_code == 0, result.output
    assert report["damage"]["unknown"].startswith("12 samples are too few to hold some of them out")
    assert report["damage"]["fitted"]["samples"] == 12
    told = " ".join(result.stdout.split())
    assert "damage: 12 samples are too few" in told
    assert "top-1 agreement with the original" not in told


@pytest.mark.parametrize("share", ["1", "-0.1", "nan"])
def test_a_share_that_is_none_is_refused_in_one_line(share: str, tmp_path: Path) -> None:
    result, _ = run_holdout(tmp_path, 30, "--holdout", share)
    assert result.exit_code == 2
    assert f"--holdout must lie between 0 and 1, not {share}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "small.onnx").exists()


def test_progress_goes_on_and_ends_near_the_end() -> None:
    told: list[tuple[int, int]] = []
    proto = residual_model(8, blocks=1)
    compress(
        proto,
        Budget("pointwise-parameters=60%"),
        calibration=Calibration(ListData(proto, {"x": images(SAMPLES, 8)})),
        progress=lambda done, total, what: told.append((done, total)),
    )
    assert {total for _, total in told} == {1000}
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert done[0] == 0
    assert any(400 < each < 600 for each in done), "the second half, with the parts exchanged"
    assert done[-1] >= 940
