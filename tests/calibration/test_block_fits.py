"""The convolution that stands for a residual block: fitted to data in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_igpc.calibration.block_fits import block_moments, collapsed, fit_blocks, fitted
from onnx_igpc.errors import DataError
from onnx_igpc.fitting.moments import Moments, MomentsAccumulator
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import find_sites
from onnx_igpc.sites.residual_blocks import ResidualBlock, find_blocks
from tests.calibration_graphs import ListData, faint, images, residual_model
from tests.helpers import run


def opened_blocks(model: OpenModel) -> list[ResidualBlock]:
    return find_blocks(find_sites(GraphView(model)))


def moments_of(x: np.ndarray, y: np.ndarray) -> Moments:
    sums = MomentsAccumulator(2 * len(x))
    sums.add(np.concatenate([x, y]))
    result = sums.result()
    assert result is not None
    return result


@given(st.integers(1, 12), st.integers(0, 1000), st.floats(0.01, 10))
@settings(max_examples=25, deadline=None)
def test_a_linear_block_is_found_again(channels: int, seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(2.0, 1.0, (channels, 400))
    matrix = np.eye(channels) + size * random.normal(size=(channels, channels))
    bias = random.normal(size=channels)
    found = fitted(moments_of(x, matrix @ x + bias[:, np.newaxis]))
    assert found.error is not None
    assert found.error < 1e-3
    # The ridge draws the change a little towards nothing.
    np.testing.assert_allclose(found.matrix, matrix, atol=0.02 * (1 + size))
    np.testing.assert_allclose(
        found.matrix @ x.mean(axis=1) + found.bias, (matrix @ x).mean(axis=1) + bias, atol=1e-6
    )


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_error_is_the_part_that_is_missed_and_never_more_than_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(6, 300))
    y = x + np.maximum(random.normal(size=(6, 6)) @ x, 0) + random.normal(size=(6, 300))
    found = fitted(moments_of(x, y))
    missed = y - found.matrix @ x - found.bias[:, np.newaxis]
    added = y - x
    expected = np.mean(missed**2) / np.mean((added - added.mean(axis=1, keepdims=True)) ** 2)
    assert found.error == pytest.approx(expected, rel=1e-6)
    assert 0 < expected <= 1


def test_a_block_that_adds_nothing_and_a_channel_that_is_silent() -> None:
    x = np.random.default_rng(0).normal(size=(4, 100))
    x[2] = 0
    found = fitted(moments_of(x, x))
    assert found.error == 0.0
    np.testing.assert_allclose(found.matrix, np.eye(4), atol=1e-12)
    assert np.isfinite(fitted(moments_of(np.zeros((4, 9)), np.zeros((4, 9)))).matrix).all()


def test_moments_are_those_of_both_tensors_and_join_over_parts() -> None:
    model = OpenModel(residual_model(8))
    blocks, x = opened_blocks(model), images(24, 8)
    whole = block_moments(model, blocks, ListData(model.proto, {"x": x}))
    parts = [
        block_moments(model, blocks, ListData(model.proto, {"x": part})) for part in (x[:7], x[7:])
    ]
    for block in blocks:
        joined = Moments.joined([part[block.name] for part in parts])
        np.testing.assert_allclose(whole[block.name].second, joined.second, rtol=1e-4, atol=1e-5)
        assert whole[block.name].count == 24 * 36
    np.testing.assert_allclose(
        whole["sum0_node"].mean[:8], x.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-5
    )


def test_the_second_block_makes_up_for_the_first() -> None:
    model = OpenModel(faint(residual_model(8), b0=0.5, b1=0.5))
    blocks, x = opened_blocks(model), images(64, 8)
    data = ListData(model.proto, {"x": x})
    behind = fit_blocks(model, blocks, data)
    apart = {name: fitted(each) for name, each in block_moments(model, blocks, data).items()}
    np.testing.assert_allclose(behind["sum0_node"].matrix, apart["sum0_node"].matrix)
    expected = run(model.proto, {"x": x})["y"]

    def missed(weights: dict[str, object]) -> float:
        made = run(collapsed(model, weights).proto, {"x": x})["y"]  # type: ignore[arg-type]
        return float(np.mean((made - expected) ** 2))

    assert missed(dict(behind)) <= missed(dict(apart))
    assert not np.allclose(behind["sum1_node"].matrix, apart["sum1_node"].matrix)


def test_values_that_are_not_finite_are_named() -> None:
    model = OpenModel(residual_model(8, blocks=1))
    x = images(4, 8)
    x[2, 3, 1, 1] = np.nan
    with pytest.raises(DataError, match="tensor 'x' holds NaN on the calibration data"):
        block_moments(model, opened_blocks(model), ListData(model.proto, {"x": x}))
