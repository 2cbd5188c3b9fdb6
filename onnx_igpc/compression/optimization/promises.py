"""Which promise so many images can show, said before any work is done."""

from __future__ import annotations

from onnx_igpc.calibration.division import held_out_count
from onnx_igpc.errors import UsageError
from onnx_igpc.evaluation.damage import change_interval, wilson_interval
from onnx_igpc.planning.promise import Promise
from onnx_igpc.report.optimization import ImagesReport
from onnx_igpc.report.sections import DamageReport

AGREEMENTS = (0.98, 0.95, 0.9, 0.8)
"""What is promised by default: the first of these that the held-out images can show."""
DEFAULT_OUTPUT = Promise("output", 0.05)
# A promise is worth making if models hold it that lose a third of what it lets them lose.
_LOST_OF_ALLOWED = 1 / 3
_TOTALS = (30, 50, 70, 100, 120, 150, 200, 300, 400, 500, 600, 800, 1000, 1200, 1500, 2000, 2500)


def settle_promise(
    asked: str | None, images: ImagesReport, itself: DamageReport, labelled: int
) -> Promise:
    """The promise to keep.

    Args:
        asked: as the user said it; ``None`` for the default.
        images: how many of them there are, and are held out.
        itself: the original compared with itself, which says what its damage is measured in.
        labelled: how many labelled samples there are to check by.

    Raises:
        UsageError: one that the model or so many images cannot show to hold.
    """
    if asked is None:
        if itself.agreement is None:
            return DEFAULT_OUTPUT
        best = best_agreement(images.choose)
        if best is None:
            raise UsageError(
                f"{images.total} images are too few for any promise: give "
                f"{images_for(AGREEMENTS[-1])} or more, 200 are better"
            )
        return best
    promise = Promise.parse(asked)
    if promise.labelled:
        if not labelled:
            raise UsageError(f"`keep` {promise} takes labelled data: give `val`")
        if promise.bound < 0 and labelled < (needed := _labels_to_show(promise.bound)):
            raise UsageError(
                f"`keep` {promise} takes {needed:,} labelled images to be shown, here are {labelled:,}: give more, or "
                "promise less"
            )
        return promise
    promise.holds(itself)  # which says so where it is of another kind than the model's outputs
    if images.choose < promise.fewest_samples():
        best = best_agreement(images.choose)
        able = f"these can show {best}" if best else "these can show no promise"
        most = wilson_interval(1.0, images.choose)[0]
        raise UsageError(
            f"`keep` {promise} takes {images_to_show(promise):,} images to be shown, here are {images.total:,}: if all "
            f"{images.choose} that are held out agree, that shows {most:.1%}; {able}"
        )
    return promise


def best_agreement(samples: int) -> Promise | None:
    """The highest default promise that so many held-out samples can show, though some answers differ."""
    return next((Promise("agreement", p) for p in AGREEMENTS if _can_show(p, samples)), None)


def most_differing(promise: Promise, samples: int) -> int:
    """How many of so many answers may differ; -1 where none may and that is not enough."""
    count = -1
    while count < samples and wilson_interval(1 - (count + 1) / samples, samples)[0] >= (
        promise.bound
    ):
        count += 1
    return count


def images_for(agreement: float) -> int:
    """How many images in all let an agreement be promised by default."""
    return next(
        (n for n in _TOTALS if _can_show(agreement, held_out_count(n))),
        _TOTALS[-1],
    )


def images_to_show(promise: Promise) -> int:
    """How many images in all can show a promise, if there is no damage at all."""
    needed = promise.fewest_samples()
    return next((n for n in _TOTALS if held_out_count(n) >= needed), 5 * needed)


def _labels_to_show(bound: float) -> int:
    """How many labelled samples show a change of the accuracy that is no less than this, if no answer differs."""
    needed = 1
    while change_interval(0.0, 1.0, needed)[1] < bound:
        needed += 1
    return needed


def _can_show(agreement: float, samples: int) -> bool:
    share = 1 - (1 - agreement) * _LOST_OF_ALLOWED
    return samples > 0 and wilson_interval(share, samples)[0] >= agreement
