"""From values to places on a chart, and the values worth a line across it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on a way of the given length, linear or in logarithms."""

    low: float
    high: float
    length: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """How far from ``low`` the value lies; at the ends where it lies beyond them."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.length * (at - low) / (high - low) if high > low else 0.0


def round_ticks(high: float, about: int = 3) -> list[float]:
    """Round values above 0, about so many, the last of them no more than ``high``."""
    if not (high > 0 and math.isfinite(high)):
        return []
    rough = high / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(
        magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= rough * 0.999
    )
    return [step * index for index in range(1, int(high / step * 1.0001) + 1)]


def decades(low: float, high: float, most: int = 5) -> list[float]:
    """Powers of ten from ``low`` to ``high``, evenly thinned to no more than ``most``."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / most))
    return [10.0**power for power in range(first, last + 1, stride)]


def steps_path(values: Sequence[float], places: Sequence[float], height: float, gap: float) -> str:
    """Bars from the bottom at ``height``, one unit wide less the gap: the ``d`` of an SVG path."""
    return "".join(
        f"M{_short(x + gap / 2)} {_short(height)}v{_short(-value)}h{_short(1 - gap)}v{_short(value)}z"
        for x, value in zip(places, values, strict=True)
        if value > 0
    )


def stems_path(values: Sequence[float], places: Sequence[float], height: float) -> str:
    """Upright lines from the bottom at ``height``: the ``d`` of an SVG path."""
    return "".join(
        f"M{_short(x)} {_short(height)}v{_short(-value)}"
        for x, value in zip(places, values, strict=True)
    )


def tick_text(value: float) -> str:
    """A round count with its unit: 20k, 2.5M."""
    for power, unit in ((9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:g}{unit}"
    return f"{value:g}"


def line_path(points: Sequence[tuple[float, float]]) -> str:
    """A line through the points: the ``d`` of an SVG path."""
    return "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points) if points else ""


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"
