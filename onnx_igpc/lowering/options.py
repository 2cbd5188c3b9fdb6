"""How a rewritten model is written for a runtime, and where that is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from onnx_igpc.errors import UsageError, did_you_mean
from onnx_igpc.graph.model import PathLike
from onnx_igpc.runtime.setting import Setting

AUTO, LITERAL = "auto", "literal"
Precision = Literal["float32", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FLOAT32, INT8 = PRECISIONS


@dataclass(frozen=True)
class Lowering:
    """What is chosen, and by which measurements.

    Args:
        kind: ``"auto"`` measures on this machine and takes the fastest for each site; a name of
            :data:`~onnx_igpc.lowering.catalogue.LOWERINGS` takes that one wherever it applies.
            ``"literal"``, of compress under a budget of time, chooses by the times that ``"auto"``
            would reach, and writes what can be trained and lowered afterwards.
        setting: where and how the model will run: what is measured.
        allow_slower: rewrite what is slower than dense, too, and never fold it back.
        cache: a folder for what was measured, ``True`` for the user's, ``False`` for none.
        precision: ``"int8"`` measures models as they will run once they are quantized; what is
            written is in float32 all the same, for :func:`onnx_igpc.quantize`.

    Raises:
        UsageError: a precision that does not exist, or int8 where nothing is measured.
    """

    kind: str = AUTO
    setting: Setting | None = None
    allow_slower: bool = False
    cache: PathLike | bool = True
    precision: Precision = FLOAT32

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            hint = did_you_mean(str(self.precision), PRECISIONS)
            raise UsageError(
                f"unknown precision {self.precision!r}: choose from {', '.join(PRECISIONS)}{hint}"
            )
        if self.kind != LITERAL:
            self.check_measured()

    def check_measured(self) -> None:
        """Raises UsageError where int8 is asked for, and nothing is measured."""
        if self.precision == INT8 and self.kind != AUTO:
            raise UsageError(
                f"`precision` int8 is for what is measured, and {self.kind!r} is not: leave it out"
            )
