"""Counts, shares and names as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnx_igpc.report.tree import Change

if TYPE_CHECKING:
    pass


def shorten(name: str, width: int) -> str:
    """``name`` with its middle left out where it is too long for a column."""
    if len(name) <= width:
        return name
    tail = (width - 1) * 2 // 3
    return f"{name[: width - 1 - tail]}…{name[-tail:]}"


def count_text(value: int | None) -> str:
    """A count in three digits and a unit: 12.3k, 4.56M."""
    if value is None:
        return "?"
    number = float(value)
    for unit in ("", "k", "M", "G"):
        if number < 999.5:
            digits = 0 if unit == "" or number >= 99.95 else 1 if number >= 9.995 else 2
            return f"{number:.{digits}f}{unit}"
        number /= 1000.0
    return f"{number:.3g}T"


def exact(value: int | None) -> str:
    """A count with thousands separated."""
    return "?" if value is None else f"{value:,}"


def percent(change: Change) -> str:
    """What is left, in per cent."""
    ratio = change.ratio
    return "" if ratio is None else f"{100 * ratio:.1f}%"


def losses_text(tried: Mapping[str, float | None]) -> str:
    """What was tried, each with the loss that it came to, None where it diverged."""
    known = {name: "diverged" if loss is None else f"{loss:.4g}" for name, loss in tried.items()}
    return ", ".join(f"{name} ({loss})" for name, loss in known.items())
