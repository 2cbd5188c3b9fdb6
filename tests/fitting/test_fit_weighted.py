"""Fits by moments of the input and by scales of the filters."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_igpc.fitting.fit import fit_layout
from onnx_igpc.fitting.weights import (
    igpc_matrix,
    relative_error,
)
from tests.fitting.layers import apply_layout, dense, moments_of, replaced, weighted_error


def test_moments_decide_what_counts() -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48)
    with_data = igpc_matrix(layout, fit_layout(layout, W, S))
    without = igpc_matrix(layout, fit_layout(layout, W))
    assert relative_error(W, with_data, S) < relative_error(W, without, S)
    assert relative_error(W, without) < relative_error(W, with_data)


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_moments_of_low_rank(rank: int) -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48, rank=rank)
    M = igpc_matrix(layout, fit_layout(layout, W, S))
    assert np.isfinite(M).all()
    assert relative_error(W, M, S) < (1e-3 if rank == 1 else 0.3)


def test_channels_that_are_always_zero_cost_nothing() -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48)
    S[:4] = S[:, :4] = 0
    M = igpc_matrix(layout, fit_layout(layout, W, S))
    assert np.isfinite(M).all()
    assert relative_error(W, M, S) < relative_error(
        W, igpc_matrix(layout, fit_layout(layout, W)), S
    )


@pytest.mark.parametrize("dead", [8, 16, 48])
def test_groups_whose_inputs_are_always_zero(dead: int) -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48)
    S[:dead] = S[:, :dead] = 0
    M = igpc_matrix(layout, fit_layout(layout, W, S))
    assert np.isfinite(M).all()
    assert relative_error(W, M, S) < 0.95
    alone = replaced(12, 20, 4)
    S = moments_of(12)
    S[:4] = S[:, :4] = 0
    assert np.isfinite(igpc_matrix(alone, fit_layout(alone, dense(20, 12), S))).all()


def test_filter_scale_moves_the_error_to_filters_that_count_less() -> None:
    layout = replaced(48, 40, 8)
    W = dense(40, 48)
    scale = np.where(np.arange(40) < 20, 10.0, 0.1)
    plain = W - igpc_matrix(layout, fit_layout(layout, W))
    scaled = W - igpc_matrix(layout, fit_layout(layout, W, filter_scale=scale))
    assert np.sum(scaled[:20] ** 2) < np.sum(plain[:20] ** 2)
    assert np.sum(scaled[20:] ** 2) > np.sum(plain[20:] ** 2)


@pytest.mark.parametrize("off", [1, 39, 40])
def test_filters_that_are_switched_off(off: int) -> None:
    layout = replaced(48, 40, 8)
    W = dense(40, 48)
    scale = np.ones(40)
    scale[:off] = 0
    M = igpc_matrix(layout, fit_layout(layout, W, moments_of(48), scale))
    assert np.isfinite(M).all()
    if off == 39:
        assert weighted_error(W[39:], M[39:]) < 0.5 * weighted_error(W[39:], 0 * M[39:])


def test_the_sign_of_a_scale_and_its_size_do_not_matter() -> None:
    layout = replaced(48, 40, 8)
    W = dense(40, 48)
    scale = np.random.default_rng(1).uniform(0.5, 2, 40)
    first = igpc_matrix(layout, fit_layout(layout, W, filter_scale=scale))
    second = igpc_matrix(layout, fit_layout(layout, W, filter_scale=-8 * scale))
    np.testing.assert_allclose(second, first, rtol=1e-9, atol=1e-12)


def test_replicated_channels_share_their_weight() -> None:
    layout = replaced(18, 12, 4)
    assert layout.k.replicated
    W, S = dense(12, 18), moments_of(18)
    weights = fit_layout(layout, W, S)
    M = igpc_matrix(layout, weights)
    assert weights.l
    by_hand = [apply_layout(layout, weights, x) for x in np.eye(18)]
    np.testing.assert_allclose(np.array(by_hand).T, M, atol=1e-10)
    assert relative_error(W, M, S) < 1


def test_a_zero_weight_and_a_zero_filter() -> None:
    layout = replaced(48, 40, 8)
    assert not igpc_matrix(layout, fit_layout(layout, np.zeros((40, 48)))).any()
    W = dense(40, 48)
    W[3] = 0
    assert np.isfinite(igpc_matrix(layout, fit_layout(layout, W))).all()


@pytest.mark.parametrize("factor", [1e-12, 1e-4, 1e6])
def test_fits_do_not_depend_on_the_unit(factor: float) -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48)
    plain = relative_error(W, igpc_matrix(layout, fit_layout(layout, W, S)), S)
    M = igpc_matrix(layout, fit_layout(layout, W * factor, S * factor))
    assert relative_error(W * factor, M, S * factor) == pytest.approx(plain, rel=0.02)
