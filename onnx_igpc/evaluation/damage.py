"""What a rewrite did to a model's answers, measured on calibration data, for which no labels are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onnx_igpc.data.batches import Batch, Data, SourceDescription
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.evaluation.verify import DEFAULT_SETTING, Wanted, compare_models
from onnx_igpc.report.sections import DamageReport
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.runtime.session_source import AnyModel


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
) -> DamageReport:
    """How far the rewritten model's answers are from the original's.

    Where no output can be compared, the error is that of a site of ``report``, or of the rewritten
    model's own where it is None.

    Raises:
        ModelError: a model cannot run on the data.
        DataError: no sample could be read.
    """
    setting = replace(DEFAULT_SETTING, threads=threads)
    blind, sites = Dataset(UnlabelledData(data)), Wanted(report=report)
    found = compare_models(original, rewritten, blind, sites, setting=setting)
    damage = DamageReport(samples=found.samples)
    if found.classifier is not None:
        damage.agreement = found.classifier.agreement
    elif worst := found.worst_output:
        damage.relative_error, damage.output = worst.relative_norm, worst.name
    elif found.outputs:
        damage.agreement = min(output.agreement or 0.0 for output in found.outputs)
    damage.left_out = list(found.notes) or None
    damage.not_finite = sum(output.new_nonfinite for output in found.outputs) or None
    return damage
