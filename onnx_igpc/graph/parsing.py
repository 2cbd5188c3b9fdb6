"""From a file to a message that can be worked with, or to one line that says what is wrong with it.

A protobuf message can hold what ONNX forbids: text that is not UTF-8, unknown types, negative
dimensions, data that does not fill its shape. Everything behind this module may rely on there being
none of it.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from onnx import TensorProto

from onnx_igpc.errors import ModelError
from onnx_igpc.graph.external_data import expected_bytes, is_external
from onnx_igpc.graph.traversal import NodeHolder, subgraphs

_TYPES = frozenset(TensorProto.DataType.values())
_MOST_VERSION = 2**31
_VALUE_TYPES = (onnx.TypeProto.Tensor, onnx.TypeProto.SparseTensor)
_TENSOR_FIELDS = tuple(
    TensorProto.DESCRIPTOR.fields_by_name[name]
    for name in ("name", "doc_string", "external_data", "metadata_props")
)
# What a field of a message holds.
_TEXT, _TEXTS, _MESSAGE, _MESSAGES, _OTHER = "text", "texts", "message", "messages", "other"
# Elements of the typed fields for one element of the tensor; packed types are stored as raw data.
_TYPED_FIELDS: dict[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.STRING: ("string_data", 1),
    **dict.fromkeys(
        (
            TensorProto.INT32,
            TensorProto.INT16,
            TensorProto.INT8,
            TensorProto.UINT16,
            TensorProto.UINT8,
            TensorProto.BOOL,
            TensorProto.FLOAT16,
            TensorProto.BFLOAT16,
        ),
        ("int32_data", 1),
    ),
}


def parse_model(path: Path) -> onnx.ModelProto:
    """The message in the file, without copying the file into memory first.

    Raises:
        ModelError: the file is missing, is no file, or does not hold a model.
    """
    proto = onnx.ModelProto()
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise ModelError(f"{path} is not a regular file: models are read from files only")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path} is empty: not an ONNX model")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                proto.ParseFromString(memoryview(mapped))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder, not an ONNX model") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path} cannot be read: {reason}") from error
    except DecodeError:
        raise ModelError(f"{path} is not an ONNX model, or is truncated") from None
    if not proto.HasField("graph") or not proto.ir_version or not proto.opset_import:
        raise ModelError(f"{path} is not an ONNX model, or is truncated")
    return proto


def check_message(path: Path | str, model: onnx.ModelProto) -> None:
    """Refuse what protobuf lets through and ONNX does not know, before anything works with it.

    ``path`` is how messages call the model.

    Raises:
        ModelError: versions that no operator set has, names or other text that is not UTF-8,
            types that do not exist, negative dimensions of tensors, inline data that does not fill
            its shape, attributes given twice, functions that call themselves or one another without
            measure.
    """
    for entry in (*model.opset_import, *(e for f in model.functions for e in f.opset_import)):
        if not 0 <= entry.version < _MOST_VERSION:
            raise ModelError(f"{path} asks for version {entry.version} of an operator set")
    check_function_calls(model, str(path))
    pending: list[Any] = [model]
    while pending:
        message = pending.pop()
        kind = type(message)
        if kind is TensorProto:
            _check_tensor(path, message)
            # Without raw_data, which would be copied.
            fields = [(each, getattr(message, each.name)) for each in _TENSOR_FIELDS]
        else:
            fields = message.ListFields()
        if kind is onnx.NodeProto and len(message.attribute) > 1:
            _check_attributes(path, message)
        elif kind in _VALUE_TYPES and message.elem_type not in _TYPES:
            raise ModelError(f"{path} declares a value of unknown type {message.elem_type}")
        for field, value in fields:
            holds = _content(field)
            # Text that is not UTF-8 comes out as bytes.
            if (holds is _TEXT and type(value) is bytes) or (
                holds is _TEXTS and bytes in map(type, value)
            ):
                raise _not_text(path, message, field.name)
            if holds is _MESSAGE:
                pending.append(value)
            elif holds is _MESSAGES:
                pending.extend(value)


def _check_attributes(path: Path | str, node: onnx.NodeProto) -> None:
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        label = node.name or next(iter(node.output), node.op_type)
        raise ModelError(f"{path}: node {label!r} has attribute {twice!r} more than once")


def _not_text(path: Path | str, message: Any, name: str) -> ModelError:
    kind = message.DESCRIPTOR.name.removesuffix("Proto").lower()
    what = "names" if name in ("name", "input", "output") else f"text ({name} of a {kind})"
    return ModelError(f"{path} holds {what} that are not UTF-8: the file is damaged")


@cache
def _content(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        return _MESSAGES if field.is_repeated else _MESSAGE
    if field.type == FieldDescriptor.TYPE_STRING:
        return _TEXTS if field.is_repeated else _TEXT
    return _OTHER


def _check_tensor(path: Path | str, tensor: TensorProto) -> None:
    """Refuse data that does not fill the declared shape, before anything allocates for it."""
    if tensor.data_type not in _TYPES:
        raise ModelError(f"{path}: tensor {tensor.name!r} has unknown type {tensor.data_type}")
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"{path}: tensor {tensor.name!r} has a negative dimension")
    if is_external(tensor):
        return
    if tensor.HasField("raw_data"):
        expected = expected_bytes(tensor)
        if expected is not None and expected != len(tensor.raw_data):
            raise ModelError(
                f"{path}: tensor {tensor.name!r} needs {expected} bytes but holds "
                f"{len(tensor.raw_data)}: the file is damaged"
            )
    elif tensor.data_type in _TYPED_FIELDS:
        name, share = _TYPED_FIELDS[tensor.data_type]
        needed, held = share, len(getattr(tensor, name))
        for dim in tensor.dims:
            needed *= dim
        if needed != held:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} needs {needed} values but holds {held}: "
                "the file is damaged"
            )


MAX_RUN_NODES = 1_000_000


def check_function_calls(model: onnx.ModelProto, name: str) -> None:
    """Refuse functions that call themselves, and calls without measure.

    Raises:
        ModelError: a function calls itself, perhaps through others, or the model runs more than a
            million nodes once every call is followed.
    """
    if not model.functions:
        return
    functions = {_key(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    for function in _callees_first(functions, name):
        sizes[_key(function.domain, function.name)] = _size(function, sizes)
    if _size(model.graph, sizes) > MAX_RUN_NODES:
        raise ModelError(
            f"{name} runs more than {MAX_RUN_NODES} nodes when its functions are called: not supported"
        )


def _key(domain: str, name: str) -> tuple[str, str]:
    return domain, name


def _nodes(holder: NodeHolder) -> Iterable[onnx.NodeProto]:
    """The nodes of a graph or function, those of its sub-graphs among them."""
    pending = list(holder.node)
    while pending:
        node = pending.pop()
        yield node
        for _, graph in subgraphs(node):
            pending.extend(graph.node)


def _size(holder: NodeHolder, sizes: dict[tuple[str, str], int]) -> int:
    return sum(1 + sizes.get(_key(node.domain, node.op_type), 0) for node in _nodes(holder))


def _callees_first(
    functions: dict[tuple[str, str], onnx.FunctionProto], name: str
) -> list[onnx.FunctionProto]:
    """The functions, each behind those that it calls; raises as :func:`check_function_calls`."""
    calls = {
        key: {_key(node.domain, node.op_type) for node in _nodes(function)} & functions.keys()
        for key, function in functions.items()
    }
    ordered: list[onnx.FunctionProto] = []
    while calls:
        ready = [key for key, callees in calls.items() if not callees]
        if not ready:
            stuck = min(calls)
            raise ModelError(f"{name}: function {stuck[1]!r} calls itself, which ONNX forbids")
        for key in ready:
            ordered.append(functions[key])
            del calls[key]
        for callees in calls.values():
            callees.difference_update(ready)
    return ordered
