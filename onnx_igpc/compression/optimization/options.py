"""What an optimization is to keep, where its result will run, and how long it may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from onnx_igpc.errors import UsageError
from onnx_igpc.graph.model import PathLike
from onnx_igpc.lowering.options import Lowering
from onnx_igpc.planning.promise import Promise
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.torch_bridge.training.recipe import Recipe

Precision = Literal["fp32", "int8", "best"]
DEFAULT_SECONDS = 1800.0


@dataclass(frozen=True)
class Optimization:
    """What is wanted of an optimization; see :func:`~onnx_igpc.compression.optimization.optimize.optimize`.

    Args:
        keep: the promise that the chosen model holds, as in :class:`~onnx_igpc.planning.options.Keep`:
            ``"agreement=95%"``, ``"output=0.05"`` or, with labelled data to check by, ``"accuracy=-1"``.
            ``None`` for the best agreement that so many held-out images can show, or ``output=0.05``
            where the model has no class scores.
        precision: ``"fp32"`` tries no quantized models, ``"int8"`` no others, ``"best"`` both. The
            original is raced, and kept where nothing else holds, whatever is said here.
        setting: where and how the model will run: what is raced.
        seconds: how long all of it may take.
        shorter: the lengths that are tried, as what they leave of the time, in per cent; the mildest first: whole
            residual blocks are collapsed.
        shares: the cuts that are tried, as what they leave of the multiply-accumulates of pointwise
            convolutions, in per cent; the mildest first.
        recipe: how a cut is trained back; as many epochs as there is time for, if it leaves them open.
        cache: where races of single layers are kept, as in :class:`~onnx_igpc.lowering.options.Lowering`.

    Raises:
        UsageError: a value that cannot be meant.
    """

    keep: str | None = None
    precision: Precision = "best"
    setting: Setting = field(default_factory=Setting)
    seconds: float = DEFAULT_SECONDS
    shorter: Sequence[int] = (90, 80, 70)
    shares: Sequence[int] = (85, 70, 55, 40)
    recipe: Recipe = field(default_factory=Recipe)
    cache: PathLike | bool = True

    def __post_init__(self) -> None:
        if self.keep is not None:
            Promise.parse(self.keep)
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise UsageError(f"precision must be one of {known}, not {self.precision!r}")
        if not self.seconds > 0:
            raise UsageError(f"`seconds` must be above 0, not {self.seconds:g}")
        object.__setattr__(self, "shorter", tuple(self.shorter))
        object.__setattr__(self, "shares", tuple(self.shares))
        for share in (*self.shorter, *self.shares):
            if not 0 < share < 100:
                raise UsageError(f"a share must lie between 0 and 100 %, not {share}")

    @property
    def lowering(self) -> Lowering:
        """How what is tried is written for the place where it will run."""
        return Lowering(setting=self.setting, cache=self.cache)
