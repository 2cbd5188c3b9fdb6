"""onnx-igpc: make the pointwise convolutions of a trained CNN cheap; ONNX in, ONNX out."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from onnx_igpc._version import __version__

if TYPE_CHECKING:
    from onnx_igpc.compression.pipeline import compress, inspect
    from onnx_igpc.evaluation.verify import verify
    from onnx_igpc.layout.schemes import plan_layout
    from onnx_igpc.report.result import CompressResult

_HOME = {
    "CompressResult": "onnx_igpc.report.result",
    "compress": "onnx_igpc.compression.pipeline",
    "inspect": "onnx_igpc.compression.pipeline",
    "plan_layout": "onnx_igpc.layout.schemes",
    "verify": "onnx_igpc.evaluation.verify",
}

__all__ = ["CompressResult", "__version__", "compress", "inspect", "plan_layout", "verify"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that ``import onnx_igpc`` stays fast."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a submodule binds it under its name; ``verify`` is to stay the function.
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
