"""A budget of time knows where to stop: a lowered model that is of no use is refused, or told as such."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_igpc
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.report.result import CompressResult
from onnx_igpc.runtime.setting import Setting
from tests.calibration_graphs import saved
from tests.helpers import GraphBuilder
from tests.lowering_prices import Prices, by_operator

CHANNELS = 24
ONE = Setting(threads=1)
TARGET = "latency=10%"


def of_full_rank() -> onnx.ModelProto:
    """Two pointwise layers without any structure, pooled into a score for each channel."""
    generator = np.random.default_rng(5)
    graph = GraphBuilder()
    value = graph.input("x", ["n", CHANNELS, 4, 4])
    for number in (1, 2):
        weight = np.linalg.qr(generator.standard_normal((CHANNELS, CHANNELS)))[0]
        name = graph.initializer(f"w{number}", weight.reshape(*weight.shape, 1, 1).astype("f"))
        value = graph.add("Relu", [graph.add("Conv", [value, name], f"c{number}")], f"r{number}")
    flat = graph.add("Flatten", [graph.add("GlobalAveragePool", [value], "pooled")], "flat")
    head = graph.initializer("head", np.eye(CHANNELS, dtype=np.float32) * 4)
    graph.output(graph.add("Gemm", [flat, head], "scores"), ["n", CHANNELS])
    return graph.model()


def timed(tmp_path: Path, kind: str) -> CompressResult:
    values = np.random.default_rng(0).standard_normal((40, CHANNELS, 1, 1)) * 3
    x = np.broadcast_to(values, (40, CHANNELS, 4, 4)).astype(np.float32)
    return onnx_igpc.compress(
        of_full_rank(),
        onnx_igpc.Budget(TARGET),
        calibration=saved(tmp_path, x=x),
        lowering=onnx_igpc.Lowering(kind, setting=ONE, cache=False),
    )


@pytest.fixture(autouse=True)
def weights_cost_time(monkeypatch: pytest.MonkeyPatch) -> None:
    Prices(by_operator({}, weight=1.0)).install(monkeypatch)


def test_a_lowered_model_that_is_ruined_is_refused(tmp_path: Path) -> None:
    said = (
        rf"`target` {TARGET} would ruin the model: agreement .* \(95 %: .*\) on 40 samples not used for "
        "the fit, and what is lowered cannot be trained; give a larger share, or `lowering` literal"
    )
    with pytest.raises(CheckFailedError, match=said):
        timed(tmp_path, "auto")


def test_one_that_can_be_trained_is_written_and_lowering_it_untrained_is_told(
    tmp_path: Path,
) -> None:
    trainable = timed(tmp_path, "literal")
    damage = trainable.report.damage
    assert damage is not None
    assert damage.interval is not None
    assert damage.interval[1] < 0.5
    assert trainable.report.warnings[0].endswith("(onnx-igpc finetune), or more data")
    trainable.save(tmp_path / "small.onnx")
    lowered = onnx_igpc.lower(
        tmp_path / "small.onnx", lowering=onnx_igpc.Lowering(setting=ONE, cache=False)
    )
    first, *others = lowered.report.warnings
    assert "needs training before it is lowered" in first
    assert "with --lowering literal" in first
    assert not any("needs training" in text for text in others)
