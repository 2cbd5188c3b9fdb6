"""From where on damage is large, and what the reader is told to do."""

from __future__ import annotations

import pytest

from onnx_igpc.report.damage import (
    LEAST_AGREEMENT,
    MOST_ERROR,
    large_damage_warning,
    ordered_warnings,
    ruined,
)
from onnx_igpc.report.sections import DamageReport, LoweringReport
from onnx_igpc.report.tree import RewriteReport

FITTED = DamageReport(agreement=0.99, samples=160)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (None, None),
        (DamageReport(samples=40), None),
        (DamageReport(agreement=LEAST_AGREEMENT, samples=40), None),
        (DamageReport(relative_error=MOST_ERROR, output="y", samples=40), None),
        (DamageReport(agreement=0.03, samples=40), "agreement 3.0% on 40 samples:"),
        (
            DamageReport(agreement=0.03, samples=40, fitted=FITTED),
            "agreement 3.0% on 40 samples not used for the fit:",
        ),
        (
            DamageReport(relative_error=0.31, output="y", samples=40, fitted=FITTED),
            "relative error 0.31 of output y on 40 samples not used for the fit:",
        ),
        (DamageReport(samples=0, unknown="too few"), None),
        (DamageReport(samples=0, unknown="too few", fitted=FITTED), None),
        (
            DamageReport(
                samples=0, unknown="too few", fitted=DamageReport(agreement=0.5, samples=12)
            ),
            "agreement 50.0% on 12 samples that it was fitted to:",
        ),
    ],
)
def test_large_damage_is_told_with_its_figure_and_its_data(
    damage: DamageReport | None, said: str | None
) -> None:
    advice = " this model needs training (onnx-igpc finetune), or more data"
    assert large_damage_warning(damage) == (None if said is None else said + advice)


def test_large_damage_comes_first_and_once() -> None:
    damage = DamageReport(agreement=0.03, samples=40)
    large = large_damage_warning(damage)
    assert large is not None
    assert ordered_warnings(RewriteReport(warnings=["a"], damage=damage)) == [large, "a"]
    assert ordered_warnings(RewriteReport(warnings=["a", large], damage=damage)) == [large, "a"]
    assert ordered_warnings(RewriteReport(warnings=["a", "b", "a"])) == ["a", "b"]


def test_what_is_lowered_is_not_told_to_be_trained() -> None:
    damage = DamageReport(agreement=0.03, samples=40)
    before, after = large_damage_warning(damage), large_damage_warning(damage, lowered=True)
    assert before is not None
    assert after is not None
    assert "before it is lowered" in after
    said = LoweringReport(mode="auto", provider="cpu", batch=1, sites={})
    report = RewriteReport(warnings=[before, "a"], damage=damage, lowering=said)
    assert ordered_warnings(report) == [after, "a"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (DamageReport(samples=0, unknown="too few", fitted=FITTED), False),
        (DamageReport(samples=40), False),
        (DamageReport(agreement=0.4, samples=40), True),
        (DamageReport(agreement=0.4, interval=(0.26, 0.55), samples=40), False),
        (DamageReport(agreement=0.4, interval=(0.33, 0.47), samples=200), True),
        (DamageReport(relative_error=0.7, output="y", samples=40), False),
        (DamageReport(relative_error=0.75, output="y", samples=40), True),
    ],
)
def test_ruined_is_what_answers_otherwise_more_often_than_not(
    damage: DamageReport, expected: bool
) -> None:
    assert ruined(damage) == expected
