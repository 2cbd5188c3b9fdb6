"""Console views: what a person reads, in 80 columns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from onnx_igpc.report.console.rewrite import show_rewrite, sparkline
from onnx_igpc.report.numbers import count_text, percent, shorten
from onnx_igpc.report.sections import DamageReport
from onnx_igpc.report.tree import Change, RewriteReport, SiteReport, StageReport
from tests.html_reports import finetune_report


def shown(report: RewriteReport, width: int = 80, verbose: bool = False) -> str:
    stream = io.StringIO()
    show_rewrite(Console(file=stream, width=width, highlight=False), report, verbose=verbose)
    return stream.getvalue()


def site(name: str, before: int, after: int | None, reason: str | None = None) -> SiteReport:
    return SiteReport(
        name,
        192,
        192,
        "kept" if reason else "rewritten",
        reason,
        k=None if reason else StageReport(12, 16, 3072),
        l=None if reason else StageReport(12, 16, 3072),
        parameters=Change(before, after),
        macs=Change(before * 49, (after or 0) * 49),
        error=None if reason else 0.125,
    )


@pytest.mark.parametrize("width", [80, 100, 160])
def test_lines_fit_and_nothing_is_cut_but_names(width: int) -> None:
    name = "/features/features.12/block/0/" + "very_long_" * 8 + "/Conv"
    text = shown(RewriteReport(sites=[site(name, 36864, 6144)]), width)
    assert max(len(line) for line in text.splitlines()) <= width
    for part in ("192>192", "12x16", "6.14k", "16.7%", "0.125"):
        assert part in text
    [row] = [line for line in text.splitlines() if "192>192" in line]
    assert "/Conv  192>192" in row  # one line a site, and the end of its name in it


def test_warnings_and_damage_come_before_the_savings() -> None:
    report = RewriteReport(
        sites=[site("a", 36864, 6144)],
        warnings=["be careful"],
        damage=DamageReport(agreement=0.9067, samples=300),
    )
    text = shown(report)
    savings = text.index("6.14k")
    assert text.index("be careful") < savings
    assert text.index("agreement with the original 90.7% on 300 samples") < savings


def test_the_longest_gain_comes_first() -> None:
    text = shown(RewriteReport(sites=[site("small", 2000, 1000), site("large", 90000, 10000)]))
    assert text.index("large") < text.index("small")


def test_kept_sites_are_told_by_reason_and_by_name_when_asked() -> None:
    sites = [site(f"kept_{i}", 100, 100, "too small") for i in range(5)]
    text = shown(RewriteReport(sites=sites))
    assert "kept 5: too small (kept_0, kept_1, 3 more)" in text
    assert "kept_4" in shown(RewriteReport(sites=sites), verbose=True)


def test_markup_in_names_is_not_markup() -> None:
    text = shown(RewriteReport(sites=[site("[red]x[/red]", 36864, 6144)]))
    assert "[red]x[/red]" in text


def test_the_curves_of_a_training_run() -> None:
    text = shown(RewriteReport(finetune=finetune_report(epochs=4)))
    assert "loss █▃▂▁ 2 -> 0.5" in text
    assert "val accuracy" not in text


def test_sparklines_are_bounded_and_survive_constants() -> None:
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline([float(i) for i in range(500)])) == 40


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "?"), (7, "7"), (999, "999"), (1000, "1.00k"), (12345, "12.3k"), (999_600, "1.00M")],
)
def test_counts_have_three_digits(value: int | None, text: str) -> None:
    assert count_text(value) == text


def test_percent_and_shorten() -> None:
    assert percent(Change(200, 50)) == "25.0%"
    assert percent(Change(None, 50)) == ""
    assert shorten("short", 10) == "short"
    assert len(shorten("x" * 50, 20)) == 20
