"""Running a bridged module: tensors where and as it is fast, and what goes wrong in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from onnx_igpc.errors import ModelError


def as_list(result: Any) -> list[torch.Tensor]:
    """What a bridged module returns, as a list in any case."""
    return list(result) if isinstance(result, tuple) else [result]


def placed(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device; images with the channels innermost, the faster order for depthwise layers."""
    tensor = tensor.to(device, non_blocking=True)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def put_channels_innermost(module: nn.Module) -> None:
    """The faster order for depthwise layers; tensors of another rank than four have no such order."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def in_words(inputs: Sequence[torch.Tensor]) -> Iterator[None]:
    """Raise ModelError for what PyTorch says of shapes that do not go together.

    Too little memory is not the model's fault, and stays what it is.
    """
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        if "allocate memory" in reason or "out of memory" in reason:
            raise
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        if "is invalid for input of size" in reason:
            reason += (
                " (if its Reshape takes one batch size only, export the model with a dynamic batch, or with "
                "that batch size in its input's shape)"
            )
        raise ModelError(f"the model cannot run on {shapes} in PyTorch: {reason}") from error
