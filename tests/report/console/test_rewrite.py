"""Console views: what a person reads, in 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from onnx_igpc.report.console.rewrite import show_rewrite, show_verify, sparkline
from onnx_igpc.report.numbers import count_text, percent, shorten
from onnx_igpc.report.sections import CalibrationReport, DamageReport
from onnx_igpc.report.tree import Change, RewriteReport, SiteReport, StageReport
from tests.html_reports import finetune_report, verify_report


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


def held_out(agreement: float = 0.75) -> DamageReport:
    fitted = DamageReport(agreement=0.955, kl=0.1, samples=300)
    return DamageReport(
        agreement=agreement, interval=(0.657, 0.825), kl=0.42, samples=100, fitted=fitted
    )


def test_held_out_damage_has_its_interval_and_the_fitted_figure_beside_it() -> None:
    assert shown(RewriteReport(damage=held_out(0.9)), width=200).splitlines()[0] == (
        "damage: top-1 agreement with the original 90.0% (95% interval 65.7% to 82.5%), KL 0.42, "
        "on 100 samples left out of their fits and choices; on the fitted data 95.5%"
    )
    damage = DamageReport(
        relative_error=0.12,
        output="[b]",
        samples=40,
        fitted=DamageReport(relative_error=0.05, samples=100),
    )
    assert shown(RewriteReport(damage=damage), width=200).splitlines()[0] == (
        "damage: relative error 0.12 of output [b] on 40 samples left out of their fits and choices; on the "
        "fitted data 0.05"
    )


def test_unknown_damage_says_why_in_the_place_of_a_figure() -> None:
    damage = DamageReport(
        samples=0, unknown="12 are too few", fitted=DamageReport(agreement=0.99, samples=12)
    )
    first = shown(RewriteReport(damage=damage), width=200).splitlines()[0]
    assert first == "damage: 12 are too few; on the fitted data, which flatters, 99.0%"


def test_large_damage_is_the_first_line_and_said_once() -> None:
    report = RewriteReport(damage=held_out(0.03), warnings=["be careful"])
    said = (
        "warning: agreement 3.0% on 100 samples not used for the fit: this model needs training "
        "(onnx-igpc finetune), or more data"
    )
    assert shown(report, width=200).splitlines()[:2] == [said, "warning: be careful"]
    report.warnings.append(said.removeprefix("warning: "))
    text = shown(report, width=200)
    assert text.startswith(said)
    assert text.count(said) == 1


def test_the_fit_that_was_chosen_and_how_much_was_held_out() -> None:
    calibration = CalibrationReport(
        source="a", samples=300, skipped=[], sequential=True, without_data={}
    )
    report = RewriteReport(calibration=calibration)
    assert "fit:" not in shown(report)
    calibration.fit, calibration.held_out = "in sequence [x]", 100
    calibration.chosen_by = {"in sequence [x]": 0.1, "each by itself": 0.2}
    text = shown(report, width=200)
    assert "fit: in sequence [x] (best of 2 that were tried); 100 of 300 samples held out" in text
    calibration.chosen_by, calibration.held_out = None, 0
    assert "fit: in sequence [x]; none of 300 samples held out" in shown(report, width=200)


def test_the_rates_that_were_tried_stand_before_the_curves() -> None:
    run = replace(finetune_report(), rates={"0.1": 0.5, "0.3": 0.25, "0.9": None})
    run.recipe["lr"] = 0.3
    text = shown(RewriteReport(finetune=run))
    assert "learning rate 0.3, by losses when tried: 0.1 (0.5), 0.3 (0.25), 0.9 (diverged)" in text
    assert "learning rate" not in shown(RewriteReport(finetune=replace(run, rates=None)))


def test_verify_tells_the_divergence_where_it_is_known() -> None:
    def verified(kl: float | None) -> str:
        report, stream = verify_report(), io.StringIO()
        assert report.classifier is not None
        report = replace(report, classifier=replace(report.classifier, kl=kl))
        show_verify(Console(file=stream, width=200, highlight=False), report)
        return stream.getvalue()

    assert "on 360 samples (10 classes in logits), KL 0.0123\n" in verified(0.01234)
    assert "KL" not in verified(None)


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
