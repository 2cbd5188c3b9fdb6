"""Promises: read, refused, and when they hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_igpc.errors import UsageError
from onnx_igpc.evaluation.damage import wilson_interval
from onnx_igpc.planning.promise import Promise
from onnx_igpc.planning.sensitivity import Damage
from onnx_igpc.report.sections import DamageReport


@pytest.mark.parametrize(
    ("text", "kind", "bound"),
    [
        ("agreement=95%", "agreement", 0.95),
        (" agreement = 0.9 ", "agreement", 0.9),
        ("output=0.05", "output", 0.05),
        ("accuracy=-1", "accuracy", -0.01),
        ("accuracy=0", "accuracy", 0.0),
    ],
)
def test_what_is_read(text: str, kind: str, bound: float) -> None:
    promise = Promise.parse(text)
    assert promise.kind == kind
    assert promise.bound == pytest.approx(bound)
    assert Promise.parse(str(promise)) == promise


@pytest.mark.parametrize(
    "text",
    [
        "",
        "agreement",
        "agreement=",
        "agreement=x",
        "agreement=100%",
        "agreement=0%",
        "agreement=95",
        "agreement=-5%",
        "output=0",
        "output=-1",
        "accuracy=1",
        "accuracy=-101",
        "speed=3",
        "output=1.2.3",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="`keep`"):
        Promise.parse(text)


def test_a_slip_of_the_pen_is_named() -> None:
    with pytest.raises(UsageError, match="agreement"):
        Promise.parse("agrement=95%")


@given(st.floats(0.01, 0.99), st.integers(1, 3000))
def test_the_fewest_samples_show_it_if_nothing_is_damaged(bound: float, samples: int) -> None:
    needed = Promise("agreement", bound).fewest_samples()
    shown = wilson_interval(1.0, samples)[0] >= bound - 1e-12
    assert shown == (samples >= needed) or abs(wilson_interval(1.0, samples)[0] - bound) < 1e-9


def test_agreement_holds_at_the_lower_end_of_its_interval() -> None:
    promise = Promise.parse("agreement=90%")
    assert promise.holds(DamageReport(agreement=0.95, interval=(0.9, 0.98), samples=100))
    assert not promise.holds(DamageReport(agreement=0.95, interval=(0.89, 0.98), samples=100))
    assert promise.likely(Damage(0.1, 100, 97), 100)
    assert not promise.likely(Damage(0.1, 100, 97), 30)
    assert not promise.likely(Damage(0.1, 100, None), 100)


def test_the_other_kinds_hold_by_their_own_measure() -> None:
    output = Promise.parse("output=0.1")
    assert output.holds(DamageReport(relative_error=0.1, output="y", samples=9))
    assert not output.holds(DamageReport(relative_error=0.11, output="y", samples=9))
    assert output.likely(Damage(0.0099, 9), 9)
    assert not output.likely(Damage(0.0121, 9), 9)
    accuracy = Promise.parse("accuracy=-1")
    assert accuracy.labelled
    assert accuracy.holds(DamageReport(accuracy_change=(0.0, -0.01, 0.01), samples=9))
    assert not accuracy.holds(DamageReport(accuracy_change=(0.0, -0.02, 0.02), samples=9))


@pytest.mark.parametrize("text", ["agreement=95%", "output=0.05", "accuracy=-1"])
def test_another_kind_of_model_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="`keep`"):
        Promise.parse(text).holds(DamageReport(samples=9))
