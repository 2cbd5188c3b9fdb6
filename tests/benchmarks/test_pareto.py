"""benchmarks/pareto.py: a small run of it, and which points lie on the front."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import onnx_igpc
from benchmarks.pareto import Row, front, main, table
from onnx_igpc.errors import CheckFailedError

SAMPLES = Path(__file__).parents[2] / "sample_models"
ONE = (1.0, 0.9, 1.1)
ROW = Row("dense", 8.0, ONE, ONE, (1.0, 0.99, 1.0), 0.9, 10**6, 4 * 10**6)


def test_points_that_others_beat_are_not_on_the_front() -> None:
    rows = [
        ROW,
        replace(ROW, name="int8", median_ms=4.0, agreement=(0.97, 0.9, 1.0)),
        replace(ROW, name="slower", median_ms=5.0, agreement=(0.96, 0.9, 1.0)),
        replace(ROW, name="as good", median_ms=4.0, agreement=(0.97, 0.9, 1.0)),
        replace(ROW, name="small", median_ms=2.0, agreement=(0.8, 0.7, 0.9)),
    ]
    assert [row.name for row in front(rows)] == ["dense", "int8", "as good", "small"]
    lines = table(rows, {"tiny": "cannot be reached"}).splitlines()
    assert lines[2].startswith(
        "| **dense** | 8.00 | 1.00 | 1.00 (0.90-1.10) | 100.0 % (99.0-100.0)"
    )
    assert [line.split("|")[1].strip() for line in lines[2:7]][1] == "slower"
    assert lines[-1] == "tiny: cannot be reached"


def test_without_labelled_images_the_fastest_alone_is_on_the_front() -> None:
    rows = [replace(ROW, agreement=None, top1=None), replace(ROW, median_ms=1.0, agreement=None)]
    assert front(rows) == rows[1:]
    assert "|  |" in table(rows, {})


def test_points_are_made_kept_and_raced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a published plan in the place of a budget, whose search would take long."""
    real = onnx_igpc.compress
    asked: list[tuple[str, str]] = []

    def compress(model: Path, plan: onnx_igpc.Budget, **options: object) -> object:
        lowering = options["lowering"]
        assert isinstance(lowering, onnx_igpc.Lowering)
        asked.append((plan.target, lowering.precision))
        if plan.target == "latency=1%":
            raise CheckFailedError("latency=1% cannot be reached")
        return real(model, onnx_igpc.Published(8))

    monkeypatch.setattr(onnx_igpc, "compress", compress)
    arguments = [str(SAMPLES / "digits_net.onnx"), "--rounds", "2", "--folder", str(tmp_path)]
    arguments += ["--calibration", str(SAMPLES / "digits_calibration.npz"), "--samples", "40"]
    arguments += ["--validation", str(SAMPLES / "digits_test.npz"), "--budget", "latency=70%"]
    arguments += [
        "--budget",
        "latency=1%",
        "--method",
        "minmax",
        "--also",
        f"again={SAMPLES / 'digits_net.onnx'}",
    ]
    said, written = tmp_path / "rows.json", tmp_path / "table.md"
    result = CliRunner().invoke(main, [*arguments, "--json", str(said), "--markdown", str(written)])
    assert result.exit_code == 0, result.output
    rows = json.loads(said.read_text())["rows"]
    by_float, by_int8 = "latency=70% by float32 times", "latency=70% by int8 times, int8"
    names = ["dense", "dense, int8", by_float, f"{by_float}, int8", by_int8, "again"]
    assert [row["name"] for row in rows] == names
    dense, int8, *_, again = rows
    assert dense["agreement"][0] == again["agreement"][0] == 1.0
    assert dense["top1"] == again["top1"] > 0.8
    assert int8["file_bytes"] < dense["file_bytes"]
    assert int8["over_int8"][0] == 1.0
    assert "latency=1% cannot be reached" in written.read_text()
    assert asked[:2] == [("latency=70%", "float32"), ("latency=70%", "int8")]
    kept = len(asked)
    assert CliRunner().invoke(main, arguments).exit_code == 0
    # What could not be made is tried again.
    assert len(asked) == kept + 2
