"""Data in parts: to calibrate with, to choose by, and to measure on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnx_igpc.data.batches import Batch, Data, SourceDescription
from onnx_igpc.data.preprocessing import Preprocessing

# Of fewer samples, no part is held out: what could be measured on it would mean nothing.
_FEWEST = 25
ENOUGH = 100
_HELD_OUT = 40
_SHARE = 5


class Part:
    """Some samples of data, in their order and without labels, as often as needed.

    ``fixed``: the rows that every batch must have, if the model fixes them.
    """

    def __init__(self, whole: Data, wanted: np.ndarray, fixed: int | None) -> None:
        self._whole = whole
        self._wanted = wanted
        self._fixed = fixed
        self.size = int(np.count_nonzero(wanted))
        self.labelled = False
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = whole.preprocessing
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Batch]:
        start = 0
        for batch in self._whole:
            rows = np.flatnonzero(self._wanted[start : start + batch.count])
            start += batch.count
            if not len(rows):
                continue
            count = len(rows)
            if self._fixed is not None:
                rows = np.pad(rows, (0, self._fixed - count), mode="edge")
            feeds = {name: values[rows] for name, values in batch.feeds.items()}
            yield Batch(feeds, None, count)
        self.skipped = self._whole.skipped

    def describe(self) -> SourceDescription:
        """As the whole, with the samples of this part."""
        return replace(self._whole.describe(), samples=self.size, labelled=False)


@dataclass(frozen=True)
class Parts:
    """``choose`` and ``measure`` are ``None`` where there are too few samples, or none is chosen."""

    calibrate: Part
    choose: Part | None
    measure: Part | None


def split(data: Data, fixed: int | None, *, choosing: bool) -> Parts:
    """Hold out a fifth to measure on, 40 at least where there are 100 or more, and a fifth to choose by.

    Held-out samples lie evenly spaced over the data, the same ones every time. ``choosing``: whether
    anything is chosen, so that samples are needed for it.
    """
    size = data.size
    left = np.ones(size, bool)
    if size < _FEWEST:
        return Parts(Part(data, left, fixed), None, None)
    fifth = size // _SHARE
    measured = _take(left, max(fifth, _HELD_OUT if size >= ENOUGH else 0))
    chosen = _take(left, fifth) if choosing else None
    return Parts(
        Part(data, left, fixed),
        Part(data, chosen, fixed) if chosen is not None else None,
        Part(data, measured, fixed),
    )


def _take(left: np.ndarray, count: int) -> np.ndarray:
    """Take ``count`` of the samples that are left, evenly spaced, out of ``left``."""
    free = np.flatnonzero(left)
    taken = free[(np.arange(count) * len(free) + len(free) // 2) // count]
    left[taken] = False
    mask = np.zeros_like(left)
    mask[taken] = True
    return mask
