"""What a rewrite did to a model's answers, measured on calibration data, for which no labels are needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from onnx_igpc.data.batches import Batch, Data, SourceDescription
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.evaluation.verify import DEFAULT_SETTING, Wanted, compare_models
from onnx_igpc.report.sections import DamageReport
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.report.verification import VerifyReport
from onnx_igpc.runtime.session_source import AnyModel

ALL_ZERO = (
    "output {output} of the original is zero on a part of the held-out samples, to which nothing can be relative: give "
    "data on which it answers"
)
# The quantile of the normal distribution for an interval of 95 %.
_Z = 1.959964


class UnlabelledData:
    """Data without its labels: class folders of calibration images need not be those of the model."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self.size = data.size
        self.labelled = False
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = data.preprocessing
        self.skipped = data.skipped

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._data:
            yield replace(batch, labels=None)
        self.skipped = self._data.skipped

    def describe(self) -> SourceDescription:
        """As the data itself, less its labels."""
        return replace(self._data.describe(), labelled=False)


def measure_damage(
    original: AnyModel,
    rewritten: AnyModel,
    data: Data,
    threads: int | None = None,
    report: RewriteReport | None = None,
    labelled: bool = False,
) -> DamageReport:
    """How far the rewritten model's answers are from the original's.

    Where no output can be compared, the error is that of a site of ``report``, or of the rewritten
    model's own where it is None. ``labelled`` measures the change of accuracy by the data's labels too.

    Raises:
        ModelError: a model cannot run on the data.
        DataError: no sample could be read.
    """
    setting = replace(DEFAULT_SETTING, threads=threads)
    used = Dataset(data if labelled else UnlabelledData(data))
    return damage_of(
        compare_models(original, rewritten, used, Wanted(report=report), setting=setting)
    )


def damage_of(found: VerifyReport) -> DamageReport:
    """What a verification says of the damage; of the accuracy, too, where the data was labelled."""
    damage = DamageReport(samples=found.samples)
    if found.classifier is not None:
        damage.agreement = found.classifier.agreement
        damage.kl, damage.confidence = found.classifier.kl, found.classifier.confidence
    elif worst := found.worst_output:
        damage.relative_error, damage.output = worst.relative_norm, worst.name
    elif found.outputs:
        damage.agreement = min(output.agreement or 0.0 for output in found.outputs)
    if found.classifier is not None and damage.agreement is not None:
        damage.interval = wilson_interval(damage.agreement, found.samples)
    if found.classifier is not None and found.classifier.original and found.classifier.candidate:
        change = found.classifier.candidate.top1 - found.classifier.original.top1
        damage.accuracy_change = change_interval(change, damage.agreement or 0.0, found.samples)
    damage.left_out = list(found.notes) or None
    damage.not_finite = sum(output.new_nonfinite for output in found.outputs) or None
    return damage


def joined_damage(parts: Sequence[DamageReport]) -> DamageReport:
    """The damage over the samples of several parts of the data, one at least.

    A relative error is the root of the mean square over the samples of the parts', of the output that has
    most of it.
    """
    samples = sum(part.samples for part in parts)
    worst = max(parts, key=lambda part: part.relative_error or 0.0)
    joined = DamageReport(samples=samples, output=worst.output)

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        if len(known) < len(parts):
            return None
        return sum(p.samples * v for p, v in zip(parts, known, strict=True)) / samples

    joined.agreement = mean([part.agreement for part in parts])
    joined.kl = mean([part.kl for part in parts])
    joined.confidence = mean([part.confidence for part in parts])
    squares = mean([None if (e := part.relative_error) is None else e * e for part in parts])
    joined.relative_error = None if squares is None else math.sqrt(squares)
    if joined.agreement is None and squares is None and joined.output is not None:
        joined.unknown = ALL_ZERO.format(output=joined.output)
    if joined.agreement is not None and all(part.interval for part in parts):
        joined.interval = wilson_interval(joined.agreement, samples)
    changes = [part.accuracy_change for part in parts]
    change = mean([each[0] if each else None for each in changes])
    if change is not None:
        joined.accuracy_change = change_interval(change, joined.agreement or 0.0, samples)
    notes = dict.fromkeys(note for part in parts for note in part.left_out or ())
    joined.left_out = list(notes) or None
    joined.not_finite = sum(part.not_finite or 0 for part in parts) or None
    return joined


def change_interval(change: float, agreement: float, samples: int) -> tuple[float, float, float]:
    """A change of accuracy with its 95 % interval, which is no narrower than it should be: where both models
    say the same class nothing changes, and elsewhere a hit is won or lost at most."""
    half = _Z * math.sqrt(max(1 - agreement, 1 / samples) / samples)
    return change, max(change - half, -1.0), min(change + half, 1.0)


def wilson_interval(share: float, samples: int) -> tuple[float, float]:
    """The 95 % interval of a share that was counted on so many samples.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    z = _Z * _Z / samples
    middle = (share + z / 2) / (1 + z)
    half = math.sqrt(share * (1 - share) * z + z * z / 4) / (1 + z)
    return max(middle - half, 0.0), min(middle + half, 1.0)
