"""What a verification found, as it is in reports: differences of outputs, agreement, accuracy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnx_igpc.data.batches import SourceDescription
from onnx_igpc.report.typed_json import IfKnown, to_values


@dataclass(frozen=True)
class OutputDifference:
    """One output of the candidate against the original's, over all samples.

    max_abs, mean_abs: of ``|a - b|``, in the output's unit. relative: ``max|a - b| / max|b|`` with b
    the original; None where the original is all zero. relative_norm: ``|a - b| / |b|`` in Euclidean
    norms of both outputs as long vectors; None likewise. cosine: of these vectors, None where one of
    them is all zero. Elements that are not finite in both are left out of these and
    counted in nonfinite_original and nonfinite_candidate (in one model) instead; new_nonfinite counts
    those that only the candidate has.

    agreement: for class numbers, of which differences mean nothing, the share of elements that are
    equal; the others then count an element as 1 where it differs, and None for the rest.
    """

    name: str
    elements: int
    max_abs: float
    mean_abs: float
    relative: float | None
    relative_norm: float | None
    cosine: float | None
    max_original: float
    nonfinite_original: int
    nonfinite_candidate: int
    new_nonfinite: int
    agreement: float | None = None

    def within(self, atol: float, rtol: float) -> bool:
        """Whether ``max|a - b| <= atol + rtol max|b|``."""
        return self.max_abs <= atol + rtol * self.max_original


@dataclass(frozen=True)
class Accuracy:
    """Shares of the samples, in [0, 1]; top5 is None with five classes or fewer."""

    top1: float
    top5: float | None


@dataclass(frozen=True)
class ClassifierResult:
    """agreement: share of samples where both models' highest score is the same class; a sample with
    NaN among its scores has none.

    original, candidate: accuracy against the labels, None without labels. kl: the mean Kullback-Leibler
    divergence of the candidate's class probabilities from the original's, in nats; None where a score is
    not finite. confidence: the mean of the original's highest class probability, likewise.
    """

    scores: str
    classes: int
    samples: int
    agreement: float
    original: Accuracy | None
    candidate: Accuracy | None
    kl: IfKnown[float] = None
    confidence: IfKnown[float] = None


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found; :meth:`to_dict` is its JSON form.

    random: the inputs were random numbers, on which agreement says little about real data. data: the
    description of the data. classifier: None where no output holds class scores. executed: one line
    for each model on which execution provider ran its nodes. failures: thresholds that did not hold
    and other faults, one line each; none means that the verification passed. notes: what was left out
    and looks odd. sites: no output could be compared, and ``outputs`` are those of the rewritten sites.
    """

    original: str
    candidate: str
    provider: str
    samples: int
    random: bool
    data: SourceDescription
    outputs: tuple[OutputDifference, ...]
    classifier: ClassifierResult | None
    metric: dict[str, float] | None
    executed: dict[str, str]
    failures: tuple[str, ...]
    notes: tuple[str, ...] = ()
    sites: bool = False
    passed: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "passed", not self.failures)

    @property
    def worst_output(self) -> OutputDifference | None:
        """The output that is furthest from the original's by its relative norm."""
        values = [output for output in self.outputs if output.agreement is None]
        return max(values, key=lambda each: each.relative_norm or 0.0, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        values: dict[str, Any] = to_values(self)
        return values
