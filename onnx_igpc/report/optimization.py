"""What an optimization tried, measured and chose, as it is in its report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from onnx_igpc._version import __version__
from onnx_igpc.errors import ModelError
from onnx_igpc.report.sections import DamageReport
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.report.typed_json import IfKnown, from_values, to_values
from onnx_igpc.runtime.racing import Interval

ORIGINAL = "original"
OPTIMIZATION_VERSION = 1


@dataclass(kw_only=True)
class ImagesReport:
    """How many samples of ``source`` models were fitted to, chosen by and, where that is not 0, judged on
    after that."""

    source: str
    total: int
    fit: int
    choose: int
    state: int


@dataclass(kw_only=True)
class PictureReport:
    """A sample as the model gets it: its shape and values, and a picture as a ``data:`` address.

    ``color``: the order of its channels, which the picture does not show.
    """

    shape: list[int]
    color: IfKnown[str] = None
    low: float
    high: float
    mean: float
    deviation: float
    picture: str

    @property
    def text(self) -> str:
        """Its shape, order of channels and values in a line."""
        order = f", {self.color}" if self.color is not None else ""
        shape = " x ".join(map(str, self.shape))
        return f"{shape}{order}, values {self.low:.3g} to {self.high:.3g}, mean {self.mean:.3g}"


@dataclass(kw_only=True)
class StepReport:
    """A step that was taken or not: how long it took, the command that repeats it, and what to know of it.

    ``kind`` is the command's name, or ``fold``. ``skipped`` for want of time or of a reason to, ``failed`` with the
    tool's own message.
    """

    name: str
    kind: str
    status: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    command: IfKnown[str] = None
    note: IfKnown[str] = None


@dataclass(kw_only=True)
class PointReport:
    """A model that was tried.

    ``damage`` was measured on what is chosen by, ``holds`` says whether the promise holds there.
    ``speedup``: over the original, raced in one process.
    """

    name: str
    file: str
    precision: Literal["fp32", "int8"]
    cut: bool
    trained: bool
    damage: DamageReport
    holds: bool
    file_bytes: int
    milliseconds: IfKnown[float] = None
    speedup: IfKnown[Interval] = None


@dataclass(kw_only=True)
class StatedReport:
    """What is stated of the chosen model: measured on which data, which chose between so many models.

    ``chosen_among``: 1 where the data chose nothing.
    """

    data: str
    damage: DamageReport
    chosen_among: int
    accuracy: IfKnown[tuple[float, float]] = None


@dataclass(kw_only=True)
class OptimizationReport:
    """Everything that an optimization has to say. ``report`` is that of the chosen model, with its
    verification and the race; ``verdict`` five sentences; ``key`` tells runs apart."""

    key: str
    model: str
    promise: str
    promise_given: bool
    where: str
    limit_seconds: float
    seconds: float = 0.0
    images: ImagesReport
    pictures: list[PictureReport]
    steps: list[StepReport]
    points: list[PointReport]
    chosen: str
    stated: list[StatedReport]
    verdict: list[str]
    warnings: list[str] = field(default_factory=list)
    report: RewriteReport
    tool: str = f"onnx-igpc {__version__}"
    version: int = OPTIMIZATION_VERSION

    @property
    def chosen_point(self) -> PointReport:
        """The point of the chosen model."""
        return next(point for point in self.points if point.name == self.chosen)

    @property
    def original(self) -> PointReport:
        """The point of the model that was given."""
        return next(point for point in self.points if point.name == ORIGINAL)

    def to_json(self) -> str:
        """As JSON, for report.json."""
        return json.dumps(to_values(self), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> OptimizationReport:
        """The report in ``text``.

        Raises:
            ModelError: it is none.
        """
        try:
            data = json.loads(text)
            if not isinstance(data, dict) or data.get("version") != OPTIMIZATION_VERSION:
                raise ValueError("of another version")
            return from_values(cls, data)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"not the report of an optimization: {error}") from error
