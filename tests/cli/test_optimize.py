"""The optimize command as a user runs it: what it says, and what it refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_compress import CALIBRATION, DIGITS, assert_refused, run


@pytest.fixture
def few(tmp_path: Path) -> Path:
    held = np.load(CALIBRATION)
    np.savez(tmp_path / "few.npz", **{name: held[name][:70] for name in held.files})
    return tmp_path / "few.npz"


def test_the_verdict_stands_on_the_console(few: Path, tmp_path: Path) -> None:
    folder, report = tmp_path / "best", tmp_path / "report.json"
    words = ("optimize", DIGITS, "--data", few, "-o", folder, "--threads", 1, "--time", "1s")
    result = run(*words, "--json", report)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    heads = [line.partition(":")[0] for line in lines]
    assert heads[0] == "chosen"
    assert heads[1:5] in (
        ["latency", "agreement", "size", "next"],
        ["latency", "answers", "size", "next"],
    )
    assert lines[-1] == f"wrote {folder}: model.onnx, report.html, report.json, commands.sh"
    # A line for every step, and the command that repeats it.
    assert "$ onnx-igpc verify" in result.stderr
    assert "70 images: 35 to fit to, 35 held out; the promise is agreement=80%" in result.stderr
    assert json.loads(report.read_text())["limit_seconds"] == 1


def test_quiet_says_nothing(few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "best"
    result = run("optimize", DIGITS, "--data", few, "-o", folder, "--time", "1s", "-q")
    assert result.exit_code == 0, result.output
    assert result.output == ""
    assert (folder / "model.onnx").is_file()


def test_what_cannot_be_is_one_line(few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "best"
    start = ("optimize", DIGITS, "--data", few, "-o", folder)
    refused = {
        "--keep agreement=98% takes 1,000 images to be shown, here are 70": (
            "--keep=agreement=98%",
        ),
        "--keep accuracy=-1 takes labelled data: give --val": ("--keep=accuracy=-1",),
        "arrays are fed as they are, preprocessing is for images": ("--mean=1",),
        "no such file": ("--val", tmp_path / "nothing"),
    }
    for message, options in refused.items():
        assert_refused(run(*start, *options), message, folder, tmp_path / "best.work")
    (folder / "mine").mkdir(parents=True)
    assert_refused(run(*start), "it is there already, from another run")


@pytest.mark.parametrize("text", ["soon", "-1m", "", "10d"])
def test_a_time_that_is_none_is_refused(text: str, few: Path, tmp_path: Path) -> None:
    result = run("optimize", DIGITS, "--data", few, "-o", tmp_path / "o", "--time", text)
    assert result.exit_code == 2
    assert "is not a time: write 90s, 30m or 2h" in result.stderr


def test_what_is_stopped_says_how_to_go_on(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_igpc.compression.optimization.optimize.optimize", stopped)
    result = run("optimize", DIGITS, "--data", few, "-o", tmp_path / "best")
    assert result.exit_code == 130
    assert result.stderr == "stopped: the same command goes on from here\n"
