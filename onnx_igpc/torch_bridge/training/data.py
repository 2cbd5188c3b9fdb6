"""Training data: the sources that calibration takes, read in any order.

What :func:`onnx_igpc.data.sources.open_data` streams, :func:`open_training_data` gives sample by sample, with
the same rules for labels, preprocessing and what fits the model. An .npz is held in memory, an .npy
is mapped, images are decoded when they are asked for, in worker processes if so wished. Samples of
tar shards are read from where they lie in the archive.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from onnx_igpc.data.arrays import ArrayFile
from onnx_igpc.data.images import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    TAR_SUFFIXES,
    ImageFolder,
    ImageTar,
)
from onnx_igpc.data.preprocessing import CorruptImageError, Preprocessing
from onnx_igpc.errors import DataError, UsageError
from onnx_igpc.graph.inputs import InputSpec
from onnx_igpc.torch_bridge.training.augment import Augmentation, Draw, cut, flip_and_shift

_NCHW_AXES, _NHWC_AXES = (1, 2), (0, 1)


class TrainingData(Protocol):
    """Samples by index.

    size: how many. labels: int64[size], or None. classes: names of the classes that labels count, None
    where labels are indices by themselves. preprocessing: what is done to images, None for arrays.
    """

    source: str
    size: int
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None

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

    def __init__(self, source: str, paths: Sequence[Path], inputs: Sequence[InputSpec]) -> None:
        files = [ArrayFile(path, inputs) for path in paths]
        with_labels = [file.labels is not None for file in files]
        if any(with_labels) and not all(with_labels):
            raise DataError(f"{source}: {paths[with_labels.index(False)].name} has no labels")
        self.source = source
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None
        self._ends = np.cumsum([file.count for file in files])
        self.size = int(self._ends[-1])
        if not self.size:
            raise DataError(f"{source}: the arrays hold no samples")
        labels = [label for file in files for label in file.labels or ()]
        self.labels = np.array(labels, np.int64) if all(with_labels) else None
        self._dtypes = {spec.name: spec.dtype for spec in inputs}
        self._axes = {spec.name: _array_axes(spec) for spec in inputs}
        self._parts = [_whole(path, file, inputs) for path, file in zip(paths, files, strict=True)]

    def sample(
        self, index: int, augmentation: Augmentation, draw: Draw | None
    ) -> dict[str, np.ndarray]:
        """See :class:`TrainingData`."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[part - 1]) if part else 0)
        found = {}
        for name, values in self._parts[part].items():
            value = np.asarray(values[row], self._dtypes[name])
            axes = self._axes[name]
            if draw is not None and axes is not None:
                value = flip_and_shift(value, augmentation, draw, axes)
            found[name] = value
        return found


class ImageTrainingData:
    """Images in a folder or in tar archives; see :func:`open_training_data`."""

    def __init__(
        self,
        source: str,
        images: ImageFolder | ImageTar,
        pieces: _Files | _TarMembers,
        inputs: Sequence[InputSpec],
        preprocessing: Preprocessing | None,
    ) -> None:
        if len(inputs) != 1:
            names = ", ".join(spec.name for spec in inputs)
            raise DataError(f"images feed one input, the model has {names}: give arrays (.npz)")
        index = images.index
        if not index.names:
            raise DataError(f"{source}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it")
        [self._spec] = inputs
        self.source = source
        self.size = len(index.names)
        self.labels = None if index.labels is None else np.array(index.labels, np.int64)
        self.classes = index.classes
        decided = (preprocessing or Preprocessing()).resolved(self._spec)
        self.preprocessing: Preprocessing | None = decided
        self._decided = decided
        self._whole = replace(decided, crop=None)
        self._names = index.names
        self._pieces = pieces
        self._axes = _NHWC_AXES if decided.layout == "nhwc" else _NCHW_AXES

    def sample(
        self, index: int, augmentation: Augmentation, draw: Draw | None
    ) -> dict[str, np.ndarray]:
        """See :class:`TrainingData`."""
        name, content = self._names[index], self._pieces.read(index)
        crop = self._decided.output_size() if self._decided.crop is not None else None
        cuts = draw is not None and augmentation.crop and crop is not None
        preprocessing = self._whole if cuts else self._decided
        try:
            values = preprocessing.load(content, self._spec.dtype)
        except CorruptImageError as error:
            raise CorruptImageError(f"{name}: {error}") from error
        except DataError as error:
            raise DataError(f"{self.source}: {name}: {error}") from error
        if draw is not None:
            if cuts and crop is not None:
                values = cut(values, crop, draw, self._axes)
            values = flip_and_shift(values, augmentation, draw, self._axes)
        for made, wanted in zip(values.shape, self._spec.shape[1:], strict=True):
            if isinstance(wanted, int) and made != wanted:
                raise DataError(
                    f"{self.source}: {name} becomes {list(values.shape)}, which does not fit "
                    f"{self._spec.describe()}: give resize and crop"
                )
        return {self._spec.name: values}


def open_training_data(
    path: str | os.PathLike[str],
    inputs: Sequence[InputSpec],
    preprocessing: Preprocessing | None = None,
) -> TrainingData:
    """Images or arrays for the inputs of a model, to be read in any order.

    path: what :func:`onnx_igpc.data.sources.open_data` takes, except compressed archives: a folder of images
    (class folders give labels), .tar shards (WebDataset: ``key.cls`` beside ``key.jpg``) or a folder of
    them, .npz or .npy or a folder of them; ``images.tar/train`` is a folder inside an archive.
    preprocessing: for images; arrays are fed as they are.

    Raises:
        DataError: the data is missing, empty, compressed, or does not fit the inputs.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise DataError(
            f"training data is a path, not {type(path).__name__}: write arrays with numpy.savez, and give "
            "the file"
        )
    where, inner = _archive_and_folder(Path(path))
    name = str(path)
    if where.is_file() and where.name.lower().endswith(TAR_SUFFIXES):
        return _open_tar(name, [where], inner, inputs, preprocessing)
    if where.is_file() and not inner:
        if where.suffix not in (".npy", ".npz"):
            raise DataError(f"{name}: not a data source: give a folder, .tar, .npz or .npy")
        return ArrayTrainingData(name, [where], inputs)
    if not where.is_dir():
        raise DataError(f"{name}: no such file or folder")
    files = sorted(file for file in where.iterdir() if file.is_file())
    if arrays := [file for file in files if file.suffix in (".npy", ".npz")]:
        return ArrayTrainingData(name, arrays, inputs)
    if shards := [file for file in files if file.name.lower().endswith(TAR_SUFFIXES)]:
        return _open_tar(name, shards, "", inputs, preprocessing)
    folder = ImageFolder(where)
    pieces = _Files(where, folder.index.names)
    return ImageTrainingData(name, folder, pieces, inputs, preprocessing)


@dataclass(frozen=True)
class _Files:
    """The content of the images of a folder."""

    root: Path
    names: tuple[str, ...]

    def read(self, index: int) -> bytes:
        try:
            return (self.root / self.names[index]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.root}: {error}") from error


class _TarMembers:
    """The content of the images of tar archives, read from where they lie.

    No file stays open: processes that share one would move each other's position in it.
    """

    def __init__(self, paths: Sequence[Path], prefix: str) -> None:
        self._places: list[tuple[int, int, int]] = []
        self._paths = list(paths)
        start = f"{prefix}/" if prefix else ""
        for number, path in enumerate(paths):
            if not path.name.lower().endswith(".tar"):
                raise DataError(
                    f"{path}: training reads archives in random order, which a compressed one does "
                    "not allow: unpack it to .tar"
                )
            with tarfile.open(path, "r:") as archive:
                members = [each for each in archive if each.isfile()]
            for member in members:
                if not _is_wanted(member.name, start):
                    continue
                if member.size > MAX_IMAGE_BYTES or member.issparse():
                    raise DataError(f"{path}: {member.name} is no image: {member.size} bytes")
                self._places.append((number, member.offset_data, member.size))

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> bytes:
        number, offset, size = self._places[index]
        try:
            with self._paths[number].open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise DataError(f"{self._paths[number]}: {error}") from error
        if len(content) != size:
            raise DataError(f"{self._paths[number]}: ends too early: it has changed or is damaged")
        return content


def _open_tar(
    name: str,
    paths: Sequence[Path],
    inner: str,
    inputs: Sequence[InputSpec],
    preprocessing: Preprocessing | None,
) -> TrainingData:
    try:
        pieces = _TarMembers(paths, inner)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{name}: cannot be read as a tar archive: {error}") from error
    images = ImageTar(paths, inner)
    if len(pieces) != len(images.index.names):
        raise DataError(f"{name}: the archive changed while it was read")
    return ImageTrainingData(name, images, pieces, inputs, preprocessing)


def _is_wanted(name: str, prefix: str) -> bool:
    """Whether :class:`ImageTar` lists a member: an image below the prefix that is not hidden."""
    path = Path(name)
    return (
        name.removeprefix("./").startswith(prefix)
        and path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
    )


def _archive_and_folder(path: Path) -> tuple[Path, str]:
    """``images.tar/a/b`` as the archive and the folder ``a/b`` inside it."""
    if path.exists():
        return path, ""
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""


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
