"""Data in parts: to calibrate with, to choose by, and to measure on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_igpc.calibration.held_samples import HeldSamples, Part

# Of fewer samples, no part is held out: what could be measured on it would mean nothing.
_FEWEST = 25
ENOUGH = 100
_HELD_OUT = 40
_SHARE = 5


@dataclass(frozen=True)
class Parts:
    """``choose`` and ``measure`` are ``None`` where there are too few samples, or none is chosen."""

    calibrate: Part
    choose: Part | None
    measure: Part | None


def split(held: HeldSamples, *, choosing: bool) -> Parts:
    """Hold out a fifth to measure on, 40 at least where there are 100 or more, and a fifth to choose by.

    Held-out samples lie evenly spaced over the data, the same ones every time. ``choosing``: whether
    anything is chosen, so that samples are needed for it.
    """
    left = held.all()
    size = len(held)
    if size < _FEWEST:
        return Parts(left, None, None)
    fifth = size // _SHARE
    measure = _spread(left, max(fifth, _HELD_OUT if size >= ENOUGH else 0))
    left = left.without(measure)
    if not choosing:
        return Parts(left, None, measure)
    choose = _spread(left, fifth)
    return Parts(left.without(choose), choose, measure)


def _spread(part: Part, count: int) -> Part:
    """So many of the samples, evenly spaced."""
    size = len(part.numbers)
    places = (np.arange(count) * size + size // 2) // count
    return Part(part.held, [part.numbers[place] for place in places.tolist()])
