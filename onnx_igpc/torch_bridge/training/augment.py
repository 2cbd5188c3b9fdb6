"""Augmentation of training samples: drawn for a whole epoch at once, applied sample by sample.

What happens to a sample depends on the seed, the epoch and its index alone: it is the same however
many processes and workers load the data, and after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_igpc.errors import UsageError

# Distinguishes the draws from those of the order of the data, which has the same seed and epoch.
_STREAM = 1
_SHIFT_SHARE = 16


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a sample.

    flip: mirror it left to right, half of the time. shift: move it by up to so many pixels in both
    directions, the edge repeated; 0 for none, None for 1/16 of the shorter side, at least one.
    crop: cut images at a random place of what ``resize`` leaves, rather than at the centre.
    """

    flip: bool = False
    shift: int | None = 0
    crop: bool = False

    @property
    def does_anything(self) -> bool:
        return self.flip or self.crop or self.shift != 0

    def describe(self) -> list[str]:
        """As the words that :func:`parse_augmentation` takes."""
        shift = (
            [] if self.shift == 0 else ["shift" if self.shift is None else f"shift={self.shift}"]
        )
        found = ["flip"] * self.flip + shift + ["crop"] * self.crop
        return found or ["none"]


def parse_augmentation(words: Sequence[str] | None, *, images: bool) -> Augmentation:
    """Read ``flip``, ``shift``, ``shift=4``, ``crop``, ``none``; None means shift for images.

    Raises:
        UsageError: another word, or ``crop`` for arrays, which have nothing to cut from.
    """
    if words is None:
        return Augmentation(shift=None) if images else Augmentation()
    flip, shift, crop = False, None, False
    shifts = False
    for word in words:
        name, equals, value = word.partition("=")
        if name == "shift" and (not equals or (value.isdecimal() and int(value) > 0)):
            shifts, shift = True, int(value) if equals else None
        elif word == "flip":
            flip = True
        elif word == "crop":
            crop = True
        elif word != "none" or len(words) > 1:
            raise UsageError(
                f"`augment` {word!r}: choose from flip, shift, shift=PIXELS, crop; or none alone"
            )
    if crop and not images:
        raise UsageError("`augment` crop is for images: arrays are fed as they are")
    return Augmentation(flip, shift if shifts else 0, crop)


@dataclass(frozen=True)
class Draw:
    """What is done to one sample. moves and places: vertical, horizontal; in [-1, 1] and [0, 1)."""

    flip: bool
    moves: tuple[float, float]
    places: tuple[float, float]


class EpochDraws:
    """The draws of all samples in one epoch."""

    def __init__(self, augmentation: Augmentation, size: int, seed: int, epoch: int) -> None:
        self._augmentation = augmentation
        generator = np.random.default_rng((seed, epoch, _STREAM))
        self._flips = generator.random(size) < 0.5
        self._moves = generator.uniform(-1, 1, (size, 2))
        self._places = generator.random((size, 2))

    def __getitem__(self, index: int) -> Draw:
        move, place = self._moves[index], self._places[index]
        return Draw(
            self._augmentation.flip and bool(self._flips[index]),
            (float(move[0]), float(move[1])),
            (float(place[0]), float(place[1])),
        )


def flip_and_shift(
    values: np.ndarray, augmentation: Augmentation, draw: Draw, axes: tuple[int, int]
) -> np.ndarray:
    """A sample without its batch dimension, mirrored and moved; ``axes``: its height and width."""
    vertical, horizontal = axes
    rows, columns = (np.arange(values.shape[axis]) for axis in axes)
    if draw.flip:
        columns = columns[::-1]
    reach = augmentation.shift
    if reach is None:
        reach = max(min(len(rows), len(columns)) // _SHIFT_SHARE, 1)
    if reach:
        # Rounding to [-reach, reach] with equal shares: the ends of the range are half as wide.
        down, right = (min(int((move + 1) / 2 * (2 * reach + 1)), 2 * reach) for move in draw.moves)
        rows = rows[np.clip(np.arange(len(rows)) + down - reach, 0, len(rows) - 1)]
        columns = columns[np.clip(np.arange(len(columns)) + right - reach, 0, len(columns) - 1)]
    return values.take(rows, axis=vertical).take(columns, axis=horizontal)


def cut(values: np.ndarray, size: tuple[int, int], draw: Draw, axes: tuple[int, int]) -> np.ndarray:
    """A piece of ``size`` pixels at the drawn place; the sample is at least as large."""
    for axis, length, place in zip(axes, size, draw.places, strict=True):
        start = int(place * (values.shape[axis] - length + 1))
        values = values.take(np.arange(start, start + length), axis=axis)
    return values
