"""What a session is made from: a model file, or a model in memory in a form that onnxruntime takes.

Inner tensors can be made outputs on the way. A model that does not fit into one protobuf message
(2 GiB) is written to a temporary folder, with its weights in a file of their own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnx_igpc.errors import ModelError
from onnx_igpc.graph.external_data import MAX_INLINE_BYTES, SCRATCH_LOCATION, is_external
from onnx_igpc.graph.model import OpenModel, open_model, save_model
from onnx_igpc.graph.traversal import copied, tensors

AnyModel = onnx.ModelProto | OpenModel | str | os.PathLike[str]
"""A model that a session can be made from: in memory, or a path."""


@dataclass(frozen=True)
class SessionSource:
    """model: a path or a serialized model. external_dir: where onnxruntime finds the external data
    of a serialized model. folder: a temporary folder that must outlive the session.
    """

    model: str | bytes
    external_dir: Path | None = None
    folder: tempfile.TemporaryDirectory[str] | None = None


def session_source(model: AnyModel, extra_outputs: Sequence[str] = ()) -> SessionSource:
    """A model as onnxruntime takes it, with the tensors ``extra_outputs`` as further graph outputs.

    The model is left as it is. Raises ModelError for a file that is missing or not a model, an extra
    output that no node computes, and a ModelProto whose weights lie in files.
    """
    if isinstance(model, (str, os.PathLike)) and not extra_outputs:
        if not Path(model).is_file():
            raise ModelError(f"{model}: no such model file")
        return SessionSource(os.fspath(model))
    opened = _opened(model)
    if extra_outputs:
        proto = _with_outputs(opened.proto, extra_outputs)
        opened = OpenModel(proto, opened.data, opened.path)
    external = [tensor for tensor in tensors(opened.proto) if is_external(tensor)]
    if external and opened.data.base_dir is None:
        raise ModelError("the model's weights lie in external files: pass its path instead")
    scratch = any(entry.value == SCRATCH_LOCATION for t in external for entry in t.external_data)
    inline_bytes = sum(len(tensor.raw_data) for tensor in tensors(opened.proto))
    if inline_bytes < MAX_INLINE_BYTES and not scratch:
        return SessionSource(opened.proto.SerializeToString(), opened.data.base_dir)
    folder = tempfile.TemporaryDirectory(prefix="onnx-igpc-", ignore_cleanup_errors=True)
    path = Path(folder.name) / "model.onnx"
    save_model(opened, path)
    return SessionSource(str(path), folder=folder)


def _opened(model: AnyModel) -> OpenModel:
    if isinstance(model, OpenModel):
        return model
    return OpenModel(model) if isinstance(model, onnx.ModelProto) else open_model(model)


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of the model, weights included, with inner tensors as further graph outputs."""
    computed = {name for node in model.graph.node for name in node.output}
    if missing := [name for name in names if name not in computed]:
        raise ModelError(f"no node of the model computes {missing[0]!r}: it cannot be an output")
    copy = copied(model)
    present = {output.name for output in copy.graph.output}
    for name in dict.fromkeys(names):
        if name not in present:
            # Without a type: onnxruntime infers it, as it does for every inner tensor.
            copy.graph.output.add().name = name
    return copy
