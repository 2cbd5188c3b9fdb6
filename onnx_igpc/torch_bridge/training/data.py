"""Training data: the sources that calibration takes, read in any order.

What :func:`onnx_igpc.data.sources.open_data` streams, :func:`open_training_data` gives sample by sample, with
the same rules for labels, preprocessing and what fits the model. An .npz is held in memory, an .npy
is mapped, images are decoded when they are asked for, in worker processes if so wished. Samples of
tar shards are read from where they lie in the archive.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from onnx_igpc.data.arrays import ArrayFile, array_files, as_fed
from onnx_igpc.data.preprocessing import CorruptImageError, Preprocessing
from onnx_igpc.data.sources import (
    ArraySource,
    ImageSource,
    check_image_fits,
    find_source,
    image_input,
)
from onnx_igpc.errors import DataError, UsageError
from onnx_igpc.graph.inputs import InputSpec
from onnx_igpc.torch_bridge.training.augment import Augmentation, Draw, cut, flip_and_shift, part_of

_NCHW_AXES, _NHWC_AXES = (1, 2), (0, 1)


class TrainingData(Protocol):
    """Samples by index.

    size: how many. labels: int64[size], or None. classes: names of the classes that labels count, None
    where labels are indices by themselves. preprocessing: what is done to images, None for arrays.
    label_offset: what was added to the labels, None where the user left it open. notes: what was left
    out of the source.
    """

    source: str
    size: int
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    label_offset: int | None
    notes: tuple[str, ...]

    def sample(
        self, index: int, augmentation: Augmentation, draw: Draw | None
    ) -> dict[str, np.ndarray]:
        """The inputs of one sample without batch dimension; as they are where ``draw`` is None.

        Raises:
            CorruptImageError: the image cannot be decoded.
            DataError: it cannot be read, or does not fit the model.
        """


class ArrayTrainingData:
    """Arrays; see :func:`open_training_data`."""

    def __init__(
        self, source: ArraySource, inputs: Sequence[InputSpec], label_offset: int | None = None
    ) -> None:
        arrays = array_files(source.name, source.paths, inputs)
        self.source = source.name
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None
        self.label_offset = label_offset
        self.notes: tuple[str, ...] = ()
        self._paths = source.paths
        self._ends = np.cumsum([file.count for file in arrays.files])
        self.size = arrays.count
        self.labels = None
        if arrays.labels is not None:
            self.labels = np.array(arrays.labels, np.int64) + (label_offset or 0)
        self._dtypes = {spec.name: spec.dtype for spec in inputs}
        self._axes = {spec.name: _array_axes(spec) for spec in inputs}
        self._parts = [
            _whole(path, file, inputs)
            for path, file in zip(source.paths, arrays.files, strict=True)
        ]

    def sample(
        self, index: int, augmentation: Augmentation, draw: Draw | None
    ) -> dict[str, np.ndarray]:
        """See :class:`TrainingData`."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[part - 1]) if part else 0)
        found = {}
        for name, values in self._parts[part].items():
            label = f"{self._paths[part]}: sample {row} of {name!r}"
            value = as_fed(np.asarray(values[row]), self._dtypes[name], label)
            axes = self._axes[name]
            if draw is not None and axes is not None:
                value = flip_and_shift(value, augmentation, draw, axes)
            found[name] = value
        return found


class ImageTrainingData:
    """Images in a folder or in tar archives; see :func:`open_training_data`."""

    def __init__(
        self,
        source: ImageSource,
        inputs: Sequence[InputSpec],
        preprocessing: Preprocessing | None,
        label_offset: int | None = None,
    ) -> None:
        self._spec = image_input(inputs)
        source.images.check_random_access()
        index = source.index
        self.source = source.name
        self.size = len(index.names)
        self.labels = None if index.labels is None else np.array(index.labels, np.int64)
        self.classes = index.classes
        self.label_offset = label_offset
        self.notes = index.notes
        decided = (preprocessing or Preprocessing()).resolved(self._spec)
        self.preprocessing: Preprocessing | None = decided
        self._decided = decided
        self._whole = replace(decided, crop=None)
        self._names = index.names
        self._images = source.images
        self._axes = _NHWC_AXES if decided.layout == "nhwc" else _NCHW_AXES

    def sample(
        self, index: int, augmentation: Augmentation, draw: Draw | None
    ) -> dict[str, np.ndarray]:
        """See :class:`TrainingData`."""
        name, content = self._names[index], self._images.content(index)
        crop = self._decided.output_size() if self._decided.crop is not None else None
        cuts = draw is not None and augmentation.crop and crop is not None
        preprocessing, part = self._whole if cuts else self._decided, None
        size = self._decided.output_size()
        if draw is not None and augmentation.resized_crop and size is not None:
            preprocessing, part = replace(self._whole, resize=size), partial(part_of, draw=draw)
        try:
            values = preprocessing.load(content, self._spec.dtype, part)
        except CorruptImageError as error:
            raise CorruptImageError(f"{name}: {error}") from error
        except DataError as error:
            raise DataError(f"{self.source}: {name}: {error}") from error
        if draw is not None:
            if cuts and crop is not None:
                values = cut(values, crop, draw, self._axes)
            values = flip_and_shift(values, augmentation, draw, self._axes)
        check_image_fits(values, self._spec, f"{self.source}: {name}")
        return {self._spec.name: values}


def open_training_data(
    path: object,
    inputs: Sequence[InputSpec],
    preprocessing: Preprocessing | None = None,
    *,
    label_offset: int | None = None,
) -> TrainingData:
    """Images or arrays for the inputs of a model, to be read in any order.

    path: what :func:`onnx_igpc.data.sources.open_data` takes, except compressed archives: a folder of images
    (class folders give labels), .tar shards (WebDataset: ``key.cls`` beside ``key.jpg``) or a folder of
    them, .npz or .npy or a folder of them; ``images.tar/train`` is a folder inside an archive.
    preprocessing: for images; arrays are fed as they are. label_offset: added to every label.

    Raises:
        DataError: it is no path, or the data is missing, empty, compressed, or does not fit the inputs.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise DataError(
            f"training data is a path, not {type(path).__name__}: write arrays with numpy.savez, and give "
            "the file"
        )
    source = find_source(path, label_offset)
    if isinstance(source, ArraySource):
        return ArrayTrainingData(source, inputs, label_offset)
    return ImageTrainingData(source, inputs, preprocessing, label_offset)


def _whole(path: Path, file: ArrayFile, inputs: Sequence[InputSpec]) -> dict[str, np.ndarray]:
    """The arrays of a file by input, one sample a row; an .npy of several is mapped."""
    if path.suffix == ".npy":
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        [spec] = inputs
        return {spec.name: values if values.ndim == len(spec.shape) else values[np.newaxis]}
    file.check_memory()
    rows = list(file.read(range(file.count)))
    return {spec.name: np.stack([row[spec.name] for row in rows]) for spec in inputs}


def _array_axes(spec: InputSpec) -> tuple[int, int] | None:
    """Height and width of a sample of an image input, None for any other input."""
    if len(spec.shape) != 4:
        return None
    try:
        layout = Preprocessing().resolved(spec).layout
    except (DataError, UsageError):  # a number of channels that no picture has
        layout = "nchw"
    return _NHWC_AXES if layout == "nhwc" else _NCHW_AXES
