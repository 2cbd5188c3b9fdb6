"""Two sessions on the same batches: differences, class agreement, and which provider ran them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_igpc.data.batches import Batch, Data
from onnx_igpc.data.class_folders import label_problem
from onnx_igpc.errors import DataError, ModelError, UsageError, with_flags
from onnx_igpc.evaluation.differences import (
    ClassifierAccumulator,
    DifferenceAccumulator,
    class_scores,
)
from onnx_igpc.evaluation.output_kinds import Compared
from onnx_igpc.evaluation.user_metric import Metric
from onnx_igpc.report.verification import OutputDifference
from onnx_igpc.runtime.profile import ExecutionProfile, read_profile
from onnx_igpc.runtime.session import Session, run_session


class Comparison:
    """Runs batches through both sessions and adds up what a report needs.

    sessions: by role, ``original`` and ``candidate``, made with profiling on. compared: what to compare.
    source: where the batches come from. scores: the output with class scores; None finds it in the first
    batch. metric: as :class:`Metric` takes it; it is given every output. profiles: which provider ran the
    first batch, by role. left_out: why outputs were not compared after all, in sentences.
    """

    def __init__(
        self,
        sessions: dict[str, Session],
        compared: Sequence[Compared],
        source: Data,
        scores: str | None,
        metric: str | None,
    ) -> None:
        self._sessions = sessions
        self._source = source
        self._compared = {each.name: each for each in compared}
        self._scores = scores
        self._differences = {
            name: DifferenceAccumulator(name, each.classes) for name, each in self._compared.items()
        }
        self.left_out: list[str] = []
        self.classifier: ClassifierAccumulator | None = None
        self.metric = Metric(metric) if metric is not None else None
        self.profiles: dict[str, ExecutionProfile] = {}
        self.samples = 0

    def add(self, batch: Batch) -> None:
        """Run one batch. Raises ModelError, DataError and UsageError as verify() says."""
        results = {}
        for role, session in self._sessions.items():
            results[role] = run_session(session, batch.feeds, self._wanted(role))
            if role not in self.profiles:
                # The first batch shows where the nodes run; more would only make the file long.
                self.profiles[role] = read_profile(session.end_profiling())
        original, candidate = (
            {name: _valid(value, batch) for name, value in results[role].items()}
            for role in ("original", "candidate")
        )
        for each in list(self._compared.values()):
            self._add_difference(each, original[each.original], candidate[each.candidate])
        self._add_scores(original, candidate, batch)
        if self.metric is not None:
            self.metric.update(original, candidate, batch.labels, batch.count)
        self.samples += batch.count

    @property
    def compares(self) -> bool:
        """Whether there is anything left to compare."""
        return bool(self._compared)

    def _wanted(self, role: str) -> list[str] | None:
        """The tensors to run a model for: all outputs where a metric sees them."""
        if self.metric is not None:
            return None
        return [getattr(each, role) for each in self._compared.values()]

    def _add_difference(self, each: Compared, ours: np.ndarray, theirs: np.ndarray) -> None:
        if each.order is not None and ours.ndim > 1:
            ours = ours[:, list(each.order)]
        if ours.shape == theirs.shape:
            self._differences[each.name].add(ours, theirs)
            return
        shapes = f"{list(ours.shape)} in the original and {list(theirs.shape)} in the candidate"
        if not each.may_vary:
            raise ModelError(f"the models differ: output {each.name!r} is {shapes}")
        self.left_out.append(
            f"output {each.name!r} is not compared: its shape depends on the data and is {shapes}"
        )
        del self._compared[each.name], self._differences[each.name]

    def _add_scores(
        self,
        original: dict[str, np.ndarray],
        candidate: dict[str, np.ndarray],
        batch: Batch,
    ) -> None:
        if not self.samples:
            candidates = {
                each.name: original[each.original]
                for each in self._compared.values()
                if not each.classes and each.original == each.candidate == each.name
            }
            name = self._scores or _only_scores(candidates, batch.count)
            self.classifier = None if name is None else ClassifierAccumulator(name)
        if self.classifier is None:
            return
        name = self.classifier.name
        if name not in self._compared:
            self.classifier = None
            return
        ours, theirs = class_scores(original[name]), class_scores(candidate[name])
        if ours is None or theirs is None or len(ours) != batch.count:
            if self._scores is None:  # what looked like class scores in an earlier batch was not
                self.classifier = None
                return
            shape = list(original[name].shape)
            raise UsageError(f"output {name!r} of shape {shape} holds no class scores")
        if batch.labels is not None:
            self._check_labels(batch.labels, ours.shape[1])
        self.classifier.add(ours, theirs, batch.labels)

    def _check_labels(self, labels: np.ndarray, classes: int) -> None:
        offset = getattr(self._source, "label_offset", None)
        problem = label_problem("", labels, self._source.classes, classes, offset)
        if problem is not None:
            raise DataError(problem)

    def notes(self) -> list[str]:
        """What is to be said of the outputs and the labels beyond the figures, in sentences."""
        found = list(self.left_out)
        for output in self.differences():
            if output.nonfinite_original:
                found.append(
                    f"output {output.name}: {output.nonfinite_original} of {output.elements} values are "
                    "NaN or infinite in the original and left out of the differences"
                )
        if self.classifier is not None:
            offset = getattr(self._source, "label_offset", None)
            doubt = self.classifier.label_doubt(offset or 0)
            # Where the user has said that labels are right as they are, that settles it.
            found += [with_flags(doubt)] if doubt and offset != 0 else []
        return found

    def differences(self) -> list[OutputDifference]:
        """One entry an output, over the batches so far."""
        return [difference.result() for difference in self._differences.values()]

    def failures(
        self, min_agreement: float | None, atol: float | None, rtol: float | None
    ) -> list[str]:
        """Thresholds that do not hold, and values that are no longer finite."""
        found = []
        for output in self.differences():
            if output.new_nonfinite:
                found.append(
                    f"output {output.name}: {output.new_nonfinite} of {output.elements} values are "
                    "NaN or infinite in the candidate where the original's are not"
                )
            bounded = atol is not None or rtol is not None
            if output.agreement is not None:
                found += _class_failures(output.name, output.agreement, min_agreement, bounded)
            elif bounded and output.nonfinite_original == output.elements > 0:
                found.append(
                    f"output {output.name}: the bound says nothing, as all {output.elements} values are "
                    "NaN or infinite in the original: verify with other data, or mend the model"
                )
            elif bounded and not output.within(atol or 0.0, rtol or 0.0):
                found.append(
                    f"output {output.name}: largest difference {output.max_abs:.4g} is beyond "
                    f"atol {atol or 0:g} + rtol {rtol or 0:g} x {output.max_original:.4g}"
                )
        if min_agreement is not None and self.classifier is not None:
            agreement = self.classifier.result().agreement
            if agreement < min_agreement:
                found.append(
                    f"top-1 agreement {agreement:.4f} is below {min_agreement:g} "
                    f"({self.samples} samples)"
                )
        return found


def _class_failures(name: str, agreement: float, least: float | None, bounded: bool) -> list[str]:
    """Whether class numbers agree as much as was asked; a tolerance of values asks for all of them."""
    told = f"output {name}: {agreement:.4f} of the class numbers are equal"
    if least is not None:
        return [f"{told}, which is below {least:g}"] if agreement < least else []
    if bounded and agreement < 1.0:
        bound = "tolerances are for quantities, bound class numbers with `min_agreement`"
        return [with_flags(f"{told}: {bound}")]
    return []


def _valid(value: Any, batch: Batch) -> Any:
    """An output without the rows that only fill up a fixed batch; what is no array is left as it is."""
    if not isinstance(value, np.ndarray):
        return value
    filled = max((len(v) for v in batch.feeds.values() if v.ndim), default=batch.count)
    is_batched = value.ndim > 0 and len(value) == filled
    return value[: batch.count] if is_batched else value


def _only_scores(outputs: dict[str, np.ndarray], count: int) -> str | None:
    found = [
        name
        for name, value in outputs.items()
        if class_scores(value) is not None and len(value) == count
    ]
    return found[0] if len(found) == 1 else None
