"""State dicts of bridged modules in files, for training loops that are not this package's."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import onnx
import torch

from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.torch_bridge import from_torch, to_torch
from onnx_igpc.torch_bridge.tensor_files import read_tensors, write_tensors

STATE_FILE = "weights.safetensors"
# What torch raises for files that are no archives of tensors, or damaged ones.
_LOAD_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    OSError,
    ImportError,
    struct.error,
    zipfile.BadZipFile,
)
_WRAPPERS = ("_orig_mod.", "module.")


def export_state(model: onnx.ModelProto, folder: Path) -> Path:
    """Write the state dict of ``to_torch(model)`` to ``weights.safetensors`` in a folder.

    Returns:
        The file. The folder is made if it is missing.

    Raises:
        UsageError: it cannot be written.
        ModelError: as :func:`onnx_igpc.torch_bridge.to_torch`.
    """
    state = to_torch(model).state_dict()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error
    path = folder / STATE_FILE
    write_tensors(path, state)
    return path


def import_state(model: onnx.ModelProto, state: Path) -> onnx.ModelProto:
    """A copy of the model with the weights of a state dict.

    Args:
        state: A .safetensors file, a file that ``torch.save`` wrote of a state dict, or the folder
            that :func:`export_state` wrote to. Names may have the prefixes of ``torch.compile`` and
            ``DistributedDataParallel``. Pickled files are read as weights only: they run no code.

    Raises:
        ModelError: the file is missing, holds no state dict, or one of another model.
    """
    module = to_torch(model)
    expected = module.state_dict()
    tensors = {
        name if name in expected else _plain(name): value for name, value in _read(state).items()
    }
    missing = sorted(expected.keys() - tensors.keys())
    surplus = sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        what = f"lacks {missing[0]!r}" if missing else f"has {surplus[0]!r} besides"
        raise ModelError(f"{state} is of another model: it {what}")
    for name, value in expected.items():
        found = tensors[name]
        if found.layout != torch.strided or found.is_quantized or found.is_meta:
            raise ModelError(f"{state}: {name!r} is not a plain tensor")
        if found.is_floating_point() != value.is_floating_point() or found.is_complex():
            raise ModelError(
                f"{state} is of another model: {name!r} is {found.dtype} there and {value.dtype} here"
            )
        if found.shape != value.shape:
            raise ModelError(
                f"{state} is of another model: {name!r} is {list(tensors[name].shape)} there and "
                f"{list(value.shape)} in the model"
            )
    module.load_state_dict(tensors)
    return from_torch(module, model)


def state_file(state: Path) -> Path:
    """The file of a state dict that is given by itself or by the folder it lies in."""
    return state / STATE_FILE if state.is_dir() else state


def _read(state: Path) -> dict[str, torch.Tensor]:
    path = state_file(state)
    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path} holds no state dict of tensors: {reason}") from error
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ModelError(f"{path} holds no state dict of tensors: save module.state_dict()")
    return {str(name): value for name, value in found.items()}


def _plain(name: str) -> str:
    """A name without the prefixes that wrappers put in front."""
    while name.startswith(_WRAPPERS):
        for prefix in _WRAPPERS:
            name = name.removeprefix(prefix)
    return name
