"""Random weights, the matrix of a stage, and the errors of a matrix."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_igpc.fitting.fit import random_weights
from onnx_igpc.fitting.weights import (
    igpc_matrix,
    plain_error,
    relative_error,
    stage_matrix,
)
from tests.fitting.layers import dense, replaced, support


def test_random_weights_have_the_variance_that_was_promised() -> None:
    layout = replaced(512, 512, 16)
    for activated, variance in ((True, 2 / 16), (False, 1 / 16)):
        weights = random_weights(layout, 0, "site", activated)
        assert weights.l
        for kernels in (weights.k, weights.l):
            values = np.concatenate([kernel.ravel() for kernel in kernels])
            assert values.var() == pytest.approx(variance, rel=0.08)
            assert abs(values.mean()) < 4 * np.sqrt(variance / values.size)
    alone = random_weights(replaced(256, 512, 16), 0, "site", activated=False)
    assert not alone.l
    assert alone.k[0].var() == pytest.approx(2 / 16, rel=0.08)


def test_random_weights_keep_the_variance_of_the_signal() -> None:
    layout = replaced(512, 512, 16)
    M = igpc_matrix(layout, random_weights(layout, 1, "site", activated=False))
    # One from K; one times one from L after K.
    assert np.sum(M**2) / 512 == pytest.approx(2, rel=0.1)


def test_every_site_and_every_seed_draws_its_own_weights() -> None:
    layout = replaced(64, 64, 16)

    def first(seed: int, name: str) -> np.ndarray:
        return random_weights(layout, seed, name, activated=True).k[0]

    np.testing.assert_array_equal(first(1, "a"), first(1, "a"))
    for seed, name in ((1, "b"), (2, "a")):
        correlation = np.corrcoef(first(1, "a").ravel(), first(seed, name).ravel())[0, 1]
        assert abs(correlation) < 0.15


def test_k_and_l_of_a_site_are_independent() -> None:
    weights = random_weights(replaced(64, 64, 16), 1, "a", activated=True)
    assert weights.l
    assert abs(np.corrcoef(weights.k[0].ravel(), weights.l[0].ravel())[0, 1]) < 0.15


def test_relative_error_is_that_of_sampled_inputs() -> None:
    W, M = dense(7, 12), dense(7, 12, 1)
    mixing = dense(12, 12, 2)
    x = mixing @ np.random.default_rng(3).standard_normal((12, 200_000))
    expected = np.mean(np.sum(((W - M) @ x) ** 2, axis=0)) / np.mean(np.sum((W @ x) ** 2, axis=0))
    assert relative_error(W, M, mixing @ mixing.T) == pytest.approx(expected, rel=0.02)
    exact = relative_error(W, M, x @ x.T / x.shape[1])
    assert exact == pytest.approx(expected, rel=1e-9)
    assert relative_error(W, M) == pytest.approx(relative_error(W, M, np.eye(12)))


@pytest.mark.parametrize(("C", "F", "ch"), [(150, 100, 8), (64, 64, 16)])
def test_plain_error_needs_no_matrix(C: int, F: int, ch: int) -> None:
    layout = replaced(C, F, ch)
    weights = random_weights(layout, 3, "site", activated=False)
    W = dense(F, C).astype(np.float32)
    expected = relative_error(W.astype(np.float64), igpc_matrix(layout, weights))
    assert plain_error(layout, weights, W) == pytest.approx(expected, rel=1e-9)
    assert plain_error(layout, weights, np.zeros((F, C))) == float("inf")


def test_relative_error_of_a_zero_weight() -> None:
    zero, one = np.zeros((2, 2)), np.ones((2, 2))
    assert relative_error(zero, zero) == 0
    assert relative_error(zero, one) == float("inf")
    assert relative_error(one, one) == 0


def test_stage_matrix_puts_filters_behind_one_another() -> None:
    layout = replaced(18, 13, 4)
    assert len(layout.k.paths) == 2
    kernels = tuple(np.full(path.weight_shape, i + 1.0) for i, path in enumerate(layout.k.paths))
    matrix = stage_matrix(layout.k, kernels)
    first = layout.k.paths[0].filters
    assert set(np.unique(matrix[:first])) == {0, 1}
    assert set(np.unique(matrix[first:])) == {0, 2}
    np.testing.assert_array_equal(matrix != 0, support(layout.k))
