"""optimize on a network with residual blocks: cuts of them, trained back and in int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_igpc
from onnx_igpc import Setting
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering import block_prices
from tests.calibration_graphs import faint, residual_model
from tests.compression.optimization.test_optimize import options

pytestmark = pytest.mark.usefixtures("quick")


def test_cuts_of_blocks_are_tried_trained_and_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def race(models: Sequence[OpenModel], setting: Setting, rounds: int) -> np.ndarray:
        return np.ones((rounds, 1)) * np.array([1e-9 * count(each).macs for each in models])

    monkeypatch.setattr(block_prices, "race_models", race)
    values = np.random.default_rng(3).standard_normal((160, 8, 6, 6)).astype(np.float32)
    onnx.save(faint(residual_model(8, blocks=3), b1=0.02, b2=0.05), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=values)
    files = tmp_path / "model.onnx", tmp_path / "data.npz"
    wanted = options(shorter=(80, 60, 15, 10), shares=())
    report = onnx_igpc.optimize(*files, tmp_path / "best", optimization=wanted)
    names = [point.name for point in report.points]
    assert {"cut of blocks to 80 %", "cut of blocks to 80 %, int8", "cut of blocks to 60 %"} <= set(
        names
    )
    steps = {step.name: step for step in report.steps}
    assert steps["cut of blocks to 80 %"].note == "1 residual blocks collapsed"
    too_short = "cannot be reached by collapsing residual blocks"
    assert steps["cut of blocks to 15 %"].status == "skipped"
    assert too_short in (steps["cut of blocks to 15 %"].note or "")
    assert too_short in (steps["cut of blocks to 10 %"].note or ""), "no smaller one is tried"
    lines = (tmp_path / "best" / "commands.sh").read_text()
    assert "--target latency=80% --blocks only --lowering literal" in lines
