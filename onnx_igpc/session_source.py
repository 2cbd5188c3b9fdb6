"""What a session is made from: a model file, or a ModelProto in a form that onnxruntime takes.

Inner tensors can be made outputs on the way. A ModelProto beyond protobuf's limit of 2 GiB is written
to a temporary folder with its weights in a file of their own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnx_igpc.errors import ModelError
from onnx_igpc.external_data import ALIGNMENT, MIN_EXTERNAL_BYTES, is_external, set_location

# protobuf stops at 2 GiB; what is not a weight needs room too
_MAX_PROTO_BYTES = 2**31 - 2**22
_DATA_FILE = "weights.bin"


@dataclass(frozen=True)
class SessionSource:
    """model: a path or a serialized model. external_dir: where onnxruntime finds the external data
    of a serialized model. folder: a temporary folder that must outlive the session.
    """

    model: str | bytes
    external_dir: Path | None = None
    folder: tempfile.TemporaryDirectory[str] | None = None


def session_source(
    model: onnx.ModelProto | str | os.PathLike[str],
    extra_outputs: Sequence[str] = (),
    base_dir: str | os.PathLike[str] | None = None,
) -> SessionSource:
    """A model as onnxruntime takes it, with the tensors ``extra_outputs`` as further graph outputs.

    base_dir: the folder of a ModelProto's external data. The model is left as it is. Raises
    ModelError for a file that is missing or not a model, an extra output that no node computes, and
    a ModelProto with external data but no ``base_dir``.
    """
    if not isinstance(model, onnx.ModelProto):
        path = Path(model)
        if not path.is_file():
            raise ModelError(f"{path}: no such model file")
        if not extra_outputs:
            return SessionSource(str(path))
        base_dir = path.parent
        model = _load_graph(path)
    external = any(is_external(tensor) for tensor in model.graph.initializer)
    if external and base_dir is None:
        raise ModelError("the model's weights lie in external files: pass its path instead")
    external_dir = Path(base_dir).resolve() if base_dir is not None else None
    if extra_outputs:
        model = _with_outputs(model, extra_outputs)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < _MAX_PROTO_BYTES:
        return SessionSource(model.SerializeToString(), external_dir)
    if external:
        raise ModelError("the model is beyond 2 GiB, partly in external files: save it first")
    folder = tempfile.TemporaryDirectory(prefix="onnx-igpc-", ignore_cleanup_errors=True)
    return SessionSource(str(_spill(model, Path(folder.name))), folder=folder)


def _load_graph(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises several unrelated types
        raise ModelError(f"{path}: not an ONNX model: {' '.join(str(error).split())}") from error


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of the model, weights included, with inner tensors as further graph outputs."""
    computed = {name for node in model.graph.node for name in node.output}
    if missing := [name for name in names if name not in computed]:
        raise ModelError(f"no node of the model computes {missing[0]!r}: it cannot be an output")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output}
    for name in dict.fromkeys(names):
        if name not in present:
            # Without a type: onnxruntime infers it, as it does for every inner tensor.
            copy.graph.output.add().name = name
    return copy


def _spill(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model whose large initializers lie in one external file; the model is unchanged."""
    slim = onnx.ModelProto()
    _copy_fields(model, slim, without="graph")
    _copy_fields(model.graph, slim.graph, without="initializer")
    with (folder / _DATA_FILE).open("wb") as weights:
        for tensor in model.graph.initializer:
            target = slim.graph.initializer.add()
            if len(tensor.raw_data) < MIN_EXTERNAL_BYTES:
                target.CopyFrom(tensor)
                continue
            target.name, target.data_type = tensor.name, tensor.data_type
            target.dims.extend(tensor.dims)
            weights.write(b"\0" * (-weights.tell() % ALIGNMENT))
            set_location(target, _DATA_FILE, weights.tell(), len(tensor.raw_data))
            weights.write(tensor.raw_data)
    path = folder / "model.onnx"
    path.write_bytes(slim.SerializeToString())
    return path


def _copy_fields(source: Any, target: Any, without: str) -> None:
    for field, value in source.ListFields():
        if field.name == without:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
