"""RewriteReport: what was done to a model and what it brought, as one tree and as JSON.

The same tree, less file sizes, goes into the written model's metadata_props as its digest. From it
the report can be shown again from the file alone, and the later commands (finetune, lower) learn
what they work on. What does not change the model (verify, benchmark) and pictures of weights are parts
of the tree, too, but of report files only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from onnx_igpc._version import __version__
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.layout.serialization import (
    MAX_CHANNELS,
    layout_from_dict,
    layout_size,
    layout_to_dict,
)
from onnx_igpc.report.benchmark import BenchmarkReport
from onnx_igpc.report.quantization import QuantizationReport
from onnx_igpc.report.sections import (
    CalibrationReport,
    DamageReport,
    FinetuneReport,
    LoweringReport,
    OptionsReport,
    Thumbnail,
)
from onnx_igpc.report.selection import SelectionReport
from onnx_igpc.report.typed_json import STATED, converted, from_values, to_values
from onnx_igpc.report.verification import VerifyReport

REPORT_VERSION = 1
NO_DATA_WARNING = "the weights were fitted without data: expect to fine-tune before use"
RANDOM_WARNING = "the weights are random: train the model before use"
_AS_LAYOUT = converted(layout_from_dict, layout_to_dict)


@dataclass
class Change:
    """A count before and after; ``None`` where it is not known."""

    before: int | None = None
    after: int | None = None

    @property
    def ratio(self) -> float | None:
        """After as a share of before."""
        if not self.before or self.after is None:
            return None
        return self.after / self.before


@dataclass
class StageReport:
    """K or L: its groups, input channels per group, weights, and replicated input channels."""

    groups: int
    channels_per_group: int
    weights: int
    replicated: int = 0
    uneven: bool = False

    @classmethod
    def of(cls, stage: GroupedStage | None) -> StageReport | None:
        if stage is None:
            return None
        return cls(
            stage.groups,
            stage.channels_per_group,
            stage.weights,
            len(stage.replicated),
            len(stage.paths) > 1,
        )


@dataclass
class SiteReport:
    """One pointwise convolution: rewritten, kept, gone with a residual block that was collapsed, or with fewer channels.

    Parameters are the weights and biases of the convolutions; ``error`` is E|(W-M)x|^2 / E|Wx|^2.
    ``nodes`` are the inserted nodes, ``replaced`` those in whose place they are, ``input`` and
    ``output`` the tensors the site reads and makes. ``thumbnails``: pictures by the matrices' names, W
    and M.
    """

    name: str
    in_channels: int | None
    out_channels: int | None
    status: Literal["rewritten", "kept", "collapsed", "narrowed"]
    reason: str | None = None
    scheme: str | None = None
    channels_per_group: int | None = None
    k: StageReport | None = None
    l: StageReport | None = None  # noqa: E741 - the paper's name
    parameters: Change = field(default_factory=Change, metadata=STATED)
    macs: Change = field(default_factory=Change, metadata=STATED)
    error: float | None = None
    interleave: str | None = None
    activation: str | None = None
    shares_weight_with: str | None = None
    input: str = ""
    output: str = ""
    nodes: list[str] = field(default_factory=list)
    layout: GroupLayout | None = field(default=None, metadata=_AS_LAYOUT)
    replaced: list[str] = field(default_factory=list)
    thumbnails: dict[str, Thumbnail] | None = None

    @property
    def rewritten(self) -> bool:
        return self.status == "rewritten"


@dataclass(kw_only=True)
class BlockReport:
    """A residual block y = x + f(x) in whose place ``node`` is, one pointwise convolution.

    ``name`` is that of the Add that it ended in, ``input`` x and ``output`` y; ``sites`` are the pointwise
    convolutions of f, which are gone. Counts are those of f and of the convolution. ``error``:
    E|y - (M x + b)|^2 as a part of the variance of f(x), as fitted.
    """

    name: str
    node: str
    input: str
    output: str
    channels: int
    sites: list[str]
    error: float | None = None
    parameters: Change = field(default_factory=Change, metadata=STATED)
    macs: Change = field(default_factory=Change, metadata=STATED)


@dataclass(kw_only=True)
class NarrowReport:
    """Channels of which some were left out: ``name`` reads them, ``maker`` makes them, ``output`` is what ``name`` makes.

    ``error``: E|W x - (M x' + b)|^2 as a part of the variance of W x, as fitted.
    """

    name: str
    maker: str
    output: str
    channels: Change
    error: float | None = None


@dataclass
class Permutation:
    """Tensors that have the channels of other tensors in another order.

    ``tensors`` maps the name of each to that of the tensor it stands for, which is the original
    model's where that has it: ``tensor = former[:, order]``.
    """

    tensors: dict[str, str]
    order: list[int]


@dataclass
class Totals:
    """Counts of the whole model; ``pointwise_parameters`` of all pointwise convolutions."""

    parameters: Change = field(default_factory=Change)
    macs: Change = field(default_factory=Change)
    pointwise_parameters: Change = field(default_factory=Change)
    file_bytes: Change = field(default_factory=Change)


@dataclass
class RewriteReport:
    """Everything that a rewrite has to say; see the fields.

    ``folded``, ``merged``, ``removed``, ``inputs_removed`` and ``permuted`` list what was changed
    outside the sites themselves; ``permutations`` has the tensors whose channels lie in another order
    in ``permuted`` nodes. ``passes`` has what passes of other packages changed, by their names.
    ``blocks`` are the residual blocks that were collapsed, ``narrowed`` the channels of which some are gone. ``calibration``, ``preprocessing``, ``damage``, ``lowering`` and ``quantization``
    belong to steps that a plain compress does not take, and are ``None`` then. ``verify`` and
    ``benchmark`` are what those commands measured.
    """

    options: OptionsReport = field(default_factory=OptionsReport)
    totals: Totals = field(default_factory=Totals, metadata=STATED)
    sites: list[SiteReport] = field(default_factory=list, metadata=STATED)
    blocks: list[BlockReport] = field(default_factory=list)
    narrowed: list[NarrowReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checks: dict[str, str] = field(default_factory=dict)
    input_shapes: dict[str, list[int]] = field(default_factory=dict)
    folded: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    inputs_removed: list[str] = field(default_factory=list)
    permuted: list[str] = field(default_factory=list)
    permutations: list[Permutation] = field(default_factory=list)
    calibration: CalibrationReport | None = None
    preprocessing: Preprocessing | None = None
    selection: SelectionReport | None = None
    passes: dict[str, list[str]] = field(default_factory=dict)
    damage: DamageReport | None = None
    lowering: LoweringReport | None = None
    quantization: QuantizationReport | None = None
    finetune: FinetuneReport | None = None
    verify: VerifyReport | None = None
    benchmark: BenchmarkReport | None = None
    tool: str = f"onnx-igpc {__version__}"
    version: int = REPORT_VERSION

    @property
    def rewritten(self) -> list[SiteReport]:
        return [site for site in self.sites if site.rewritten]

    @property
    def kept(self) -> list[SiteReport]:
        return [site for site in self.sites if site.status == "kept"]

    def inherit(self, earlier: RewriteReport) -> None:
        """Take over what an earlier run on the same model said and this one does not say anew.

        The earlier run's damage is not that of this one, and is left out.
        """
        self.calibration = self.calibration or earlier.calibration
        self.preprocessing = self.preprocessing or earlier.preprocessing
        # A run that reorders channels builds on the orders of the run before.
        self.permutations = self.permutations or earlier.permutations
        for name in (
            "blocks",
            "narrowed",
            "folded",
            "merged",
            "permuted",
            "removed",
            "inputs_removed",
        ):
            before = getattr(earlier, name)
            setattr(self, name, [*before, *(x for x in getattr(self, name) if x not in before)])

    def adopt(self, other: RewriteReport) -> None:
        """Take over what was measured or drawn of the same model and is in ``other`` alone.

        Raises:
            UsageError: ``other`` tells of other sites, so that it is of another model.
        """
        theirs = {site.name: site for site in other.sites}
        if theirs and self.sites and set(theirs) != {site.name for site in self.sites}:
            raise UsageError("the reports to merge are of different models: their sites differ")
        for name in ("verify", "benchmark", "damage"):
            setattr(self, name, getattr(self, name) or getattr(other, name))
        for part in fields(Totals):
            ours, known = getattr(self.totals, part.name), getattr(other.totals, part.name)
            ours.before = known.before if ours.before is None else ours.before
            ours.after = known.after if ours.after is None else ours.after
        for site in self.sites:
            if (twin := theirs.get(site.name)) is not None and twin.thumbnails:
                site.thumbnails = {**twin.thumbnails, **(site.thumbnails or {})}

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dictionaries, strings and numbers."""
        values: dict[str, Any] = to_values(self)
        return values

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RewriteReport:
        """The report that :meth:`to_dict` was made from.

        Raises:
            ModelError: a version that this release does not know, or a field of the wrong kind.
        """
        if not isinstance(data, Mapping) or data.get("version") != REPORT_VERSION:
            found = data.get("version") if isinstance(data, Mapping) else None
            raise ModelError(
                f"the report has version {found!r}, but this release reads version "
                f"{REPORT_VERSION}: use the release of onnx-igpc that wrote it"
            )
        try:
            _check_total(data.get("sites"))
            return from_values(cls, data)
        except (ValueError, UsageError) as error:
            raise ModelError(f"the report is damaged: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> RewriteReport:
        """The report in ``text``.

        Raises:
            ModelError: not JSON, or as :meth:`from_dict`.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"the report is not JSON: {error}") from error
        return cls.from_dict(data)


def _check_total(sites: object) -> None:
    """Refuse sites whose layouts together would take the memory of no real model; raises ValueError."""
    total = 0
    for site in sites if isinstance(sites, list) else ():
        try:
            total += layout_size(site["layout"])
        except (LookupError, TypeError, ValueError, AttributeError):
            continue  # there is none, or reading it says what is wrong
        if total > MAX_CHANNELS:
            raise ValueError(f"the layouts of sites have more than {MAX_CHANNELS} channels")


def describe_interleave(layout: GroupLayout) -> str | None:
    """Where the layout interleaves channels, in words."""
    if layout.interleave is not None:
        return "between K and L"
    if layout.output_interleave is not None:
        return "after K"
    return None
