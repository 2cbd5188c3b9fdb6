"""The sections of a report that steps of a rewrite fill: what each was asked for, did and measured.

What is ``IfKnown`` is in the JSON only where it is not ``None``. ``portable`` is a section as the digest has
it: without what would make equal runs write different bytes, or tell of the machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated, Literal

from onnx_igpc.data.batches import DataDescription
from onnx_igpc.report.training import Int8Report, WrittenCheck
from onnx_igpc.report.typed_json import IfKnown, LeftOut

Value = str | int | float | bool | list[str] | None
"""A value of an option as JSON has it."""


JudgedOn = Literal["validation", "held-out", "training"]
"""Data of its own, a part of the training data, or all of it where that is too little to have parts."""


class MeasuredOn(StrEnum):
    """The data that damage was measured on. The report says it as one of its notes."""

    FITTED = "the data that the weights were fitted to"
    LEFT_OUT = "data that was neither fitted to nor chosen by"
    TRAINING = "training data after fine-tuning"
    VALIDATION = "validation data after fine-tuning"
    HELD_OUT = "held-out data after fine-tuning"

    @property
    def note(self) -> str:
        return f"the damage was measured on {self}"

    @classmethod
    def after_training(cls, on: JudgedOn) -> MeasuredOn:
        """The data that a run of fine-tuning was judged on."""
        return {"validation": cls.VALIDATION, "held-out": cls.HELD_OUT, "training": cls.TRAINING}[
            on
        ]

    @classmethod
    def said_in(cls, notes: Sequence[str]) -> MeasuredOn | None:
        """The data that one of the notes of a report names."""
        return next((each for each in cls if each.note in notes), None)


@dataclass(kw_only=True)
class OptionsReport:
    """What compress was asked for; of the rest, everything that decides what is written."""

    form: IfKnown[str] = None
    init: IfKnown[str] = None
    fold_batch_norm: IfKnown[bool] = None
    include: IfKnown[list[str]] = None
    exclude: IfKnown[list[str]] = None
    include_heads: IfKnown[bool] = None
    grouping: IfKnown[str] = None
    ch: IfKnown[int] = None
    scheme: IfKnown[str] = None
    target: IfKnown[str] = None
    keep: IfKnown[str] = None
    minimize: IfKnown[str] = None
    family: IfKnown[str] = None
    blocks: IfKnown[str] = None
    channels: IfKnown[str] = None
    seed: IfKnown[int] = None
    lowering: IfKnown[str] = None
    passes: IfKnown[list[str]] = None


@dataclass(kw_only=True)
class CalibrationReport:
    """The data that weights were fitted to, how it was used, and what that cost.

    ``skipped``: images that could not be read; ``without_data``: why each site was fitted without;
    ``activation_bytes`` and ``spilled_bytes``: the most that were kept in memory and on disk. ``fit``: how
    the sites were fitted, in words; ``chosen_by``: the damage of each fit that was tried, on data left out
    of it. ``held_out``: of the samples, those on which the damage was measured by fits without them.
    ``confidence``: the mean of the original's highest class probability on the samples.
    """

    source: str
    samples: int
    skipped: list[str]
    sequential: bool
    fit: IfKnown[str] = None
    chosen_by: IfKnown[dict[str, float]] = None
    held_out: IfKnown[int] = None
    confidence: IfKnown[float] = None
    seconds: IfKnown[float] = None
    without_data: dict[str, str]
    activation_bytes: IfKnown[int] = None
    spilled_bytes: IfKnown[int] = None

    def portable(self) -> CalibrationReport:
        return replace(self, seconds=None, source=PurePath(self.source).name)


@dataclass(kw_only=True)
class DamageReport:
    """How far the rewritten model's answers are from the original's.

    ``agreement``: for a model with class scores, the share of samples in [0, 1] with the same highest
    score. ``relative_error``: otherwise, ``|a - b| / |b|`` of the ``output`` that has most of it, with b
    the original's values over all samples and Euclidean norms; ``None`` where b is zero.
    ``not_finite``: values that are NaN or infinite in the rewritten model alone, where there are any.
    A model whose only outputs are class numbers (ArgMax) has the share of these that are equal as its
    agreement. ``left_out``: outputs that cannot be compared, in sentences, where there are any.

    ``interval``: the agreement's 95 % interval (Wilson). ``kl``: the mean Kullback-Leibler divergence of
    the class probabilities in nats, ``confidence`` the mean of the original's highest. ``fitted``: the same
    measured on the data that the weights were fitted to, which flatters. ``accuracy_change``: of top-1 against
    labels, in [-1, 1], with its 95 % interval, where it was asked for. ``unknown``: why nothing was measured, in
    the place of a figure.
    """

    agreement: IfKnown[float] = None
    interval: IfKnown[tuple[float, float]] = None
    kl: IfKnown[float] = None
    confidence: IfKnown[float] = None
    accuracy_change: IfKnown[tuple[float, float, float]] = None
    relative_error: Annotated[float | None, LeftOut(beside="output")] = None
    output: IfKnown[str] = None
    not_finite: IfKnown[int] = None
    left_out: IfKnown[list[str]] = None
    unknown: IfKnown[str] = None
    samples: int
    fitted: IfKnown[DamageReport] = None


@dataclass(kw_only=True)
class SiteLowering:
    """What a site is written as, why, and the median seconds of its cut-out by lowering."""

    lowering: str
    reason: str | None = None
    seconds: IfKnown[dict[str, float]] = None


@dataclass(kw_only=True)
class WholeModelReport:
    """Seconds of a run of the whole model by variant; ``predicted`` from the sites' races.

    ``speedup``: how many times faster the chosen one is than each other, and its 95 % interval.
    """

    seconds: dict[str, float]
    predicted: float | None
    speedup: dict[str, tuple[float, float, float]]


@dataclass(kw_only=True)
class RacesReport:
    """Races of sites that were run, and that were known from before."""

    measured: int
    reused: int


@dataclass(kw_only=True)
class LoweringReport:
    """How a model was written down for a runtime, and the times that speak for it if it was measured.

    ``precision``: ``int8`` where the times are of forms that were quantized for the races; what was written
    is in float32, and ``quantize`` comes next.
    """

    mode: str
    provider: str
    threads: int | None = None
    batch: int
    shapes: dict[str, list[int]] = field(default_factory=dict)
    precision: IfKnown[str] = None
    allow_slower: IfKnown[bool] = None
    onnxruntime: IfKnown[str] = None
    device: IfKnown[str] = None
    sites: dict[str, SiteLowering]
    notes: IfKnown[list[str]] = None
    model: IfKnown[WholeModelReport] = None
    races: IfKnown[RacesReport] = None

    @property
    def counts(self) -> str:
        """How many sites became what, the most frequent first."""
        counts = Counter(site.lowering for site in self.sites.values())
        return ", ".join(f"{count} {name}" for name, count in counts.most_common())

    def portable(self) -> LoweringReport:
        return LoweringReport(
            mode=self.mode,
            provider=self.provider,
            threads=self.threads,
            batch=self.batch,
            shapes=self.shapes,
            precision=self.precision,
            sites={name: replace(site, seconds=None) for name, site in self.sites.items()},
        )


@dataclass(kw_only=True)
class MeansReport:
    """Means over samples: losses, top-1 accuracy and agreement with the teacher, as far as known."""

    loss: float
    output_loss: float
    label_loss: float
    feature_loss: float
    accuracy: float | None
    agreement: float | None


@dataclass(kw_only=True)
class JudgedMeans(MeansReport):
    """The same over validation data; ``judged``: the loss less the part of the matched sites."""

    judged: float


@dataclass(kw_only=True)
class EpochReport:
    """An epoch: means over its samples.

    ``accuracy`` is top-1 with the labels and ``agreement`` top-1 with the teacher, both in [0, 1] and
    measured while the weights change for the training data; ``val_judged`` is ``val_loss`` less the part
    of the matched sites, by which the best epoch is chosen; ``images_per_second`` is of the whole run's
    processes together; ``seconds`` since the start. What was not measured is ``None``.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    output_loss: float
    label_loss: float
    feature_loss: float
    accuracy: float | None
    agreement: float | None
    val_loss: float | None
    val_judged: IfKnown[float] = None
    val_accuracy: float | None
    val_agreement: float | None
    images_per_second: IfKnown[float] = None
    seconds: IfKnown[float] = None

    def portable(self) -> EpochReport:
        return replace(self, images_per_second=None, seconds=None)


@dataclass(frozen=True)
class JudgedBy(DataDescription):
    """The data that a run was judged by."""

    kind: IfKnown[JudgedOn] = None


@dataclass(kw_only=True)
class JudgedReport:
    """By what the weights that were written were chosen: the loss on data that is not trained on.

    ``before`` the first epoch, and ``after`` the ``epoch`` that was taken, 0 for the weights as they were
    given; ``after`` is of the weights as they are written where the model holds half precision. ``counted``: what
    ``before`` counts as where the model that was given had been fitted to these samples, which flatters it.
    """

    on: JudgedOn
    samples: int
    before: float
    after: float
    least_after_training: float
    epoch: int
    gained: bool
    counted: IfKnown[float] = None


@dataclass(kw_only=True)
class FinetuneReport:
    """A run of fine-tuning.

    ``rates``: learning rates that were tried first, and their losses, behind that of the ``start``; None: diverged.
    ``val_before``: means over the validation data at the start; ``damage_before``: of the model that
    was trained. ``recipe`` has the options by name; ``outputs`` are those that are compared, ``penultimate``
    is the tensor that is matched in the place of the sites. ``int8``: the model was trained for that; losses,
    accuracy and agreement while it was are in fake int8.
    """

    recipe: dict[str, Value]
    taught: bool
    data: DataDescription
    val: JudgedBy | None
    device: str
    processes: int
    matched_sites: list[str]
    unmatched_sites: dict[str, str]
    penultimate: IfKnown[str] = None
    outputs: IfKnown[list[str]] = None
    rates: IfKnown[dict[str, float | None]] = None
    notes: list[str]
    val_before: MeansReport | JudgedMeans | None = None
    seconds: IfKnown[float] = None
    check: IfKnown[WrittenCheck] = None
    judged: IfKnown[JudgedReport] = None
    int8: IfKnown[Int8Report] = None
    epochs: list[EpochReport] = field(default_factory=list)
    damage_before: IfKnown[DamageReport] = None

    def portable(self) -> FinetuneReport:
        notes = self.notes
        for data in (self.data, self.val):
            if data is not None:
                notes = [note.replace(data.source, data.portable().source) for note in notes]
        return replace(
            self,
            seconds=None,
            epochs=[row.portable() for row in self.epochs],
            data=self.data.portable(),
            val=self.val and self.val.portable(),
            notes=notes,
        )


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A picture of a matrix of the given ``shape``: see :mod:`onnx_igpc.evaluation.thumbnails`.

    ``data``: a level from 0 to 255 for each of the ``cells``, as Base64 of zlib; 255 is ``largest``.
    """

    cells: tuple[int, int]
    shape: tuple[int, int]
    largest: float
    data: str
