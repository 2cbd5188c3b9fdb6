"""Arrays in .npy and .npz files, read row by row so that memory does not grow with the file.

The arrays of an .npz are named as the model's inputs; ``labels`` is optional. Where the model has
one input and the file one array besides the labels, the name need not match. Pickled objects are
never loaded.
"""

from __future__ import annotations

import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import numpy as np

from onnx_igpc.data.random_inputs import physical_memory
from onnx_igpc.errors import DataError
from onnx_igpc.graph.inputs import InputSpec

LABELS = "labels"
# What zip and NumPy raise for archives that are damaged, encrypted, or of a kind they do not know.
_READ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    OverflowError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)
# Deflate makes one byte of 1032 at most; the other methods are rare and come near it.
_MOST_COMPRESSION = 1100


@dataclass(frozen=True)
class _Header:
    """shape and dtype of an array, and where it lies: a member of an .npz, or the .npy itself."""

    file: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool

    @property
    def bytes(self) -> int:
        """What the values take."""
        return math.prod(self.shape) * self.dtype.itemsize


_Array = TypeVar("_Array", _Header, np.ndarray)


class HeldArrays:
    """Samples in memory: arrays by the names of the inputs, and ``labels`` where there are some.

    Shapes are those of :class:`ArrayFile`, and so are the errors; ``name`` is how messages call them.
    """

    def __init__(
        self, name: str, arrays: Mapping[str, np.ndarray], inputs: Sequence[InputSpec]
    ) -> None:
        self.name = name
        given = dict(arrays)
        labels = given.pop(LABELS, None) if LABELS not in _names(inputs) else None
        found = _by_input(name, given, inputs)
        lengths = {_check_fits(name, found[spec.name], spec) for spec in inputs}
        self.count = _common_length(name, lengths)
        single = lengths == {None}
        self._rows = {
            spec.name: (found[spec.name][np.newaxis] if single else found[spec.name], spec.dtype)
            for spec in inputs
        }
        self.labels = None if labels is None else _checked_labels(name, labels, self.count)

    def read(self, chosen: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        """The samples at the chosen positions, ascending, without the batch dimension."""
        for position in sorted(set(chosen)):
            yield {
                name: as_fed(rows[position], dtype, f"{self.name}: sample {position} of {name!r}")
                for name, (rows, dtype) in self._rows.items()
            }


class ArrayFile:
    """The samples of one .npy or .npz file.

    An array with as many dimensions as the input holds one sample a row; one with a dimension less is
    a single sample. Raises DataError where arrays are missing, do not fit the inputs, or differ in
    length.
    """

    def __init__(self, path: Path, inputs: Sequence[InputSpec]) -> None:
        self._path, self.name = path, path.name
        headers = _headers(path)
        label_header = headers.pop(LABELS, None) if LABELS not in _names(inputs) else None
        self._arrays = _by_input(path, headers, inputs)
        self._dtypes = {spec.name: spec.dtype for spec in inputs}
        lengths = {_check_fits(path, self._arrays[spec.name], spec) for spec in inputs}
        self._single = lengths == {None}
        self.count = _common_length(path, lengths)
        self.labels = None if label_header is None else _labels(label_header, self.count)

    def check_memory(self) -> None:
        """Refuse with DataError what does not fit into memory as a whole."""
        _refuse_giant(self._path, sum(header.bytes for header in self._arrays.values()))

    def read(self, chosen: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        """The samples at the chosen positions, ascending, without the batch dimension."""
        rows = {
            name: iter([_whole(header)]) if self._single else _rows(header)
            for name, header in self._arrays.items()
        }
        wanted = set(chosen)
        for position in range(max(wanted, default=-1) + 1):
            values = {name: next(row) for name, row in rows.items()}
            if position in wanted:
                yield {name: self._fed(name, v, position) for name, v in values.items()}

    def _fed(self, name: str, values: np.ndarray, position: int) -> np.ndarray:
        return as_fed(values, self._dtypes[name], f"{self._path}: sample {position} of {name!r}")


_File = TypeVar("_File", bound="ArrayFile | HeldArrays")


class ArrayFiles(Generic[_File]):
    """The samples of several files one after the other.

    labels: of all of them, None where there are none. Raises DataError where only some files have labels,
    or there are no samples.
    """

    def __init__(self, source: str, files: Sequence[_File]) -> None:
        self.files = list(files)
        with_labels = [file.labels is not None for file in self.files]
        if any(with_labels) and not all(with_labels):
            raise DataError(f"{source}: {self.files[with_labels.index(False)].name} has no labels")
        self.count = sum(file.count for file in self.files)
        if not self.count:
            raise DataError(f"{source}: the arrays hold no samples")
        labels = [label for file in self.files for label in file.labels or ()]
        self.labels = tuple(labels) if all(with_labels) else None


def array_files(
    source: str, paths: Sequence[Path], inputs: Sequence[InputSpec]
) -> ArrayFiles[ArrayFile]:
    """The samples of files one after the other."""
    return ArrayFiles(source, [ArrayFile(path, inputs) for path in paths])


def as_fed(values: np.ndarray, dtype: np.dtype[Any], label: str) -> np.ndarray:
    """The values in the input's dtype.

    Raises DataError, with ``label`` saying what they are, where one is NaN or infinite, or becomes so.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        fed = values.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(fed).all():
        if np.isnan(values).any():
            what = "NaN"
        elif np.isinf(values).any():
            what = "infinite values"
        else:
            what = f"values that {dtype} cannot hold"
        raise DataError(f"{label} holds {what}: mend the data or leave the sample out")
    return fed


def _names(inputs: Sequence[InputSpec]) -> set[str]:
    return {spec.name for spec in inputs}


def _common_length(path: Path | str, lengths: set[int | None]) -> int:
    counts = {1 if length is None else length for length in lengths}
    if len(counts) != 1:
        raise DataError(
            f"{path}: the arrays hold different numbers of samples: {sorted(counts)}: "
            "every input needs one row a sample"
        )
    return counts.pop()


def _by_input(
    path: Path | str, headers: Mapping[str, _Array], inputs: Sequence[InputSpec]
) -> dict[str, _Array]:
    if len(inputs) == 1 and len(headers) == 1:
        return {inputs[0].name: next(iter(headers.values()))}
    if missing := [spec.name for spec in inputs if spec.name not in headers]:
        have = ", ".join(headers) or "none"
        raise DataError(
            f"{path}: no array named {missing[0]!r}, as the model's input; it has {have}"
        )
    return {spec.name: headers[spec.name] for spec in inputs}


def _check_fits(path: Path | str, header: _Header | np.ndarray, spec: InputSpec) -> int | None:
    """The number of samples, None for a single one without a batch dimension."""
    shape, single = header.shape, len(header.shape) == len(spec.shape) - 1
    row = shape if single else shape[1:]
    fits = len(row) == len(spec.shape) - 1 and all(
        not isinstance(dim, int) or dim == size
        for dim, size in zip(spec.shape[1:], row, strict=True)
    )
    if not fits or not spec.shape:
        raise DataError(f"{path}: an array of shape {list(shape)} does not fit {spec.describe()}")
    kinds = ("f", "iu", "b")
    if not any(header.dtype.kind in kind and spec.dtype.kind in kind for kind in kinds):
        raise DataError(
            f"{path}: an array of {header.dtype} cannot be fed to {spec.describe()}: arrays are fed "
            "as they are, so scale and convert it first"
        )
    return None if single else shape[0]


def _labels(header: _Header, count: int) -> tuple[int, ...]:
    return _checked_labels(header.file, _whole(header), count)


def _checked_labels(path: Path | str, values: np.ndarray, count: int) -> tuple[int, ...]:
    if values.dtype.kind not in "iu" or values.size != count:
        raise DataError(
            f"{path}: labels must be {count} integers, "
            f"not {values.dtype} of shape {list(values.shape)}"
        )
    return tuple(int(value) for value in values.reshape(-1))


def _headers(path: Path) -> dict[str, _Header]:
    """The arrays of a file by name, without their data; an .npy has one named as the file."""
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                header = _header(path, None, file)
                if header.bytes > os.fstat(file.fileno()).st_size - file.tell():
                    raise DataError(f"{path}: ends before the array does: the file is truncated")
                return {path.stem: header}
        found = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as stream:
                    header = _header(path, member, stream)
                    _check_stored(header, archive.getinfo(member), stream.tell())
                    found[member.removesuffix(".npy")] = header
        return found
    except _READ_ERRORS as error:
        raise DataError(f"{path}: not a readable NumPy file: {_reason(error)}") from error


def _header(path: Path, member: str | None, file: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran_order, dtype = read(file)
    if any(type(dim) is not int or dim < 0 for dim in shape):
        raise DataError(f"{path}: {member or 'the array'} has the shape {shape}")
    if dtype.hasobject:
        raise DataError(
            f"{path}: {member or 'the array'} holds Python objects, which are not loaded"
        )
    return _Header(path, member, shape, dtype, fortran_order)


def _whole(header: _Header) -> np.ndarray:
    _refuse_giant(header.file, header.bytes)
    try:
        values = np.load(header.file, allow_pickle=False)
        return np.asarray(
            values if header.member is None else values[header.member.removesuffix(".npy")]
        )
    except _READ_ERRORS as error:
        raise DataError(f"{header.file}: cannot be read: {_reason(error)}") from error


def _refuse_giant(path: Path, size: int) -> None:
    """Refuse to hold in memory what cannot be held; a small archive can unpack to any size."""
    if size > physical_memory():
        raise DataError(
            f"{path}: its arrays take {size / 2**30:.0f} GiB, more than this machine has: write them as "
            ".npy in row order, which is read row by row"
        )


def _rows(header: _Header) -> Iterator[np.ndarray]:
    """The rows of an array one after the other, from the open file."""
    if header.member is None:
        yield from np.load(header.file, mmap_mode="r", allow_pickle=False)
        return
    if header.fortran_order:  # rows are not contiguous in the file
        yield from _whole(header)
        return
    row_bytes = int(np.prod(header.shape[1:], dtype=np.int64)) * header.dtype.itemsize
    try:
        with zipfile.ZipFile(header.file) as archive, archive.open(header.member) as stream:
            _header(header.file, header.member, stream)  # leaves the stream at the data
            for _ in range(header.shape[0]):
                data = stream.read(row_bytes)
                yield np.frombuffer(data, header.dtype).reshape(header.shape[1:])
    except _READ_ERRORS as error:
        raise DataError(f"{header.file}: {header.member} is damaged: {_reason(error)}") from error


def _check_stored(header: _Header, info: zipfile.ZipInfo, start: int) -> None:
    """Refuse an array that is larger than what the archive can hold for it, whatever it declares."""
    declared = min(info.file_size - start, info.compress_size * _MOST_COMPRESSION)
    if header.bytes > declared:
        raise DataError(
            f"{header.file}: {header.member} declares {header.bytes} bytes of values but holds "
            f"{max(declared, 0)} at most: the file is damaged"
        )


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
