"""Data for calibration and verification: images or arrays as batches of model inputs.

:func:`open_data` takes what a user names; iterating over the result streams batches, in the same
order every time and with memory for one batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from onnx_igpc.data.arrays import ArrayFile, ArrayFiles, HeldArrays, array_files
from onnx_igpc.data.batches import BatchedData, Data, Sample
from onnx_igpc.data.class_folders import IMAGE_SUFFIXES, ImageIndex
from onnx_igpc.data.images import TAR_SUFFIXES, ImageFolder, ImageTar, spread
from onnx_igpc.data.preprocessing import CorruptImageError, Preprocessing
from onnx_igpc.errors import DataError, UsageError
from onnx_igpc.graph.inputs import InputSpec

Arrays = np.ndarray | Mapping[str, np.ndarray]
"""Arrays in memory: for the model's only input, or by input."""

_IN_MEMORY = "arrays in memory"

MAX_CORRUPT = 0.01
"""Share of a source's images that may be unreadable before it is refused."""


@dataclass(frozen=True)
class ImageSource:
    """Images in a folder or in archives, and their index with the labels that were asked for."""

    name: str
    images: ImageFolder | ImageTar
    index: ImageIndex


@dataclass(frozen=True)
class ArraySource:
    """Arrays in one or several files."""

    name: str
    paths: tuple[Path, ...]


def find_source(
    path: str | os.PathLike[str], label_offset: int | None = None
) -> ImageSource | ArraySource:
    """What a user named as data, for every use of it: what there is to read, in which order.

    Raises DataError where it is missing, or cannot be read as what it seems to be.
    """
    where, inner = _split_archive_path(Path(path))
    name = str(path)

    def images(found: ImageFolder | ImageTar) -> ImageSource:
        if not found.index.names:
            raise DataError(f"{name}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it")
        return ImageSource(name, found, found.index.shifted(label_offset or 0))

    if where.is_file() and where.name.lower().endswith(TAR_SUFFIXES):
        return images(ImageTar([where], inner))
    if where.is_file() and not inner:
        if where.suffix not in (".npy", ".npz"):
            raise DataError(
                f"{name}: not a data source: give a folder, .tar, .tar.gz, .npz or .npy"
            )
        return ArraySource(name, (where,))
    if not where.is_dir():
        raise DataError(f"{name}: no such file or folder")
    files = sorted(f for f in where.iterdir() if f.is_file() and not f.name.startswith("."))
    if arrays := [file for file in files if file.suffix in (".npy", ".npz")]:
        return ArraySource(name, tuple(arrays))
    shards = [file for file in files if file.name.lower().endswith(TAR_SUFFIXES)]
    return images(ImageTar(shards) if shards else ImageFolder(where))


def image_input(inputs: Sequence[InputSpec]) -> InputSpec:
    """The one input that images are fed to; DataError where there are several."""
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise DataError(f"images feed one input, the model has {names}: give arrays (.npz)")
    return inputs[0]


def check_image_fits(values: np.ndarray, spec: InputSpec, label: str) -> None:
    """Raise DataError where a preprocessed image has not the size that the input takes."""
    for made, wanted in zip(values.shape, spec.shape[1:], strict=True):
        if isinstance(wanted, int) and made != wanted:
            raise DataError(
                f"{label} becomes {list(values.shape)}, which does not fit "
                f"{spec.describe()}: give resize and crop"
            )


class _ImageData(BatchedData):
    def __init__(
        self,
        source: ImageSource,
        inputs: Sequence[InputSpec],
        preprocessing: Preprocessing | None,
        samples: int | None,
        batch_size: int,
    ) -> None:
        super().__init__(source.name, inputs, batch_size)
        self._spec = image_input(inputs)
        self._images = source.images
        self._index = source.index
        self._decided = (preprocessing or Preprocessing()).resolved(self._spec)
        self.preprocessing = self._decided
        self._chosen = spread(self._index.labels, len(self._index.names), samples)
        self.size = len(self._chosen)
        self.labelled = self._index.labels is not None
        self.classes = self._index.classes
        self.notes = list(self._index.notes)

    def _samples(self) -> Iterator[Sample]:
        index = self._index
        for position, file in self._images.read(self._chosen):
            try:
                values = self._load(index.names[position], file)
            except CorruptImageError as error:
                self._skip(f"{index.names[position]}: {error}")
                continue
            yield {self._spec.name: values}, index.labels[position] if index.labels else None

    def _load(self, name: str, file: Any) -> np.ndarray:
        try:
            values = self._decided.load(file, self._spec.dtype)
        except DataError as error:
            raise DataError(f"{self._source}: {name}: {error}") from error
        check_image_fits(values, self._spec, f"{self._source}: {name}")
        return values

    def _skip(self, reason: str) -> None:
        self.skipped.append(reason)
        if len(self.skipped) > MAX_CORRUPT * self.size:
            raise DataError(
                f"{self._source}: more than {MAX_CORRUPT:.0%} of {self.size} images cannot be read: "
                + "; ".join(self.skipped[:3])
            )


class _ArrayData(BatchedData):
    def __init__(
        self,
        name: str,
        arrays: ArrayFiles[ArrayFile] | ArrayFiles[HeldArrays],
        inputs: Sequence[InputSpec],
        samples: int | None,
        batch_size: int,
        label_offset: int,
    ) -> None:
        super().__init__(name, inputs, batch_size)
        self._arrays = arrays
        self.labelled = arrays.labels is not None
        self._offset = label_offset
        self._chosen = spread(arrays.labels, arrays.count, samples)
        self.size = len(self._chosen)

    def _samples(self) -> Iterator[Sample]:
        start = 0
        for file in self._arrays.files:
            here = [i - start for i in self._chosen if start <= i < start + file.count]
            for position, values in zip(here, file.read(here), strict=True):
                label = None if file.labels is None else file.labels[position] + self._offset
                yield values, label
            start += file.count


def open_data(
    path: str | os.PathLike[str],
    inputs: Sequence[InputSpec],
    preprocessing: Preprocessing | None = None,
    *,
    samples: int | None = None,
    batch_size: int = 32,
    label_offset: int | None = None,
) -> Data:
    """Images or arrays for the inputs of a model, as re-iterable batches.

    path: a folder of images (class folders give labels); a .tar, .tar.gz or .tgz of images or a
    folder of such shards; an .npz or .npy file or a folder of them; a folder inside an archive is
    named like one on disk (``images.tar/validation``). preprocessing is for images; what it leaves
    open is decided by :meth:`Preprocessing.resolved`. samples: at most so many, evenly spaced and
    balanced over the classes; None for all. batch_size: samples a batch, unless the model fixes it.
    label_offset: added to every label, 1 for models with a background class in front.

    Raises DataError where the data is missing, empty, or does not fit the inputs, and later, while
    iterating, where more than 1 % of the images cannot be read; UsageError for unusable options.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"samples must be at least 1, not {samples}")
    source = find_source(path, label_offset)
    data: BatchedData
    if isinstance(source, ImageSource):
        data = _ImageData(source, inputs, preprocessing, samples, batch_size)
        data.label_offset = label_offset
        return data
    _refuse_preprocessing(source.name, preprocessing)
    arrays = array_files(source.name, source.paths, inputs)
    data = _ArrayData(source.name, arrays, inputs, samples, batch_size, label_offset or 0)
    data.label_offset = label_offset
    return data


def as_data(
    source: str | os.PathLike[str] | Arrays | Data,
    inputs: Sequence[InputSpec],
    preprocessing: Preprocessing | None = None,
    *,
    samples: int | None = None,
    batch_size: int = 32,
    label_offset: int | None = None,
) -> Data:
    """What a caller gives as data, as batches: a path, arrays in memory, or opened data as it is.

    An array (samples first, or a single sample) is for the model's only input; a mapping has arrays by
    input, as an .npz has, ``labels`` among them where there are labels. Other arguments and errors are
    those of :func:`open_data`; DataError also where ``source`` is nothing of these.
    """
    if isinstance(source, (str, os.PathLike)):
        return open_data(
            source,
            inputs,
            preprocessing,
            samples=samples,
            batch_size=batch_size,
            label_offset=label_offset,
        )
    arrays = _arrays(source)
    if arrays is None:
        if not (hasattr(source, "describe") and hasattr(source, "size")):
            raise DataError(
                "data is a path, an array or a dict of arrays by input, or what open_data gives, "
                f"not {type(source).__name__}"
            )
        return cast("Data", source)
    if samples is not None and samples < 1:
        raise UsageError(f"samples must be at least 1, not {samples}")
    _refuse_preprocessing(_IN_MEMORY, preprocessing)
    held = ArrayFiles(_IN_MEMORY, [HeldArrays(_IN_MEMORY, arrays, inputs)])
    data = _ArrayData(_IN_MEMORY, held, inputs, samples, batch_size, label_offset or 0)
    data.label_offset = label_offset
    return data


def _arrays(source: object) -> dict[str, np.ndarray] | None:
    """The arrays in memory that ``source`` is; ``None`` where it is something else."""
    given = source if isinstance(source, Mapping) else {"array": source}
    if not all(hasattr(values, "__array__") for values in given.values()):
        return None
    try:
        return {str(name): np.asarray(values) for name, values in given.items()}
    except (TypeError, ValueError, RuntimeError) as error:  # tensors of another device, say
        raise DataError(f"{_IN_MEMORY} cannot be used: {' '.join(str(error).split())}") from error


def _refuse_preprocessing(name: str, preprocessing: Preprocessing | None) -> None:
    if preprocessing not in (None, Preprocessing()):
        raise UsageError(f"{name}: arrays are fed as they are, preprocessing is for images")


def _split_archive_path(path: Path) -> tuple[Path, str]:
    """``images.tar/a/b`` as the archive and the folder ``a/b`` inside it."""
    if path.exists():
        return path, ""
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""
