"""Tensors in safetensors files, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from onnx_igpc.errors import MissingExtraError, ModelError, first_line
from onnx_igpc.graph.model import write_atomically


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str] | None = None
) -> None:
    """Write tensors as a safetensors file, whole or not at all; raises as :func:`save_checkpoint`."""
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise MissingExtraError("safetensors", "torch", "writing weights") from error
    # Tensors that share storage, or lie in another memory format, cannot be written as they are.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    content = save(plain, dict(header or {}))
    write_atomically(path, lambda file: file.write(content))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file on the CPU, and its header.

    Raises:
        ModelError: it is missing, or not a safetensors file.
        MissingExtraError: safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "torch", "reading weights") from error
    try:
        with safe_open(path, framework="pt") as file:
            # clone: what is read is mapped, and the file may be replaced later.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is not a safetensors file: {first_line(error)}") from error
