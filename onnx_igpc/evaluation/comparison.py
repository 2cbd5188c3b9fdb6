"""Two sessions on the same batches: differences, class agreement, and which provider ran them."""

from __future__ import annotations

import numpy as np

from onnx_igpc.data.batches import Batch, Data
from onnx_igpc.errors import DataError, ModelError, UsageError
from onnx_igpc.evaluation.differences import (
    ClassifierAccumulator,
    DifferenceAccumulator,
    class_scores,
)
from onnx_igpc.evaluation.user_metric import Metric
from onnx_igpc.report.verification import OutputDifference
from onnx_igpc.runtime.profile import ExecutionProfile, read_profile
from onnx_igpc.runtime.session import Session, run_session


class Comparison:
    """Runs batches through both sessions and adds up what a report needs.

    sessions: by role, ``original`` and ``candidate``, made with profiling on. source: where the batches
    come from. scores: the output with class scores; None finds it in the first batch. metric: as
    :class:`Metric` takes it. profiles: which provider ran the first batch, by role.
    """

    def __init__(
        self, sessions: dict[str, Session], source: Data, scores: str | None, metric: str | None
    ) -> None:
        self._sessions = sessions
        self._source = source
        self._names = [output.name for output in sessions["original"].get_outputs()]
        if scores is not None and scores not in self._names:
            raise UsageError(f"no output {scores!r}: the models have {', '.join(self._names)}")
        self._scores = scores
        self._differences = {name: DifferenceAccumulator(name) for name in self._names}
        self.classifier: ClassifierAccumulator | None = None
        self.metric = Metric(metric) if metric is not None else None
        self.profiles: dict[str, ExecutionProfile] = {}
        self.samples = 0

    def add(self, batch: Batch) -> None:
        """Run one batch. Raises ModelError, DataError and UsageError as verify() says."""
        results = {}
        for role, session in self._sessions.items():
            results[role] = run_session(session, batch.feeds, self._names)
            if role not in self.profiles:
                # The first batch shows where the nodes run; more would only make the file long.
                self.profiles[role] = read_profile(session.end_profiling())
        original, candidate = (
            {name: _valid(value, batch) for name, value in results[role].items()}
            for role in ("original", "candidate")
        )
        for name, difference in self._differences.items():
            ours, theirs = original[name], candidate[name]
            if ours.shape != theirs.shape:
                raise ModelError(
                    f"the models differ: output {name!r} is {list(ours.shape)} in the original and "
                    f"{list(theirs.shape)} in the candidate"
                )
            difference.add(ours, theirs)
        self._add_scores(original, candidate, batch)
        if self.metric is not None:
            self.metric.update(original, candidate, batch.labels, batch.count)
        self.samples += batch.count

    def _add_scores(
        self,
        original: dict[str, np.ndarray],
        candidate: dict[str, np.ndarray],
        batch: Batch,
    ) -> None:
        if not self.samples:
            name = self._scores or _only_scores(original, batch.count)
            self.classifier = None if name is None else ClassifierAccumulator(name)
        if self.classifier is None:
            return
        name = self.classifier.name
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
        named = self._source.classes
        if named is not None and len(named) != classes:
            raise DataError(
                f"the data has {len(named)} class folders, the model {classes} classes: name the "
                "folders by class index, as 0000, 0001"
            )
        if labels.min() < 0 or labels.max() >= classes:
            raise DataError(
                f"label {labels.max() if labels.max() >= classes else labels.min()} is not one of "
                f"the model's {classes} classes (0 to {classes - 1})"
            )

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
            if (atol is not None or rtol is not None) and not output.within(
                atol or 0.0, rtol or 0.0
            ):
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


def _valid(value: np.ndarray, batch: Batch) -> np.ndarray:
    """An output without the rows that only fill up a fixed batch."""
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
