"""What a rewrite is to keep of the original's answers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from onnx_igpc.errors import UsageError, did_you_mean
from onnx_igpc.evaluation.damage import wilson_interval
from onnx_igpc.planning.sensitivity import Damage
from onnx_igpc.report.sections import DamageReport

PROMISES = ("agreement", "output", "accuracy")
# A change of the class loses a hit about every third time; the others were misses, or become them.
_ACCURACY_OF_AGREEMENT = 3.0
_Z = 1.959964


@dataclass(frozen=True)
class Promise:
    """``kind`` is one of :data:`PROMISES`; ``bound`` the least agreement in [0, 1], the most relative
    error, or the least change of the accuracy in [-1, 0]."""

    kind: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Promise:
        """Read ``agreement=95%``, ``output=0.05`` or ``accuracy=-1``, the last one in points.

        Raises:
            UsageError: it is none of these, or out of range.
        """
        found = re.fullmatch(r"\s*([a-z]+)\s*=\s*([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\s*(%?)\s*", text)
        kind = text.partition("=")[0].strip()
        try:
            number = float(found[2]) if found else math.nan
        except ValueError:
            number = math.nan
        if found is None or kind not in PROMISES or math.isnan(number):
            hint = did_you_mean(kind, PROMISES) if kind not in PROMISES else ""
            raise UsageError(
                f"`keep` {text!r} is not understood: say agreement=95%, output=0.05 or "
                f"accuracy=-1{hint}"
            )
        bound = number / 100 if found[3] or kind == "accuracy" else number
        low, high = {"agreement": (0.0, 1.0), "output": (0.0, math.inf), "accuracy": (-1.0, 0.0)}[
            kind
        ]
        if not low <= bound <= high or bound in {"agreement": (0.0, 1.0), "output": (0.0,)}.get(
            kind, ()
        ):
            raise UsageError(f"`keep` {text!r}: {_RANGES[kind]}")
        return cls(kind, bound)

    @property
    def labelled(self) -> bool:
        """Whether it takes labels to be measured."""
        return self.kind == "accuracy"

    def fewest_samples(self) -> int:
        """How many samples it takes to show that it holds, if there is no damage at all."""
        if self.kind != "agreement":
            return 1
        return math.ceil(_Z * _Z * self.bound / (1 - self.bound))

    def likely(self, damage: Damage, samples: int) -> bool:
        """Whether a damage in a trial lets expect that it holds on so many held-out samples."""
        if self.kind == "output":
            return math.sqrt(damage.value) <= self.bound
        if damage.agreeing is None:
            return False
        share = damage.agreeing / damage.samples
        if self.kind == "accuracy":
            return (1 - share) / _ACCURACY_OF_AGREEMENT <= -self.bound
        return wilson_interval(share, samples)[0] >= self.bound

    def holds(self, damage: DamageReport) -> bool:
        """Whether it holds on held-out data, at the lower end of the interval.

        Raises:
            UsageError: it is not what the model's damage is measured in.
        """
        if self.kind == "output":
            if damage.relative_error is None:
                raise UsageError(
                    "`keep` output=... is for models without class scores: say agreement=95%"
                )
            return damage.relative_error <= self.bound
        if self.kind == "accuracy":
            if damage.accuracy_change is None:
                raise UsageError("`keep` accuracy=... takes labelled data of a classifier")
            return damage.accuracy_change[1] >= self.bound
        if damage.interval is None:
            raise UsageError(
                "`keep` agreement=... is for models with class scores: say output=0.05"
            )
        return damage.interval[0] >= self.bound

    def told(self, damage: DamageReport) -> str:
        """What was measured, in words."""
        if self.kind == "output":
            return f"relative error {damage.relative_error or 0:.3g}"
        if self.kind == "accuracy" and damage.accuracy_change is not None:
            change, low, _ = damage.accuracy_change
            return f"accuracy {100 * change:+.1f} points, at the lower end {100 * low:+.1f}"
        low = damage.interval[0] if damage.interval else 0.0
        return f"agreement {damage.agreement or 0:.1%}, at the lower end of its interval {low:.1%}"

    def __str__(self) -> str:
        if self.kind == "output":
            return f"output={self.bound:g}"
        if self.kind == "accuracy":
            return f"accuracy={100 * self.bound:g}"
        return f"agreement={100 * self.bound:g}%"


_RANGES = {
    "agreement": "the share must be above 0 and below 100 %, which no number of images shows: agreement=95%",
    "output": "the relative error must be above 0, as in output=0.05",
    "accuracy": "the change must lie between -100 and 0 points, as in accuracy=-1",
}
