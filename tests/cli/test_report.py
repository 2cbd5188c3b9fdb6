"""Report files of the commands: a page or JSON by suffix, each with its command's part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnx_igpc.report.files import compared_report, subject
from onnx_igpc.report.tree import RewriteReport
from tests.cli.test_compress import DIGITS, HELD_OUT, assert_refused, run


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("small") / "small.onnx"
    result = run("compress", DIGITS, "-o", output, "--ch", 32, "-q")
    assert result.exit_code == 0, result.output
    return output


def read(path: Path) -> RewriteReport:
    return RewriteReport.from_json(path.read_text())


def test_compress_writes_a_page_with_pictures_of_both_weights(tmp_path: Path) -> None:
    page, output = tmp_path / "r.HTML", tmp_path / "small.onnx"
    result = run("compress", DIGITS, "-o", output, "--ch", 32, "--report", page)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "<title>small.onnx: onnx-igpc report</title>" in text
    assert text.count('<img src="data:image/png') == 2 * 8


def test_a_dry_run_has_its_page_as_well(tmp_path: Path) -> None:
    result = run("compress", DIGITS, "--dry-run", "--ch", 32, "--report", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    assert "<title>digits_net.onnx: onnx-igpc report</title>" in (tmp_path / "r.html").read_text()


def test_verify_adds_its_part_to_the_report_that_the_model_carries(
    tmp_path: Path, small: Path
) -> None:
    for name in ("v.json", "v.html"):
        result = run("verify", DIGITS, small, "--data", HELD_OUT, "--report", tmp_path / name)
        assert result.exit_code == 0, result.output
    report = read(tmp_path / "v.json")
    assert report.verify is not None
    assert report.verify.classifier is not None
    assert report.verify.classifier.samples == 360
    assert len(report.rewritten) == 8
    assert set(report.rewritten[0].thumbnails or {}) == {"W", "M"}
    sizes = report.totals.file_bytes
    assert (sizes.before, sizes.after) == (DIGITS.stat().st_size, small.stat().st_size)
    assert "Top-1 accuracy" in (tmp_path / "v.html").read_text()


def test_a_verification_that_fails_has_its_report(tmp_path: Path, small: Path) -> None:
    result = run("verify", DIGITS, small, "--atol", 1e-9, "--report", tmp_path / "v.html")
    assert result.exit_code == 1
    assert "what was asked for did not hold" in (tmp_path / "v.html").read_text()


def test_models_without_a_report_are_counted(tmp_path: Path) -> None:
    result = run("verify", DIGITS, DIGITS, "--report", tmp_path / "v.json")
    assert result.exit_code == 0, result.output
    totals = read(tmp_path / "v.json").totals
    assert totals.parameters.before == totals.parameters.after == 178_826
    assert totals.macs.ratio == 1.0


def test_benchmark_adds_every_round(tmp_path: Path, small: Path) -> None:
    options = ("--rounds", 3, "--threads", 1, "--no-limit")
    for name in ("b.json", "b.html"):
        result = run("benchmark", DIGITS, small, *options, "--report", tmp_path / name)
        assert result.exit_code == 0, result.output
    report = read(tmp_path / "b.json")
    assert report.benchmark is not None
    (race,) = report.benchmark.races
    assert [len(timing.rounds_ms) for timing in race.timings] == [3, 3]
    for timing in race.timings:
        assert np.median(timing.rounds_ms) == pytest.approx(timing.median_ms, rel=1e-4)
    assert "Latency with batch 1, 1 thread" in (tmp_path / "b.html").read_text()


def test_a_race_is_about_the_last_model_that_carries_a_report(small: Path) -> None:
    assert subject([DIGITS, small, DIGITS]) == small
    assert subject([DIGITS, DIGITS]) == DIGITS
    assert subject([small]) == small


def test_the_size_before_is_only_that_of_a_model_before_any_rewrite(small: Path) -> None:
    assert compared_report(DIGITS, small).totals.file_bytes.before == DIGITS.stat().st_size
    assert compared_report(small, small).totals.file_bytes.before is None


def test_report_merges_what_other_commands_wrote(tmp_path: Path, small: Path) -> None:
    run("verify", DIGITS, small, "--report", tmp_path / "v.json", "-q")
    run(
        "compress",
        DIGITS,
        "-o",
        tmp_path / "s.onnx",
        "--ch",
        32,
        "--report",
        tmp_path / "c.json",
        "-q",
    )
    merge = ("--merge", tmp_path / "v.json", "--merge", tmp_path / "c.json")
    result = run(
        *("report", small, *merge, "--html", tmp_path / "r.html", "--json", tmp_path / "r.json"),
    )
    assert result.exit_code == 0, result.output
    report = read(tmp_path / "r.json")
    assert report.verify is not None
    assert report.totals.file_bytes.before == DIGITS.stat().st_size
    assert (tmp_path / "r.html").read_text().count('<img src="data:') == 2 * 8


def test_report_without_the_original_says_where_w_is(tmp_path: Path, small: Path) -> None:
    page = tmp_path / "r.html"
    assert run("report", small, "--html", page, "-q").exit_code == 0
    assert page.read_text().count('<img src="data:') == 8
    assert "W is only in the original model" in page.read_text()
    assert run("report", small, "--html", page, "--original", DIGITS, "-q").exit_code == 0
    assert page.read_text().count('<img src="data:') == 2 * 8
    assert "W is only in the original model" not in page.read_text()


def test_a_page_on_stdout_is_nothing_but_the_page(small: Path) -> None:
    result = run("report", small, "--html", "-")
    assert result.stdout.startswith("<!doctype html>")
    assert result.stdout.strip().endswith("</html>")


def test_json_on_stdout_is_nothing_but_json(small: Path) -> None:
    result = run("verify", DIGITS, small, "--report", "-")
    assert json.loads(result.stdout)["verify"]["passed"]


class TestMistakes:
    def test_a_suffix_that_is_neither(self, tmp_path: Path, small: Path) -> None:
        page = tmp_path / "r.pdf"
        assert_refused(run("verify", DIGITS, small, "--report", page), ".html page or .json", page)
        result = run("compress", DIGITS, "-o", tmp_path / "o.onnx", "--report", page)
        assert_refused(result, ".html page or .json", page, tmp_path / "o.onnx")

    def test_a_report_of_another_model(self, tmp_path: Path, small: Path) -> None:
        other = read_other(tmp_path, small)
        assert_refused(run("report", small, "--merge", other), "of different models")

    def test_what_is_no_report(self, tmp_path: Path, small: Path) -> None:
        odd = tmp_path / "odd.json"
        assert_refused(run("report", small, "--merge", odd), "cannot be read")
        odd.write_text("[]")
        assert_refused(run("report", small, "--merge", odd), "odd.json: the report has version")
        odd.write_bytes(b"\xff")
        assert_refused(run("report", small, "--merge", odd), "cannot be read")

    def test_a_page_over_the_model_or_a_merged_report(self, tmp_path: Path, small: Path) -> None:
        assert_refused(run("report", small, "--html", small), "is the input itself")
        result = run("verify", DIGITS, small, "--report", small.parent)
        assert_refused(result, "it is a folder")


def read_other(folder: Path, small: Path) -> Path:
    """A report of a model with another site."""
    run("report", small, "--json", folder / "other.json", "-q")
    data = json.loads((folder / "other.json").read_text())
    data["sites"][0]["name"] = "another"
    (folder / "other.json").write_text(json.dumps(data))
    return folder / "other.json"
