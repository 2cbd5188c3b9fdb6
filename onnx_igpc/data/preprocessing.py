"""From an image to what a model takes: explicit, recorded, and the same for every command.

An image is decoded to 8-bit RGB or grayscale, turned as its EXIF data say, resized (bilinear,
antialiased), cropped around its centre, and becomes ``(pixel * scale - mean) / std``. Images are read with Pillow, which is imported
when the first one is.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import IO, Any

import numpy as np

from onnx_igpc.errors import DataError, MissingExtraError, UsageError
from onnx_igpc.graph.inputs import InputSpec

Size = int | tuple[int, int]
LAYOUTS = ("nchw", "nhwc")
COLORS = ("rgb", "bgr", "gray")
MAX_SIDE = 32768
"""Pixels: sides that are larger than any image's would only take memory."""
_IMAGE_RANK = 4
# Pixels are computed as float32.
_MOST_SCALE = 1e30


# Pillow's decoders raise all of these for files that are damaged in different ways.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
)


class CorruptImageError(Exception):
    """An image that cannot be decoded; a few of them in a data set are skipped."""


@dataclass(frozen=True)
class Preprocessing:
    """How images become model inputs.

    resize: an int scales the short side to that many pixels, (height, width) scales to just that.
    crop: a centre crop, a side or (height, width). mean and std: one value or one a channel, in the
    order of ``color``, applied after ``scale``. layout: nchw or nhwc. color: rgb, bgr or gray.

    None leaves a choice to :meth:`resolved`. Raises UsageError for values that cannot be meant.
    """

    resize: Size | None = None
    crop: Size | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float | None = None
    layout: str | None = None
    color: str | None = None

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            object.__setattr__(self, name, _size(name, getattr(self, name)))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if 0.0 in self.std:
            raise UsageError("preprocessing: std must not be 0")
        if self.scale is not None and (
            not isinstance(self.scale, (int, float)) or not 0 < self.scale < _MOST_SCALE
        ):
            text = str(self.scale)[:80]
            raise UsageError(f"preprocessing: scale must be positive, not {text}")
        if self.layout not in (None, *LAYOUTS):
            raise UsageError(f"preprocessing: layout {self.layout!r}: choose nchw or nhwc")
        if self.color not in (None, *COLORS):
            raise UsageError(f"preprocessing: color {self.color!r}: choose rgb, bgr or gray")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read the JSON form. Raises UsageError for an unknown key or an unusable value."""
        known = [field.name for field in fields(cls)]
        if unknown := set(values) - set(known):
            raise UsageError(f"preprocessing: unknown key {min(unknown)!r}: use {', '.join(known)}")
        return cls(**values)

    def resolved(self, spec: InputSpec) -> Preprocessing:
        """With everything decided that a model input decides.

        layout: nhwc where the last dimension is 1 or 3 and the second is not. color: gray for one
        channel, else rgb. scale: 1/255 for floating point inputs; 8-bit inputs take pixels as they
        are (scale 1; mean 128 where the type is signed and no mean was given). Size: what the input
        fixes. A square input takes the short side resized to it and the centre cropped; any other is
        resized to just its height and width. With ``resize`` as a side, the centre is cropped to the
        input. Raises DataError where the input takes no images or another size than the one given.
        """
        if len(spec.shape) != _IMAGE_RANK or spec.dtype.kind == "b":
            raise DataError(f"{spec.describe()} takes no images: give arrays (.npz) instead")
        layout = self.layout or _layout(spec)
        channels, height, width = _plane(spec, layout)
        decided = replace(
            self, layout=layout, color=self.color or ("gray" if channels == 1 else "rgb")
        )
        if self.scale is None:
            decided = replace(decided, scale=1 / 255 if spec.dtype.kind == "f" else 1.0)
            if spec.dtype == np.int8 and self.mean == (0.0,):
                decided = replace(decided, mean=(128.0,))
        if isinstance(height, int) and isinstance(width, int):
            decided = _sized(decided, height, width)
        decided._check_fits(spec, channels, height, width)
        return decided

    def output_size(self) -> tuple[int, int] | None:
        """Height and width of every preprocessed image; None where it depends on the image."""
        if self.crop is not None:
            return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        return self.resize if isinstance(self.resize, tuple) else None

    def apply(self, image: Any) -> np.ndarray:
        """A Pillow image as float32, [channels, height, width] or [height, width, channels].

        The preprocessing must be :meth:`resolved`. Raises DataError for an image smaller than the
        crop.
        """
        pixels = np.asarray(self._cropped(self._resized(image)), dtype=np.float32)
        if pixels.ndim == 2:
            pixels = pixels[:, :, np.newaxis]
        if self.color == "bgr":
            pixels = pixels[:, :, ::-1]
        mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
        values = (pixels * np.float32(self.scale) - mean) / std
        if self.layout == "nchw":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values, dtype=np.float32)

    def load(
        self,
        file: IO[bytes] | bytes,
        dtype: np.dtype[Any],
        part: Callable[[int, int], tuple[int, int, int, int]] | None = None,
    ) -> np.ndarray:
        """Decode an image file and preprocess it to the dtype; integers are rounded and clipped.

        part: from the width and height of an image to the left, top, right and bottom of what is taken of it
        before anything else; None takes all of it.

        Raises CorruptImageError where it cannot be decoded, DataError for a decompression bomb.
        """
        mode = "L" if self.color == "gray" else "RGB"
        image = decode_image(file, mode)
        values = self.apply(image if part is None else image.crop(part(*image.size)))
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        return values.astype(dtype)

    def _resized(self, image: Any) -> Any:
        if self.resize is None:
            return image
        width, height = image.size
        if isinstance(self.resize, int):
            factor = self.resize / min(width, height)
            size = (
                max(self.resize, round(height * factor)),
                max(self.resize, round(width * factor)),
            )
        else:
            size = self.resize
        if size == (height, width):
            return image
        return image.resize((size[1], size[0]), resample=_pillow().Resampling.BILINEAR)

    def _cropped(self, image: Any) -> Any:
        if self.crop is None:
            return image
        height, width = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        top, left = (image.height - height) // 2, (image.width - width) // 2
        if top < 0 or left < 0:
            raise DataError(
                f"an image of {image.height} x {image.width} pixels is smaller than the crop "
                f"{height} x {width}: give resize as well"
            )
        return image.crop((left, top, left + width, top + height))

    def _check_fits(self, spec: InputSpec, channels: object, height: object, width: object) -> None:
        count = 1 if self.color == "gray" else 3
        if isinstance(channels, int) and channels != count:
            raise DataError(
                f"{spec.describe()} takes {channels} channels, {self.color} images have {count}: "
                "set layout and color, or give arrays (.npz)"
            )
        if any(len(values) not in (1, count) for values in (self.mean, self.std)):
            raise UsageError(f"preprocessing: mean and std need 1 or {count} values")
        for made, wanted in zip(self.output_size() or (), (height, width), strict=False):
            if isinstance(wanted, int) and made != wanted:
                raise DataError(
                    f"{spec.describe()} takes images of {height} x {width} pixels, but resize and "
                    f"crop make {self.output_size()}"
                )


def decode_image(file: IO[bytes] | bytes, mode: str) -> Any:
    """A Pillow image in mode RGB or L.

    Raises CorruptImageError where it cannot be decoded or has more than 8 bits a channel, and
    DataError for a decompression bomb, which Pillow by itself only warns of.
    """
    pillow = _pillow()
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        with warnings.catch_warnings():
            # Of damaged files it says the same on stderr as in its exceptions.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(source) as image:
                if image.mode[0] in "IF":
                    raise CorruptImageError(
                        f"{image.mode} pixels have more than 8 bits: save it with 8"
                    )
                return _upright(image).convert(mode)
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise DataError(f"image refused, it may be a decompression bomb: {error}") from error
    except _DECODER_ERRORS as error:
        raise CorruptImageError(" ".join(str(error).split())) from error


def _upright(image: Any) -> Any:
    """A photograph as its EXIF data say that it is to be looked at."""
    from PIL import ImageOps

    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:  # damaged EXIF data, of which the pixels are none the worse
        return image


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("Pillow", "images", "reading images") from error
    return Image


def _size(name: str, value: Any) -> Size | None:
    if value is None:
        return None
    sides = [value, value] if isinstance(value, int) else value
    if (
        not isinstance(sides, (list, tuple))
        or len(sides) != 2
        or any(type(side) is not int or not 1 <= side <= MAX_SIDE for side in sides)
    ):
        raise UsageError(
            f"preprocessing: {name} must be a side or height and width from 1 to {MAX_SIDE}, "
            f"not {str(value)[:80]}"
        )
    return value if isinstance(value, int) else (sides[0], sides[1])


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(float(v) for v in (value if isinstance(value, (tuple, list)) else [value]))
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise UsageError(
            f"preprocessing: {name} must be one number or one a channel, not {str(value)[:80]}"
        )
    return numbers


def _layout(spec: InputSpec) -> str:
    return "nhwc" if spec.shape[3] in (1, 3) and spec.shape[1] not in (1, 3) else "nchw"


def _plane(spec: InputSpec, layout: str) -> tuple[int | str | None, ...]:
    """The channels, height and width of an image input."""
    order = (1, 2, 3) if layout == "nchw" else (3, 1, 2)
    return tuple(spec.shape[axis] for axis in order)


def _sized(decided: Preprocessing, height: int, width: int) -> Preprocessing:
    if decided.resize is None and decided.crop is None:
        if height == width:
            return replace(decided, resize=height, crop=height)
        return replace(decided, resize=(height, width))
    if decided.crop is None and isinstance(decided.resize, int):
        return replace(decided, crop=(height, width))
    return decided
