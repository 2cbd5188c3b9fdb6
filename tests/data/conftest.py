"""A folder with everything that the commands read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_igpc import compress
from onnx_igpc.planning.options import Published
from tests.data.guarded import C
from tests.helpers import pointwise_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the commands read, in which one stands."""
    monkeypatch.chdir(tmp_path)
    proto = pointwise_model(C, C)
    onnx.save(proto, "outside.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    compress("outside.onnx", Published(12)).save("small.onnx")
    values = np.random.default_rng(0).standard_normal((8, C, 5, 5)).astype(np.float32)
    for name in ("data", "val"):
        np.savez(f"{name}.npz", x=values)
    for name in ("pre.json", "s.json", "merged.json", "measure.py", "state.pt"):
        Path(name).write_text("{}")
    return tmp_path
