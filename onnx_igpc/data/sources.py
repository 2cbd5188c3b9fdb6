"""Data for calibration and verification: images or arrays as batches of model inputs.

:func:`open_data` takes what a user names; iterating over the result streams batches, in the same
order every time and with memory for one batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from onnx_igpc.data.arrays import ArrayFile, HeldArrays
from onnx_igpc.data.batches import BatchedData, Data, Sample
from onnx_igpc.data.images import IMAGE_SUFFIXES, TAR_SUFFIXES, ImageFolder, ImageTar, spread
from onnx_igpc.data.preprocessing import CorruptImageError, Preprocessing
from onnx_igpc.errors import DataError, UsageError
from onnx_igpc.graph.inputs import InputSpec

Arrays = np.ndarray | Mapping[str, np.ndarray]
"""Arrays in memory: for the model's only input, or by input."""

_IN_MEMORY = "arrays in memory"

MAX_CORRUPT = 0.01
"""Share of a source's images that may be unreadable before it is refused."""


class _ImageData(BatchedData):
    def __init__(
        self,
        source: str,
        images: ImageFolder | ImageTar,
        inputs: Sequence[InputSpec],
        preprocessing: Preprocessing | None,
        samples: int | None,
        batch_size: int,
    ) -> None:
        super().__init__(source, inputs, batch_size)
        if len(inputs) != 1:
            names = ", ".join(spec.name for spec in inputs)
            raise DataError(f"images feed one input, the model has {names}: give arrays (.npz)")
        if not images.index.names:
            raise DataError(f"{source}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it")
        [self._spec] = inputs
        self._images = images
        self.preprocessing = (preprocessing or Preprocessing()).resolved(self._spec)
        self._chosen = spread(images.index.labels, len(images.index.names), samples)
        self.size = len(self._chosen)
        self.labelled = images.index.labels is not None
        self.classes = images.index.classes

    def _samples(self) -> Iterator[Sample]:
        index = self._images.index
        for position, file in self._images.read(self._chosen):
            try:
                values = self._load(index.names[position], file)
            except CorruptImageError as error:
                self._skip(f"{index.names[position]}: {error}")
                continue
            yield {self._spec.name: values}, index.labels[position] if index.labels else None

    def _load(self, name: str, file: Any) -> np.ndarray:
        assert self.preprocessing is not None
        try:
            values = self.preprocessing.load(file, self._spec.dtype)
        except DataError as error:
            raise DataError(f"{self._source}: {name}: {error}") from error
        for made, wanted in zip(values.shape, self._spec.shape[1:], strict=True):
            if isinstance(wanted, int) and made != wanted:
                raise DataError(
                    f"{self._source}: {name} becomes {list(values.shape)}, which does not fit "
                    f"{self._spec.describe()}: give resize and crop"
                )
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
        source: str,
        files: Sequence[ArrayFile | HeldArrays],
        inputs: Sequence[InputSpec],
        samples: int | None,
        batch_size: int,
    ) -> None:
        super().__init__(source, inputs, batch_size)
        self._files = files
        with_labels = [file.labels is not None for file in self._files]
        self.labelled = all(with_labels)
        total = sum(file.count for file in self._files)
        if not total:
            raise DataError(f"{source}: the arrays hold no samples")
        labels = [label for file in self._files for label in file.labels or ()]
        self._chosen = spread(labels if self.labelled else None, total, samples)
        self.size = len(self._chosen)

    def _samples(self) -> Iterator[Sample]:
        start = 0
        for file in self._files:
            here = [i - start for i in self._chosen if start <= i < start + file.count]
            for position, values in zip(here, file.read(here), strict=True):
                yield values, file.labels[position] if file.labels is not None else None
            start += file.count


def open_data(
    path: str | os.PathLike[str],
    inputs: Sequence[InputSpec],
    preprocessing: Preprocessing | None = None,
    *,
    samples: int | None = None,
    batch_size: int = 32,
) -> Data:
    """Images or arrays for the inputs of a model, as re-iterable batches.

    path: a folder of images (class folders give labels); a .tar, .tar.gz or .tgz of images or a
    folder of such shards; an .npz or .npy file or a folder of them; a folder inside an archive is
    named like one on disk (``images.tar/validation``). preprocessing is for images; what it leaves
    open is decided by :meth:`Preprocessing.resolved`. samples: at most so many, evenly spaced and
    balanced over the classes; None for all. batch_size: samples a batch, unless the model fixes it.

    Raises DataError where the data is missing, empty, or does not fit the inputs, and later, while
    iterating, where more than 1 % of the images cannot be read; UsageError for unusable options.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"samples must be at least 1, not {samples}")
    where, inner = _split_archive_path(Path(path))
    name = str(path)
    if where.is_file() and where.name.lower().endswith(TAR_SUFFIXES):
        images = ImageTar([where], inner)
        return _ImageData(name, images, inputs, preprocessing, samples, batch_size)
    if where.is_file() and not inner:
        if where.suffix not in (".npy", ".npz"):
            raise DataError(
                f"{name}: not a data source: give a folder, .tar, .tar.gz, .npz or .npy"
            )
        return _open_arrays(name, [where], inputs, preprocessing, samples, batch_size)
    if not where.is_dir():
        raise DataError(f"{name}: no such file or folder")
    files = sorted(file for file in where.iterdir() if file.is_file())
    if arrays := [file for file in files if file.suffix in (".npy", ".npz")]:
        return _open_arrays(name, arrays, inputs, preprocessing, samples, batch_size)
    shards = [file for file in files if file.name.lower().endswith(TAR_SUFFIXES)]
    found = ImageTar(shards) if shards else ImageFolder(where)
    return _ImageData(name, found, inputs, preprocessing, samples, batch_size)


def as_data(
    source: str | os.PathLike[str] | Arrays | Data,
    inputs: Sequence[InputSpec],
    preprocessing: Preprocessing | None = None,
    *,
    samples: int | None = None,
    batch_size: int = 32,
) -> Data:
    """What a caller gives as data, as batches: a path, arrays in memory, or opened data as it is.

    An array (samples first, or a single sample) is for the model's only input; a mapping has arrays by
    input, as an .npz has, ``labels`` among them where there are labels. Other arguments and errors are
    those of :func:`open_data`; DataError also where ``source`` is nothing of these.
    """
    if isinstance(source, (str, os.PathLike)):
        return open_data(source, inputs, preprocessing, samples=samples, batch_size=batch_size)
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
    held = HeldArrays(_IN_MEMORY, arrays, inputs)
    return _ArrayData(_IN_MEMORY, [held], inputs, samples, batch_size)


def _arrays(source: object) -> dict[str, np.ndarray] | None:
    """The arrays in memory that ``source`` is; ``None`` where it is something else."""
    given = source if isinstance(source, Mapping) else {"array": source}
    if not all(hasattr(values, "__array__") for values in given.values()):
        return None
    try:
        return {str(name): np.asarray(values) for name, values in given.items()}
    except (TypeError, ValueError, RuntimeError) as error:  # tensors of another device, say
        raise DataError(f"{_IN_MEMORY} cannot be used: {' '.join(str(error).split())}") from error


def _open_arrays(
    name: str,
    paths: Sequence[Path],
    inputs: Sequence[InputSpec],
    preprocessing: Preprocessing | None,
    samples: int | None,
    batch_size: int,
) -> Data:
    _refuse_preprocessing(name, preprocessing)
    files = [ArrayFile(path, inputs) for path in paths]
    unlabelled = [path for path, file in zip(paths, files, strict=True) if file.labels is None]
    if 0 < len(unlabelled) < len(paths):
        raise DataError(f"{name}: {unlabelled[0].name} has no labels")
    return _ArrayData(name, files, inputs, samples, batch_size)


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
