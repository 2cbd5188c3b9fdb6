"""How a model was quantized, as it is in reports: what was chosen, by what, and what it did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from onnx_igpc.data.batches import DataDescription
from onnx_igpc.report.sections import DamageReport
from onnx_igpc.report.typed_json import IfKnown

# The quantile of the normal distribution that an interval of 95 % reaches to on both sides.
_QUANTILE = 1.959963984540054


def wilson_interval(share: float, samples: int) -> tuple[float, float]:
    """The 95 % interval (Wilson) of a share that was seen on ``samples`` samples."""
    if samples < 1:
        return 0.0, 1.0
    squared = _QUANTILE**2 / samples
    centre = (share + squared / 2) / (1 + squared)
    spread = math.sqrt(squared * max(0.0, share * (1 - share) + squared / 4)) / (1 + squared)
    return max(0.0, centre - spread), min(1.0, centre + spread)


@dataclass(kw_only=True)
class TriedMethod:
    """A way to find ranges, and its damage on the samples that were chosen by.

    ``relative_error``: ``|a - b| / |b|`` of the output that has most of it, with b the float model's;
    ``None`` where no output holds quantities. ``agreement``: the share of equal classes, if known.
    """

    method: str
    relative_error: float | None
    agreement: IfKnown[float] = None


@dataclass(kw_only=True)
class SampleCounts:
    """How many samples were used for what; no sample for two things."""

    calibrated: int
    chosen_by: int = 0
    measured: int = 0


@dataclass(kw_only=True)
class QuantizationReport:
    """How a model was quantized.

    ``activations`` and ``weights`` are types of integers, ``reduce_range`` says whether weights have
    seven bits and ``reason`` why. ``tried``: the methods that were compared. ``integer`` and ``floating``
    count the layers (Conv, Gemm, ...) by whether their weights and inputs are integers; ``excluded`` says
    why nodes stayed in float. ``kernels`` counts what the provider ran in their place, by the profile.
    ``damage`` is against the float model, on samples that were neither calibrated with nor chosen by;
    ``None`` where there were too few. ``opset``: what the model had before, where it had to be raised.
    """

    provider: str
    method: str
    activations: str
    weights: str = "int8"
    symmetric: bool
    reduce_range: bool
    reason: IfKnown[str] = None
    data: DataDescription
    samples: SampleCounts
    tried: list[TriedMethod] = field(default_factory=list)
    integer: dict[str, int] = field(default_factory=dict)
    floating: dict[str, int] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    damage: IfKnown[DamageReport] = None
    opset: IfKnown[int] = None
    kernels: IfKnown[dict[str, int]] = None
    executed: IfKnown[str] = None
    onnxruntime: IfKnown[str] = None
    seconds: IfKnown[float] = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the agreement; ``None`` where there is none."""
        damage = self.damage
        if damage is None or damage.agreement is None:
            return None
        return wilson_interval(damage.agreement, damage.samples)

    def portable(self) -> QuantizationReport:
        return replace(
            self,
            reason=None,
            data=self.data.portable(),
            kernels=None,
            executed=None,
            onnxruntime=None,
            seconds=None,
        )


def damage_text(said: QuantizationReport) -> str | None:
    """What quantizing did to the answers; ``None`` where it was not measured."""
    damage = said.damage
    if damage is None:
        return None
    on = f"on {damage.samples} samples that were neither calibrated with nor chosen by"
    if damage.agreement is not None and said.interval is not None:
        low, high = said.interval
        return (
            f"damage of int8: top-1 agreement with the float model {damage.agreement:.1%} "
            f"({low:.1%} to {high:.1%}) {on}"
        )
    if damage.relative_error is not None:
        return f"damage of int8: relative error {damage.relative_error:.3g} of output {damage.output} {on}"
    return f"damage of int8: nothing could be compared {on}"


def types_text(said: QuantizationReport) -> str:
    """The types of integers, and why weights have as many bits as they do."""
    activations = f"{said.activations}{' without zero point' if said.symmetric else ''}"
    bits = "7 bits" if said.reduce_range else "8 bits"
    why = f" ({said.reason})" if said.reason is not None else ""
    return (
        f"quantized for {said.provider}: activations {activations}, weights {said.weights} with a scale "
        f"for each channel, {bits}{why}"
    )


def counts(numbers: Mapping[str, int]) -> str:
    """As in ``28 Conv, 1 Gemm``."""
    return ", ".join(f"{count} {name}" for name, count in numbers.items())
