"""Which promise so many images can show: by default the most, and a refusal that says what it would take."""

from __future__ import annotations

import pytest

from onnx_igpc.calibration.division import held_out_count
from onnx_igpc.compression.optimization.promises import (
    AGREEMENTS,
    best_agreement,
    images_for,
    images_to_show,
    most_differing,
    settle_promise,
)
from onnx_igpc.errors import UsageError
from onnx_igpc.evaluation.damage import wilson_interval
from onnx_igpc.planning.promise import Promise
from onnx_igpc.report.optimization import ImagesReport
from onnx_igpc.report.sections import DamageReport

CLASSES = DamageReport(samples=2, agreement=1.0, interval=(0.34, 1.0))
VALUES = DamageReport(samples=2, relative_error=0.0, output="boxes")


def of(total: int) -> ImagesReport:
    choose = held_out_count(total)
    return ImagesReport(source="images", total=total, fit=total - choose, choose=choose, state=0)


@pytest.mark.parametrize(
    ("total", "promise"),
    [
        (70, "agreement=80%"),
        (200, "agreement=90%"),
        (1000, "agreement=95%"),
        (3000, "agreement=98%"),
    ],
)
def test_the_default_is_the_most_that_can_be_shown(total: int, promise: str) -> None:
    settled = settle_promise(None, of(total), CLASSES, labelled=0)
    assert str(settled) == promise
    assert most_differing(settled, held_out_count(total)) >= 1


def test_values_are_promised_by_their_error() -> None:
    assert str(settle_promise(None, of(40), VALUES, labelled=0)) == "output=0.05"


def test_too_few_images_for_any_promise() -> None:
    with pytest.raises(UsageError, match="40 images are too few for any promise: give 70 or more"):
        settle_promise(None, of(40), CLASSES, labelled=0)


def test_a_promise_that_cannot_be_shown_is_refused_with_what_it_takes() -> None:
    said = (
        r"`keep` agreement=98% takes 1,000 images to be shown, here are 200: if all 100 that are held out "
        r"agree, that shows 96.3%; these can show agreement=90%"
    )
    with pytest.raises(UsageError, match=said):
        settle_promise("agreement=98%", of(200), CLASSES, labelled=0)
    assert str(settle_promise("agreement=96%", of(200), CLASSES, labelled=0)) == "agreement=96%"


def test_so_many_images_do_show_it() -> None:
    promise = Promise.parse("agreement=98%")
    held = held_out_count(images_to_show(promise))
    assert wilson_interval(1.0, held)[0] >= 0.98
    for agreement in AGREEMENTS:
        best = best_agreement(held_out_count(images_for(agreement)))
        assert best is not None
        assert best.bound >= agreement


def test_most_differing_is_the_last_number_that_holds() -> None:
    promise = Promise.parse("agreement=90%")
    most = most_differing(promise, 100)
    assert most == 4
    assert wilson_interval(0.96, 100)[0] >= 0.9 > wilson_interval(0.95, 100)[0]
    assert most_differing(Promise.parse("agreement=98%"), 100) == -1


def test_promises_of_another_kind_than_the_outputs_are_refused() -> None:
    with pytest.raises(UsageError, match="say output"):
        settle_promise("agreement=90%", of(200), VALUES, labelled=0)
    with pytest.raises(UsageError, match="takes labelled data: give `val`"):
        settle_promise("accuracy=-1", of(200), CLASSES, labelled=0)
    assert settle_promise("accuracy=-1", of(200), CLASSES, labelled=196).labelled
    with pytest.raises(UsageError, match="takes 196 labelled images to be shown, here are 15: "):
        settle_promise("accuracy=-1", of(200), CLASSES, labelled=15)
