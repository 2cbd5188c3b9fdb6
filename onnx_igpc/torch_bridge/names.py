"""ONNX tensor names as names of PyTorch parameters.

PyTorch reads the dots of a parameter's name as a path through sub-modules. ONNX names that came
from PyTorch have dots, so following them gives a ``state_dict`` whose keys are the ONNX names. A
part of a name that cannot be an attribute (empty, taken by ``torch.nn.Module``, or a tensor where
another tensor needs a sub-module) gets a ``%_`` in front. ``%`` itself is written ``%25``, so that
different names stay different.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

_MARK = "%_"
_OWN_ATTRIBUTES = frozenset(
    {"input_names", "output_names", "code", "bindings", "_program", "module", "_orig_mod"}
)
_PLAIN_MODULE = nn.Module()


def torch_names(onnx_names: Iterable[str]) -> dict[str, str]:
    """ONNX name -> dotted PyTorch name, for all tensors of a module at once."""
    escaped = {name: tuple(_escape(part) for part in name.split(".")) for name in onnx_names}
    packages = {parts[:end] for parts in escaped.values() for end in range(1, len(parts))}
    return {
        name: ".".join((*parts[:-1], _MARK + parts[-1]) if parts in packages else parts)
        for name, parts in escaped.items()
    }


def _escape(part: str) -> str:
    escaped = part.replace("%", "%25")
    taken = hasattr(_PLAIN_MODULE, part) or part in _OWN_ATTRIBUTES
    return _MARK + escaped if taken or not part else escaped
