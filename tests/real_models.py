"""The models of the folder that ONNX_IGPC_MODELS names, for tests that take any model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_FOLDER = os.environ.get("ONNX_IGPC_MODELS")
_NONE = pytest.mark.skip(reason="ONNX_IGPC_MODELS names no folder of models")

each_model = pytest.mark.parametrize(
    "path",
    (sorted(Path(_FOLDER).glob("*.onnx")) if _FOLDER else [])
    or [pytest.param(Path(), marks=_NONE)],
    ids=lambda path: path.stem,
)
