"""What is tried, the cheap and the likely first; what an earlier result speaks against is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from onnx_igpc.compression.optimization.attempts import Attempts
from onnx_igpc.compression.optimization.task import Task
from onnx_igpc.compression.optimization.training import torch_is_there, train
from onnx_igpc.compression.optimization.workbench import Workbench
from onnx_igpc.evaluation.damage import damage_of
from onnx_igpc.graph.model import file_bytes
from onnx_igpc.report.optimization import ORIGINAL, PointReport
from onnx_igpc.runtime.racing import MIN_TURN_SECONDS

FOLDED = "original with BatchNorm folded"
INT8 = "int8"
INT8_INSIDE = "int8 but for its ends"
FOR_INT8 = "trained for int8"
INT8_TRAINED = f"int8, {FOR_INT8}"
LEAST_ROUNDS = 20
"""Of a race."""
# How many models a race is, when time was short.
_LIKELY_MODELS = 4
_LOWERED = ", lowered"


@dataclass
class Exploration:
    """The models that were made and measured, in order; the original is the first."""

    task: Task
    bench: Workbench
    points: list[PointReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.attempts = Attempts(self.task, self.bench)

    def run(self) -> list[PointReport]:
        """Try everything; what cannot be made or measured is left out, as its step says."""
        precision = self.task.options.precision
        original = self._measured(ORIGINAL)
        if original is None:
            return []
        turn = turn_seconds(self.bench, original)
        self.bench.clock.race = LEAST_ROUNDS * _LIKELY_MODELS * turn
        if precision != "int8" and self.attempts.fold(FOLDED):
            self._measured(FOLDED)
        if precision != "fp32":
            self._int8_alone()
        options = self.task.options
        self._smaller(options.shorter, _blocks_to, lambda share, _: self._blocks(share))
        self._smaller(options.shares, _cut_to, self._cut)
        return self.points

    def _smaller(
        self,
        shares: Sequence[int],
        name: Callable[[int], str],
        made: Callable[[int, bool], bool],
    ) -> None:
        """Make one of each share, until one says that a smaller one cannot hold the promise."""
        for number, share in enumerate(shares):
            if made(share, number == 0):
                continue
            why = self._why_not(name(share), share)
            for other in shares[number + 1 :]:
                self.bench.skip(name(other), "compress", why)
            break

    def _int8_alone(self) -> None:
        if not self.attempts.quantize(INT8, ORIGINAL):
            return
        found = self._measured(INT8, precision="int8")
        if found is not None and found.holds:
            for name, kind in ((INT8_INSIDE, "quantize"), (FOR_INT8, "finetune")):
                self.bench.skip(name, kind, "int8 throughout holds the promise")
            return
        if self.attempts.quantize(INT8_INSIDE, ORIGINAL, kept=True):
            self._measured(INT8_INSIDE, precision="int8")
        if not torch_is_there():
            self.bench.skip(FOR_INT8, "finetune", "torch is not installed")
        elif train(
            self.task, self.bench, FOR_INT8, ORIGINAL, precision="int8"
        ) and self.attempts.quantize(INT8_TRAINED, FOR_INT8):
            self._measured(INT8_TRAINED, precision="int8", trained=True)

    def _blocks(self, share: int) -> bool:
        """A model with residual blocks collapsed, and what can be made of it; as :meth:`_cut`."""
        name = _blocks_to(share)
        if not self.attempts.shorten(name, share):
            return False
        found = self._measured(name, cut=True)
        return found is not None and self._carried_on(self._trained(name, found, lower=False))

    def _cut(self, share: int, first: bool) -> bool:
        """A cut, and what can be made of it; whether a smaller one can hold the promise."""
        cut = _cut_to(share)
        if not self.attempts.cut(cut, share, first=first):
            return False
        lowered = f"{cut}{_LOWERED}"
        if not self.attempts.lower(lowered, cut):
            return False
        found = self._measured(lowered, cut=True)
        if found is None:
            return False
        speed = self.attempts.speed(lowered)
        if speed is not None and speed.value <= 1:
            why = f"no faster than dense: {speed.value:.2f} x ({speed.low:.2f} to {speed.high:.2f})"
            self.bench.skip(f"{cut}, trained", "finetune", why)
            return self._likely(found)
        return self._carried_on(self._trained(cut, found))

    def _carried_on(self, best: PointReport) -> bool:
        """Quantize what is likely to hold the promise; whether it is."""
        if not self._likely(best):
            return False
        if self.task.options.precision != "fp32":
            name = f"{best.name.removesuffix(_LOWERED)}, int8"
            if self.attempts.quantize(name, best.name):
                self._measured(name, precision="int8", cut=True, trained=best.trained)
        return True

    def _why_not(self, cut: str, share: int) -> str:
        """Why nothing smaller than a cut is tried."""
        if any(point.name.startswith(cut) for point in self.points):
            return f"{share} % loses too much already"
        return f"there is no {cut}: {self.bench.steps[-1].note}"

    def _trained(self, cut: str, found: PointReport, *, lower: bool = True) -> PointReport:
        """The better of a cut, as it was measured, and what training makes of it, lowered as well."""
        trained = f"{cut}, trained"
        if found.holds:
            self.bench.skip(trained, "finetune", "the cut holds the promise as it is")
            return found
        if not torch_is_there():
            self.bench.skip(trained, "finetune", "torch is not installed")
            return found
        if not train(self.task, self.bench, trained, cut):
            return found
        again = f"{trained}{_LOWERED}" if lower else trained
        if lower and not self.attempts.lower(again, trained):
            return found
        better = self._measured(again, cut=True, trained=True)
        return found if better is None or loss(better) > loss(found) else better

    def _measured(
        self,
        name: str,
        *,
        precision: Literal["fp32", "int8"] = "fp32",
        cut: bool = False,
        trained: bool = False,
    ) -> PointReport | None:
        """Measure a model that was made, and put it among the points."""
        if not self.attempts.measure(name):
            return None
        damage = damage_of(self.attempts.found(name))
        path = self.task.place(name) if name == ORIGINAL else self.task.file(name)
        point = PointReport(
            name=name,
            file=path,
            precision=precision,
            cut=cut,
            trained=trained,
            damage=damage,
            holds=name == ORIGINAL or self.task.promise.holds(damage),
            file_bytes=file_bytes(self.bench.folder / path),
        )
        self.points.append(point)
        return point

    def _likely(self, point: PointReport) -> bool:
        """Whether a model keeps the promise by its figure, its interval left aside."""
        promise, damage = self.task.promise, point.damage
        if promise.kind == "agreement":
            return (damage.agreement or 0.0) >= promise.bound
        if promise.kind == "accuracy":
            return damage.accuracy_change is not None and damage.accuracy_change[0] >= promise.bound
        return promise.holds(damage)


def turn_seconds(bench: Workbench, original: PointReport) -> float:
    """A turn of a race, by how long it took to verify the original against itself."""
    verified = bench.steps[0].seconds / original.damage.samples / 2
    return max(2 * verified, 2 * MIN_TURN_SECONDS)


def _blocks_to(share: int) -> str:
    return f"cut of blocks to {share} %"


def _cut_to(share: int) -> str:
    return f"cut to {share} %"


def loss(point: PointReport) -> float:
    """The damage of a model as one number, for comparing: answers that differ, or the relative error."""
    damage = point.damage
    if damage.agreement is not None:
        return 1.0 - damage.agreement
    return damage.relative_error or 0.0
