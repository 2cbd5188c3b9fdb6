"""Tensor data that lies beside a model file: reading it safely, and writing it again.

External data stays external while a model is edited: tensors are read one at a time when they are
needed and copied from file to file when the model is written, so that memory does not grow with the
model. The format is described in the ONNX documentation, "External Data".
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.graph.traversal import tensors

# Names the file of newly made tensors of a model that has not been written yet. A NUL cannot be
# part of a file's name, so that no model can refer to it.
SCRATCH_LOCATION = "\0scratch"
# Smaller tensors stay inside the model file, as torch and onnx themselves do it.
MIN_EXTERNAL_BYTES = 1024
# A serialised protobuf message cannot be larger; what is not tensor data needs room in it, too.
MAX_MESSAGE_BYTES = 2**31
MAX_INLINE_BYTES = MAX_MESSAGE_BYTES - 2**24
# The runtime maps external data into memory; 4 KiB pages hold most tensors of a CNN several times,
# so align to what vector instructions like instead.
ALIGNMENT = 64
_CHUNK = 1 << 22


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the data of ``tensor`` lies outside the protobuf message."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def set_location(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make ``tensor`` refer to ``length`` bytes at ``offset`` of the file ``location``."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def expected_bytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes that the raw data of ``tensor`` should have; ``None`` for strings and unknown types."""
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        return None
    elements = 1
    for dim in tensor.dims:
        elements *= dim
    return (elements * bits + 7) // 8


def _bits_per_type() -> dict[int, int]:
    packed = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
    bits = {}
    for name, number in onnx.TensorProto.DataType.items():
        if name not in ("UNDEFINED", "STRING"):
            itemsize = onnx.helper.tensor_dtype_to_np_dtype(number).itemsize
            bits[number] = packed.get(name, itemsize * 8)
    return bits


_BITS = _bits_per_type()
# Types that numpy has and that are stored as they lie in memory.
_PLAIN: dict[int, np.dtype[Any]] = {
    onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name)): np.dtype(name)
    for name in (
        *("float16", "float32", "float64", "bool"),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
}


class ExternalData:
    """Where the external tensors of one model lie, and the scratch file for new ones.

    ``base_dir`` is the model file's folder; ``None`` for a model that exists only in memory, which
    cannot have external data. ``real_dir`` is the folder that the file really lies in where the
    model's path is a symbolic link: caches of model hubs keep a model and its data as links into
    one folder. Data must lie in one of the two.
    """

    def __init__(self, base_dir: Path | None, real_dir: Path | None = None) -> None:
        self.base_dir = base_dir
        self._folders = [each for each in (base_dir, real_dir or base_dir) if each is not None]
        self._scratch: IO[bytes] | None = None

    def check(self, tensor: onnx.TensorProto) -> None:
        """Refuse a tensor whose data is not where it says or has the wrong length.

        Raises:
            ModelError: the file is missing, lies outside the model's folder, or is too short.
        """
        path, offset, length = self._place(tensor)
        expected = expected_bytes(tensor)
        if expected is not None and length != expected:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} needs {expected} bytes, but its entry says {length}"
            )
        if offset + length > path.stat().st_size:
            raise ModelError(
                f"{path}: ends before tensor {tensor.name!r} (bytes {offset} to {offset + length}): "
                "the file is truncated or belongs to another model"
            )

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The values of ``tensor``, external or not, with its dtype and shape.

        Raises:
            ModelError: as :meth:`check`, or the stored values do not fill the shape.
        """
        try:
            if not is_external(tensor):
                return numpy_helper.to_array(tensor)
            data = self.read_bytes(tensor)
            if tensor.data_type in _PLAIN:  # without the copies that a message would make
                return np.frombuffer(data, _PLAIN[tensor.data_type]).reshape(tensor.dims)
            inline = onnx.TensorProto(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            )
            inline.raw_data = data
            return numpy_helper.to_array(inline)
        except (ValueError, TypeError, KeyError) as error:
            reason = str(error) if not isinstance(error, KeyError) else "its type is unknown"
            raise ModelError(f"tensor {tensor.name!r} cannot be read: {reason}") from error

    def read_bytes(self, tensor: onnx.TensorProto) -> bytes:
        """The raw bytes of an external tensor.

        Raises:
            ModelError: as :meth:`check`.
        """
        return b"".join(self._chunks(tensor, None))  # one piece is not copied

    def _chunks(self, tensor: onnx.TensorProto, most: int | None) -> Iterator[bytes]:
        """The raw bytes of an external tensor, at most so many at a time.

        Raises:
            ModelError: as :meth:`check`.
        """
        location, offset, known_length = external_entry(tensor)
        if self._scratch is not None and location == SCRATCH_LOCATION:
            self._scratch.seek(offset)
            yield from _pieces(self._scratch, known_length or 0, most)
            return
        path, offset, length = self._place(tensor)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                for piece in _pieces(file, length, most):
                    length -= len(piece)
                    yield piece
        except OSError as error:
            reason = error.strerror or error
            raise ModelError(
                f"{path} of tensor {tensor.name!r} cannot be read: {reason}"
            ) from error
        if length:
            raise ModelError(f"{path}: ends before tensor {tensor.name!r}: the file is truncated")

    def to_scratch(self, name: str, values: np.ndarray) -> onnx.TensorProto:
        """A new tensor whose data, of a plain dtype, waits on disk until the model is written.

        A message never gives back memory that it once held, so that the data does not pass through it.

        Raises:
            UsageError: there is no room for it in the folder for temporary files.
        """
        data = np.ascontiguousarray(values).tobytes()
        try:
            if self._scratch is None:
                self._scratch = tempfile.TemporaryFile(prefix="onnx-igpc-")  # noqa: SIM115
            offset = self._scratch.seek(0, 2)
            self._scratch.write(data)
            self._scratch.flush()
        except OSError as error:
            raise UsageError(
                f"cannot write temporary data to {tempfile.gettempdir()}: "
                f"{error.strerror or error} (TMPDIR names another folder)"
            ) from error
        elem_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = onnx.TensorProto(name=name, data_type=elem_type, dims=values.shape)
        set_location(tensor, SCRATCH_LOCATION, offset, len(data))
        return tensor

    def write(self, tensors: Iterable[onnx.TensorProto], file: IO[bytes]) -> dict[int, int]:
        """Write the bytes of ``tensors`` to ``file``; returns the offset of each by its ``id``.

        External data is copied a piece at a time. Offsets are multiples of 64 bytes.
        """
        offsets: dict[int, int] = {}
        position = 0
        for tensor in tensors:
            padding = -position % ALIGNMENT
            file.write(b"\0" * padding)
            position += padding
            offsets[id(tensor)] = position
            pieces = self._chunks(tensor, _CHUNK) if is_external(tensor) else [tensor.raw_data]
            for piece in pieces:
                file.write(piece)
                position += len(piece)
        return offsets

    def _place(self, tensor: onnx.TensorProto) -> tuple[Path, int, int]:
        """File, offset and length of an external tensor, checked to lie in the model's folder."""
        location, offset, length = external_entry(tensor)
        path = self.locate(location, tensor.name)
        if length is None:
            length = expected_bytes(tensor)
        if length is None:
            length = max(path.stat().st_size - offset, 0)
        return path, offset, length

    def locate(self, location: str, name: str) -> Path:
        """The file that an entry of tensor ``name`` refers to.

        Raises:
            ModelError: it is missing or lies outside the model's folder, or the model has no file.
        """
        if not self._folders:
            raise ModelError(
                f"tensor {name!r} has external data ({location!r}), but the model was not "
                "read from a file: pass its path instead"
            )
        relative = Path(location)
        inside = (
            location
            and "\0" not in location
            and not relative.is_absolute()
            and ".." not in relative.parts
            and "\\" not in location
        )
        roots = [folder.resolve() for folder in self._folders]
        found = [root / relative for root in roots if inside and _is_file(root / relative)]
        path = found[0] if found else roots[0] / relative
        if not inside or not any(path.resolve().is_relative_to(root) for root in roots):
            raise ModelError(
                f"tensor {name!r} refers to external data outside the model's folder, "
                f"or by a path that may lead there ({location!r}): refused; save the model again "
                "with its data in its own folder"
            )
        if not found:
            raise ModelError(
                f"external data file {path} of tensor {name!r} is missing: "
                "put it beside the model file"
            )
        return path


def _pieces(file: IO[bytes], length: int, most: int | None) -> Iterator[bytes]:
    """The next ``length`` bytes, or what there is of them, at most ``most`` at a time."""
    while length:
        piece = file.read(length if most is None else min(length, most))
        if not piece:
            return
        length -= len(piece)
        yield piece


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for a file
        return False


def external_entry(tensor: onnx.TensorProto) -> tuple[str, int, int | None]:
    """Location, offset and length of an external tensor as written; ``None`` without a length.

    Raises:
        ModelError: offset or length are not natural numbers, or an entry is given twice.
    """
    if len({entry.key for entry in tensor.external_data}) < len(tensor.external_data):
        raise ModelError(f"tensor {tensor.name!r} says twice where its external data lies")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries["length"]) if "length" in entries else None
    except ValueError as error:
        raise ModelError(f"tensor {tensor.name!r} has unreadable external data: {error}") from error
    if offset < 0 or (length is not None and length < 0):
        raise ModelError(f"tensor {tensor.name!r} has a negative external data offset or length")
    return entries.get("location", ""), offset, length


def external_locations(proto: onnx.ModelProto) -> set[str]:
    """The external data files that a model refers to, relative to its folder."""
    return {external_entry(tensor)[0] for tensor in tensors(proto) if is_external(tensor)}


def content_name(model_name: str, data: IO[bytes]) -> str:
    """Name of the data file of the model file ``model_name``, derived from the data's content."""
    digest = hashlib.sha256()
    data.seek(0)
    while chunk := data.read(_CHUNK):
        digest.update(chunk)
    return f"{model_name}.{digest.hexdigest()[:16]}.data"
