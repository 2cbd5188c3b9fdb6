"""What a rewrite did to a model's answers, measured on calibration data, for which no labels are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from onnx_igpc.data.batches import Batch, Data
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.evaluation.verify import verify
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

    def describe(self) -> dict[str, Any]:
        """As the data itself, less its labels."""
        return self._data.describe() | {"labelled": False}


def measure_damage(
    original: AnyModel,
    rewritten: AnyModel,
    data: Data,
    threads: int | None = None,
    report: RewriteReport | None = None,
) -> dict[str, Any]:
    """How far the rewritten model's answers are from the original's, as JSON values for a report.

    ``agreement``: for a model with class scores, the share of samples in [0, 1] with the same highest
    score; for one whose only outputs are class numbers (ArgMax), the share of these that are equal.
    ``relative_error``: otherwise, ``|a - b| / |b|`` of the output that has most of it (named under
    ``output``), with b the original's values over all samples and Euclidean norms. ``not_finite``: values
    that are NaN or infinite in the rewritten model alone, where there are any. ``samples``. ``left_out``:
    outputs that cannot be compared, in sentences, where there are any; where no output can be, the error
    is that of a site of ``report``, or of the rewritten model's own where it is None.

    Raises:
        ModelError: a model cannot run on the data.
        DataError: no sample could be read.
    """
    found = verify(original, rewritten, data=UnlabelledData(data), threads=threads, report=report)
    damage: dict[str, Any] = {}
    values = [output for output in found.outputs if output.agreement is None]
    if found.classifier is not None:
        damage["agreement"] = found.classifier.agreement
    elif values:
        worst = max(values, key=lambda each: each.relative_norm or 0.0)
        damage |= {"relative_error": worst.relative_norm, "output": worst.name}
    elif found.outputs:
        damage["agreement"] = min(output.agreement or 0.0 for output in found.outputs)
    if found.notes:
        damage["left_out"] = list(found.notes)
    if broken := sum(output.new_nonfinite for output in found.outputs):
        damage["not_finite"] = broken
    return damage | {"samples": found.samples}
