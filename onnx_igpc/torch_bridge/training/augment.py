"""Augmentation of training samples: drawn for a whole epoch at once, applied sample by sample.

What happens to a sample depends on the seed, the epoch and its index alone: it is the same however
many processes and workers load the data, and after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_igpc.errors import UsageError

# Distinguishes the draws from those of the order of the data, which has the same seed and epoch.
_STREAM = 1
_SHIFT_SHARE = 16
# Of a resized crop: part of the image's area, logarithm of its width by its height.
_AREAS, _SHAPES = (0.3, 1.0), (-math.log(4 / 3), math.log(4 / 3))
_MIXED_SHARE = 1 / 3


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a sample.

    flip: mirror it left to right, half of the time. shift: move it by up to so many pixels in both
    directions, the edge repeated; 0 for none, None for 1/16 of the shorter side, at least one.
    crop: cut images at a random place of what ``resize`` leaves, rather than at the centre.
    resized_crop: enlarge or shrink a random part of the image, 0.3 to 1 of its area, to what the model takes.
    mixup: lay another sample over a third of the samples, with a weight of up to a half (Zhang et al.,
    "mixup: Beyond Empirical Risk Minimization", 2018); it keeps its label, and a teacher sees the mixed one.
    """

    flip: bool = False
    shift: int | None = 0
    crop: bool = False
    resized_crop: bool = False
    mixup: bool = False

    @property
    def does_anything(self) -> bool:
        return self != Augmentation()

    def describe(self) -> list[str]:
        """As the words that :func:`parse_augmentation` takes."""
        shift = (
            [] if self.shift == 0 else ["shift" if self.shift is None else f"shift={self.shift}"]
        )
        found = ["flip"] * self.flip + shift + ["crop"] * self.crop
        found += ["resized-crop"] * self.resized_crop + ["mixup"] * self.mixup
        return found or ["none"]


def parse_augmentation(words: Sequence[str] | None, *, images: bool) -> Augmentation:
    """Read ``flip``, ``shift``, ``shift=4``, ``crop``, ``resized-crop``, ``mixup``, ``none``; None means
    shift for images.

    Raises:
        UsageError: another word, both crops, or one for arrays, which have nothing to cut from.
    """
    if words is None:
        return Augmentation(shift=None) if images else Augmentation()
    shift: int | None = 0
    given = set()
    for word in words:
        name, equals, value = word.partition("=")
        if name == "shift" and (not equals or (value.isdecimal() and int(value) > 0)):
            shift = int(value) if equals else None
        elif word in ("flip", "crop", "resized-crop", "mixup"):
            given.add(word)
        elif word != "none" or len(words) > 1:
            raise UsageError(
                f"`augment` {word!r}: choose from flip, shift, shift=PIXELS, crop, resized-crop, mixup; "
                "or none alone"
            )
    crops = sorted(given & {"crop", "resized-crop"})
    if crops and not images:
        raise UsageError(f"`augment` {crops[0]} is for images: arrays are fed as they are")
    if len(crops) > 1:
        raise UsageError("`augment` crop and resized-crop exclude each other: give one")
    return Augmentation(
        "flip" in given, shift, "crop" in given, "resized-crop" in given, "mixup" in given
    )


@dataclass(frozen=True)
class Mix:
    """The sample that is laid over another: its index, its weight, and what is done to it."""

    index: int
    weight: float
    draw: Draw


@dataclass(frozen=True)
class Draw:
    """What is done to one sample. moves and places: vertical, horizontal; in [-1, 1] and [0, 1).

    part: of the area, and width by height, of a resized crop. mix: what is laid over it, if anything is.
    """

    flip: bool
    moves: tuple[float, float]
    places: tuple[float, float]
    part: tuple[float, float] = (1.0, 1.0)
    mix: Mix | None = None


class EpochDraws:
    """The draws of all samples in one epoch."""

    def __init__(self, augmentation: Augmentation, size: int, seed: int, epoch: int) -> None:
        self._augmentation = augmentation
        generator = np.random.default_rng((seed, epoch, _STREAM))
        self._flips = generator.random(size) < 0.5
        self._moves = generator.uniform(-1, 1, (size, 2))
        self._places = generator.random((size, 2))
        self._areas = generator.uniform(*_AREAS, size)
        self._shapes = np.exp(generator.uniform(*_SHAPES, size))
        self._mixed = generator.random(size) < _MIXED_SHARE
        self._others = generator.integers(size, size=size)
        self._weights = generator.uniform(0, 0.5, size)

    def __getitem__(self, index: int) -> Draw:
        draw = self._alone(index)
        if not (self._augmentation.mixup and self._mixed[index]):
            return draw
        other = int(self._others[index])
        return replace(draw, mix=Mix(other, float(self._weights[index]), self._alone(other)))

    def _alone(self, index: int) -> Draw:
        move, place = self._moves[index], self._places[index]
        return Draw(
            self._augmentation.flip and bool(self._flips[index]),
            (float(move[0]), float(move[1])),
            (float(place[0]), float(place[1])),
            (float(self._areas[index]), float(self._shapes[index])),
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


def part_of(width: int, height: int, draw: Draw) -> tuple[int, int, int, int]:
    """The part of an image that a resized crop shows: left, top, right, bottom, in pixels."""
    area, shape = draw.part
    wide = min(max(round((width * height * area * shape) ** 0.5), 1), width)
    high = min(max(round((width * height * area / shape) ** 0.5), 1), height)
    down, right = draw.places
    left, top = int(right * (width - wide + 1)), int(down * (height - high + 1))
    return left, top, left + wide, top + high


def mixed(
    values: dict[str, np.ndarray], others: dict[str, np.ndarray], weight: float
) -> dict[str, np.ndarray]:
    """A sample with another laid over it, in the same dtypes; values that are no amounts stay: indices of
    32 bits and more, and truth values."""
    found = {}
    for name, value in values.items():
        over, kind = others[name], value.dtype
        if over.shape == value.shape and (kind.kind == "f" or kind in (np.uint8, np.int8)):
            both = value * (1 - weight) + over * weight
            value = (both if kind.kind == "f" else np.rint(both)).astype(kind)
        found[name] = value
    return found
