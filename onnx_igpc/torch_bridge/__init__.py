"""The bridge between an ONNX graph and PyTorch: the graph *is* the module.

:func:`to_torch` turns a model into a :class:`torch.nn.Module` whose parameters are the float
weights of the graph under their ONNX names; :func:`from_torch` copies the trained values back into
the same graph and changes nothing else. :func:`register_operator` teaches the bridge an operator
that it does not know.

Importing this package does not import torch; the first call does.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from onnx_igpc.errors import MissingExtraError
from onnx_igpc.torch_bridge.registry import Inputs, register_operator

if TYPE_CHECKING:
    import onnx
    import torch

    from onnx_igpc.torch_bridge.module import OnnxModule

__all__ = ["Inputs", "from_torch", "register_operator", "require_torch", "to_torch"]


def to_torch(model: onnx.ModelProto) -> OnnxModule:
    """The model as a trainable PyTorch module.

    Args:
        model: An ONNX model with its tensors in memory (external data loaded). It is not changed.

    Returns:
        A module in training mode. It takes the graph inputs as positional tensors in graph order
        and returns the graph output, or a tuple of them in graph order. Weights are parameters,
        BatchNormalization statistics and other float constants are buffers. Whatever the graph
        declares as float16 or bfloat16 is computed in float32 (autocast brings half precision
        back); unsigned integers wider than 8 bits are computed as signed ones.

    Raises:
        ModelError: The model uses operators the bridge does not know (all are named at once), or
            it is broken.
        MissingExtraError: torch is not installed.
    """
    require_torch()
    from onnx_igpc.torch_bridge.convert import convert

    return convert(model)


def from_torch(module: torch.nn.Module, model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` that holds the weights and statistics of ``module``.

    Args:
        module: What :func:`to_torch` made of ``model``, trained or not; it may be wrapped by
            ``torch.compile`` or ``DistributedDataParallel``.
        model: The model the module was made of. It is not changed.

    Returns:
        A copy in which the tensors whose values differ are rewritten, each in its own dtype and
        encoding; every other byte is as it was. A BatchNormalization tensor that shared its storage
        with another one, and no longer equals it, gets a tensor of its own.

    Raises:
        ModelError: The module was not made from this graph.
        MissingExtraError: torch is not installed.
    """
    require_torch()
    from onnx_igpc.torch_bridge.write_back import write_back

    return write_back(module, model)


def require_torch() -> None:
    """Raise MissingExtraError where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "torch", "the PyTorch bridge")
