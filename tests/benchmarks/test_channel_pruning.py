"""Channels pruned by onnxsim for comparison: to the size that was asked for, and still a model that runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.channel_pruning import METHODS, prune
from tests.calibration_graphs import ListData
from tests.helpers import GraphBuilder, run


def chain() -> onnx.ModelProto:
    """Three pointwise layers in a row, of which the first two have channels to prune."""
    builder = GraphBuilder()
    builder.input("x", ["n", 16, 4, 4])
    name = "x"
    for number, filters in enumerate((32, 32, 8)):
        channels = 16 if not number else 32
        made = builder.conv(name, f"conv_{number}", channels, filters)
        name = builder.add("Relu", [made], f"relu_{number}") if number < 2 else made
    builder.output(name)
    return builder.model()


@pytest.mark.parametrize("method", METHODS)
def test_pruned_to_the_size_asked_for(method: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxsim", reason="onnxsim is not installed")
    model, source, path = chain(), tmp_path / "model.onnx", tmp_path / "pruned.onnx"
    onnx.save(model, source)
    x = np.random.default_rng(0).normal(size=(6, 16, 4, 4)).astype(np.float32)
    whole = 16 * 32 + 32 * 32 + 32 * 8
    found = prune(source, method, int(0.7 * whole), ListData(model, {"x": x}), path)
    assert 0.4 * whole < sum(found.weights.values()) <= 0.7 * whole
    assert 0 < found.sparsity < 0.95
    [value] = run(onnx.load(path), {"x": x}).values()
    assert value.shape == (6, 8, 4, 4)
