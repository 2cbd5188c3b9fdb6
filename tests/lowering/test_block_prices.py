"""What a model costs without its residual blocks, counted and raced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.lowering import block_prices
from onnx_igpc.lowering.block_prices import CountedBlocks, RacedBlocks
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.sites.find import find_sites
from onnx_igpc.sites.residual_blocks import find_blocks
from tests.calibration_graphs import residual_model

# Of one block of 8 channels: 1x1 to 16, 3x3 depthwise, 1x1 to 8, at 36 positions.
BLOCK = 36 * (8 * 16 + 9 * 16 + 16 * 8)
CONVOLUTION = 36 * 8 * 8


def test_multiply_accumulates_are_counted_on_the_collapsed_graph() -> None:
    model = OpenModel(residual_model(8, blocks=3))
    blocks, whole = find_blocks(find_sites(GraphView(model))), count(model).macs
    assert whole == 3 * BLOCK
    left = CountedBlocks(model).left([[], blocks[:1], blocks])
    assert left == [1.0, 1 - (BLOCK - CONVOLUTION) / whole, CONVOLUTION / BLOCK]


def test_every_set_is_raced_beside_the_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = OpenModel(residual_model(8, blocks=3))
    blocks = find_blocks(find_sites(GraphView(model)))
    races: list[int] = []

    def race(models: Sequence[OpenModel], setting: Setting, rounds: int) -> np.ndarray:
        assert setting.threads == 1
        races.append(len(models))
        assert models[0] is model
        noise = np.linspace(0.9, 1.1, rounds)[:, np.newaxis]
        return noise * np.array([1e-9 * count(each).macs for each in models])

    monkeypatch.setattr(block_prices, "race_models", race)
    raced = RacedBlocks(model, Setting(threads=1), "float32")
    sets = [blocks[:1], blocks[:2], blocks, blocks[1:], [], blocks[2:], blocks[:1]]
    assert raced.left(sets) == pytest.approx(CountedBlocks(model).left(sets))
    assert races == [7, 2], "few at once"
    assert raced.dense_seconds == pytest.approx(1e-9 * count(model).macs)


def test_a_real_race_says_that_fewer_blocks_are_faster() -> None:
    model = OpenModel(residual_model(64, blocks=3, batch=8))
    blocks = find_blocks(find_sites(GraphView(model)))
    one, every = RacedBlocks(model, Setting(threads=1, batch=8), "float32").left(
        [blocks[:1], blocks]
    )
    assert 0 < every < one
