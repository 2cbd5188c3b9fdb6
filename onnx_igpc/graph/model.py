"""Reading and writing models without loss: one file or external data, whole or not at all.

A model that is written appears under its name only when it is complete: everything goes to a
temporary file first and is renamed into place. External data that is written has a name derived
from its content and is renamed before the model is, so that a crash leaves either the old pair or
the new pair.
"""

from __future__ import annotations

import filecmp
import functools
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import numpy_helper

from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.files.atomic import (
    PathLike,
    locked_folder,
    publish,
    temporary_file,
    write_atomically,
)
from onnx_igpc.files.destinations import destination
from onnx_igpc.graph.external_data import (
    MAX_INLINE_BYTES,
    MIN_EXTERNAL_BYTES,
    ExternalData,
    content_name,
    expected_bytes,
    external_entry,
    external_locations,
    is_external,
    set_location,
)
from onnx_igpc.graph.parsing import check_message, parse_model
from onnx_igpc.graph.replaced_data import own_data_of, used_by_others
from onnx_igpc.graph.spellings import settle_spellings
from onnx_igpc.graph.traversal import copied, tensors

__all__ = [
    "OpenModel",
    "PathLike",
    "copy_model",
    "file_bytes",
    "load_model",
    "open_model",
    "save_model",
    "snapshot",
    "write_atomically",
]


@dataclass
class OpenModel:
    """A model and the place of its external data, which stays on disk until it is needed."""

    proto: onnx.ModelProto
    data: ExternalData = field(default_factory=lambda: ExternalData(None))
    path: Path | None = None

    @property
    def name(self) -> str:
        """How messages call the model."""
        return str(self.path) if self.path else "the model"

    @property
    def has_external_data(self) -> bool:
        return any(is_external(tensor) for tensor in tensors(self.proto))

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The values of ``tensor``, read from disk if they are external."""
        return self.data.array(tensor)

    def new_tensor(self, name: str, values: np.ndarray) -> onnx.TensorProto:
        """A tensor to put into this model; kept on disk if the model's large tensors are."""
        if self._keeps_data_outside and values.nbytes >= MIN_EXTERNAL_BYTES:
            return self.data.to_scratch(name, values)
        return numpy_helper.from_array(np.ascontiguousarray(values), name)

    @property
    def _keeps_data_outside(self) -> bool:
        if not hasattr(self, "_outside"):
            self._outside = self.has_external_data
        return self._outside

    def total_bytes(self) -> int:
        """Size of the message and of the external data together."""
        outside = [tensor for tensor in tensors(self.proto) if is_external(tensor)]
        return int(self.proto.ByteSize()) + sum(_length(tensor) for tensor in outside)

    def without_data(self) -> onnx.ModelProto:
        """A copy for checking: large initializers of the main graph are inputs without data."""
        light = onnx.ModelProto()
        for descriptor, value in self.proto.ListFields():
            if descriptor.name != "graph":
                _copy_field(light, descriptor.name, value)
        listed = {entry.name for entry in self.proto.graph.input}
        for descriptor, value in self.proto.graph.ListFields():
            if descriptor.name != "initializer":
                _copy_field(light.graph, descriptor.name, value)
        for tensor in self.proto.graph.initializer:
            if not is_external(tensor) and len(tensor.raw_data) < MIN_EXTERNAL_BYTES:
                light.graph.initializer.append(tensor)
            elif tensor.name not in listed:
                light.graph.input.append(
                    onnx.helper.make_tensor_value_info(
                        tensor.name, tensor.data_type, list(tensor.dims)
                    )
                )
        return light

    def materialized(self) -> onnx.ModelProto:
        """A copy of the model with all data inside the message.

        Raises:
            ModelError: the result would not fit into one protobuf message (2 GiB).
        """
        proto = copied(self.proto)
        external = [tensor for tensor in tensors(proto) if is_external(tensor)]
        if sum(expected_bytes(tensor) or 0 for tensor in external) > MAX_INLINE_BYTES:
            raise ModelError(f"{self.name}: too large for one message; write it with save instead")
        for tensor in external:
            data = self.data.read_bytes(tensor)
            tensor.ClearField("data_location")
            del tensor.external_data[:]
            tensor.raw_data = data
        return proto


def snapshot(model: OpenModel) -> OpenModel:
    """The model as it is now; external data is not copied."""
    proto = copied(model.proto)
    return replace(model, proto=proto)


def _copy_field(message: Any, name: str, value: Any) -> None:
    """Copy one field of a protobuf message, whatever kind it is."""
    if hasattr(value, "MergeFrom") or hasattr(value, "extend"):
        getattr(message, name).MergeFrom(value)
    else:
        setattr(message, name, value)


def open_model(path: PathLike) -> OpenModel:
    """Read a model file, leaving external data on disk but checking that it is there.

    Raises:
        ModelError: the file is missing, is not an ONNX model, is truncated, or its external data is
            missing, too short or outside the model's folder.
    """
    file = Path(path)
    proto = parse_model(file)
    check_message(file, proto)
    settle_spellings(proto)
    model = OpenModel(proto, ExternalData(file.absolute().parent, file.resolve().parent), file)
    for tensor in tensors(proto):
        if is_external(tensor):
            model.data.check(tensor)
    return model


def load_model(path: PathLike) -> onnx.ModelProto:
    """Read a model with all its data into memory.

    Raises:
        ModelError: as :func:`open_model`, or the model does not fit into one message (2 GiB).
    """
    model = open_model(path)
    return model.materialized() if model.has_external_data else model.proto


def save_model(
    model: onnx.ModelProto | OpenModel, path: PathLike, *, outside: bool = False
) -> None:
    """Write a model; the file appears whole or not at all.

    Where the model has external data or ``outside`` asks for it, and where it is too large for one
    file, its large tensors go to a file ``<name>.<hash>.data`` beside it. A link keeps pointing: the
    model that it leads to is replaced. ``model`` itself is not changed.

    Raises:
        UsageError: the folder does not exist or cannot be written to, or ``path`` is a pipe or device
            and the model needs more than one file.
        ModelError: the model cannot be serialised.
    """
    opened = model if isinstance(model, OpenModel) else OpenModel(model)
    target = Path(path)
    inline = [len(tensor.raw_data) for tensor in tensors(opened.proto)]
    outside = outside and max(inline, default=0) >= MIN_EXTERNAL_BYTES
    if outside or opened.has_external_data or sum(inline) > MAX_INLINE_BYTES:
        _save_with_data(opened, target)
        return
    try:
        serialized = opened.proto.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise ModelError(f"{opened.name} cannot be serialised: {error}") from error
    write_atomically(target, lambda file: file.write(serialized))


def copy_model(model: OpenModel, path: PathLike) -> None:
    """Copy the file that ``model`` was read from, with its external data, byte for byte.

    A model that was not read from a file is saved.

    Raises:
        UsageError: a file cannot be written, or another file of that name is in the way.
    """
    if model.path is None:
        save_model(model, path)
        return
    target = Path(path)
    locations = sorted(external_locations(model.proto))
    if locations:
        target = _regular(target)
    for location in locations:
        source = model.data.locate(location, location)
        beside = target.parent / location
        if beside.exists():
            _refuse_another(source, beside)
        else:
            _make_folder(beside.parent)
            with source.open("rb") as data:
                write_atomically(beside, functools.partial(shutil.copyfileobj, data))
        _link_beside(Path(path), beside, location)
    with model.path.open("rb") as file:
        write_atomically(target, functools.partial(shutil.copyfileobj, file))


def file_bytes(path: PathLike, proto: onnx.ModelProto | None = None) -> int:
    """Size of a model file and its external data together, in bytes.

    ``proto`` is what the file holds, if it has been read already.
    """
    file = Path(path)
    locations = external_locations(proto or parse_model(file))
    data = ExternalData(file.absolute().parent, file.resolve().parent)
    return file.stat().st_size + sum(data.locate(each, each).stat().st_size for each in locations)


def _regular(path: Path) -> Path:
    """The file that ``path`` leads to; UsageError for a stream, which has nothing beside it."""
    goal = destination(path)
    if goal.kind != "file":
        goal.check_writable()
        raise UsageError(
            f"cannot write {path}: the model has external data, and that needs a folder to lie in"
        )
    return goal.path


def _link_beside(path: Path, data: Path, location: str) -> None:
    """Where ``path`` is a link into another folder, link the data beside it: there runtimes look for it."""
    link = path.parent / location
    if link.parent.resolve() == data.parent.resolve():
        return
    if link.exists():
        _refuse_another(data, link)
        return
    _make_folder(link.parent)
    try:
        link.unlink(missing_ok=True)  # a link that leads nowhere any more
        link.symlink_to(data.absolute())
    except OSError as error:
        raise UsageError(f"cannot write {link}: {error.strerror or error}") from error


def _refuse_another(data: Path, present: Path) -> None:
    """Raise UsageError where the file that is there does not hold what ``data`` holds."""
    if not present.samefile(data) and not filecmp.cmp(data, present, shallow=False):
        raise UsageError(
            f"{present} already exists and belongs to another model: choose another folder"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error


def _save_with_data(model: OpenModel, path: Path) -> None:
    """Write the large tensors to one data file and the rest to the model file."""
    target = _regular(path)
    proto = copied(model.proto)
    large = [
        tensor
        for tensor in tensors(proto)
        if is_external(tensor) or len(tensor.raw_data) >= MIN_EXTERNAL_BYTES
    ]
    with temporary_file(target, path) as data, temporary_file(target, path) as file:
        offsets = model.data.write(large, data)
        location = content_name(target.name, data)
        for tensor in large:
            length = _length(tensor)
            set_location(tensor, location, offsets[id(tensor)], length)
        file.write(proto.SerializeToString())
        with locked_folder(target.parent):
            replaced = own_data_of(target) - {location}
            publish(data, target.with_name(location))
            _link_beside(path, target.with_name(location), location)
            publish(file, target)
            for old in replaced - used_by_others(target, replaced):
                target.with_name(old).unlink(missing_ok=True)
                if path.with_name(old).is_symlink():
                    path.with_name(old).unlink()


def _length(tensor: onnx.TensorProto) -> int:
    if not is_external(tensor):
        return len(tensor.raw_data)
    length = external_entry(tensor)[2]
    return (expected_bytes(tensor) or 0) if length is None else length
