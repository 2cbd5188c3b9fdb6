"""Calibrated fits: the objective is the one stated, and the mean output is exact."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_igpc.fitting.calibrated import (
    calibrated_error,
    corrected_bias,
    effective_target,
    fit_calibrated,
    scale_filters,
    variance_gains,
)
from onnx_igpc.fitting.fit import fit_layout, random_weights
from onnx_igpc.fitting.moments import Moments, PairAccumulator, SiteStatistics
from onnx_igpc.fitting.output_metric import OutputMetric
from onnx_igpc.fitting.weights import igpc_matrix, relative_error
from onnx_igpc.layout.extended import extended_layout, low_rank_layout
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.schemes import plan_layout

C, F, POSITIONS = 12, 12, 4000


def _pair(noise: float = 0.4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x and x^, shape (C, positions): correlated channels, means that are not zero."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((C, C)) @ generator.standard_normal((C, POSITIONS)) + 3.0
    damaged = 0.8 * x + noise * generator.standard_normal((C, POSITIONS)) - 1.0
    return x, damaged


def _statistics(x: np.ndarray, damaged: np.ndarray) -> SiteStatistics:
    sums = PairAccumulator(len(x))
    sums.add(x, damaged)
    found = sums.result()
    assert found is not None
    return found


def _weight(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((F, C))


def _plain(x: np.ndarray) -> SiteStatistics:
    return SiteStatistics.unchanged(Moments(x.mean(axis=1), np.cov(x, bias=True), x.shape[1]))


@pytest.mark.parametrize("bias", [None, np.linspace(-2.0, 2.0, F)])
def test_mean_output_is_exact_and_the_error_is_the_one_stated(bias: np.ndarray | None) -> None:
    x, damaged = _pair()
    W, layout = _weight(), plan_layout(C, F, 4)
    fit = fit_calibrated(layout, W, bias, _statistics(x, damaged))
    M = igpc_matrix(layout, fit.weights)
    b = np.zeros(F) if bias is None else bias
    wanted = W @ x + b[:, np.newaxis]
    made = M @ damaged + fit.bias[:, np.newaxis]
    np.testing.assert_allclose(made.mean(axis=1), wanted.mean(axis=1), atol=1e-9)
    centred = wanted - wanted.mean(axis=1, keepdims=True)
    error = np.mean((wanted - made) ** 2) / np.mean(centred**2)
    assert fit.error == pytest.approx(error, rel=1e-9)


def test_without_earlier_damage_the_target_is_the_weight() -> None:
    x, _ = _pair()
    W, statistics = _weight(), _plain(x)
    target, metric = effective_target(W, statistics)
    assert np.array_equal(target, W)
    np.testing.assert_allclose(metric, statistics.second, rtol=0.01, atol=0.02)


def test_the_target_is_the_least_squares_solution() -> None:
    x, damaged = _pair()
    W = _weight()
    target, _ = effective_target(W, _statistics(x, damaged), ridge=0.0)
    wanted = W @ (x - x.mean(axis=1, keepdims=True))
    seen = damaged - damaged.mean(axis=1, keepdims=True)
    best = np.linalg.lstsq(seen.T, wanted.T, rcond=None)[0].T
    np.testing.assert_allclose(target, best, atol=1e-8)


def test_dead_channels_keep_their_weights() -> None:
    x, damaged = _pair()
    x[3] = damaged[3] = 5.0
    W = _weight()
    target, _ = effective_target(W, _statistics(x, damaged))
    np.testing.assert_allclose(target[:, 3], W[:, 3])
    assert np.isfinite(target).all()


def test_an_asymmetric_fit_beats_a_symmetric_one_on_damaged_input() -> None:
    x, damaged = _pair(noise=2.0)
    W, layout, statistics = _weight(), plan_layout(C, F, 4), _statistics(x, damaged)
    fit = fit_calibrated(layout, W, None, statistics)
    symmetric = fit_layout(layout, W, statistics.second)
    assert fit.error < 0.95 * calibrated_error(W, igpc_matrix(layout, symmetric), statistics)


def test_data_make_the_error_on_data_smaller() -> None:
    x, _ = _pair()
    W, layout, statistics = _weight(), plan_layout(C, F, 4), _plain(x)
    fit = fit_calibrated(layout, W, None, statistics)
    blind = igpc_matrix(layout, fit_layout(layout, W))
    assert fit.error < 0.8 * calibrated_error(W, blind, statistics)
    M = igpc_matrix(layout, fit.weights)
    assert fit.error == pytest.approx(relative_error(W, M, statistics.second))


def test_filter_scale_decides_which_filters_count() -> None:
    x, _ = _pair()
    W, layout, statistics = _weight(), plan_layout(C, F, 4), _plain(x)
    scale = np.where(np.arange(F) < 3, 100.0, 1.0)
    errors = []
    for each in (None, scale):
        M = igpc_matrix(
            layout,
            fit_calibrated(layout, W, None, statistics, OutputMetric.of_scale(each, F)).weights,
        )
        errors.append(relative_error(W[:3], M[:3], statistics.second))
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    "layout",
    [
        plan_layout(12, 12, 4),
        plan_layout(12, 10, 5),
        plan_layout(13, 11, 4),
        plan_layout(12, 30, 4),
        plan_layout(8, 16, 4, "v1"),
        plan_layout(16, 8, 4, "v1"),
        low_rank_layout(12, 9, 4),
        extended_layout(12, 12, [(tuple(range(7)), 4), (tuple(range(7, 12)), 3)], 1),
    ],
    ids=["even", "replicated", "uneven", "wide", "v1-wide", "v1", "low-rank", "extended"],
)
def test_filters_are_scaled_in_every_layout(layout: GroupLayout) -> None:
    weights = random_weights(layout, 0, "site", False)
    gains = np.random.default_rng(0).uniform(0.5, 2.0, layout.out_channels)
    scaled = igpc_matrix(layout, scale_filters(layout, weights, gains))
    expected = gains[:, np.newaxis] * igpc_matrix(layout, weights)
    np.testing.assert_allclose(scaled, expected, atol=1e-12)


def test_variance_comes_half_way_back() -> None:
    x, damaged = _pair(noise=2.0)
    W, layout, statistics = _weight(), plan_layout(C, F, 4), _statistics(x, damaged)
    target, metric = effective_target(W, statistics)
    bare = igpc_matrix(layout, fit_layout(layout, target, metric))
    M = igpc_matrix(layout, fit_calibrated(layout, W, None, statistics).weights)
    wanted, shrunk, made = (W @ x).std(axis=1), (bare @ damaged).std(axis=1), (M @ damaged).std(1)
    assert (shrunk < wanted).all()
    np.testing.assert_allclose(made, np.sqrt(wanted * shrunk), rtol=1e-6)
    gains = variance_gains(W, np.zeros_like(W), statistics)
    assert np.array_equal(gains, np.ones(F))


def test_corrected_bias_takes_any_matrix() -> None:
    x, damaged = _pair()
    W, statistics = _weight(), _statistics(x, damaged)
    M = np.random.default_rng(5).standard_normal((F, C))
    bias = corrected_bias(W, M, None, statistics)
    np.testing.assert_allclose((M @ damaged).mean(axis=1) + bias, (W @ x).mean(axis=1), atol=1e-9)


def test_constant_input() -> None:
    constant = np.full((C, 50), 2.0)
    W, layout = _weight(), plan_layout(C, F, 4)
    fit = fit_calibrated(layout, W, None, _statistics(constant, constant))
    assert fit.error == 0.0
    M = igpc_matrix(layout, fit.weights)
    np.testing.assert_allclose(M @ constant[:, 0] + fit.bias, W @ constant[:, 0])
