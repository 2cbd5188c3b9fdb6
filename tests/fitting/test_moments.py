"""Moments against numpy on everything at once."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_igpc.fitting.moments import MomentsAccumulator, PairAccumulator, SiteStatistics


@pytest.mark.parametrize("mean", [0.0, 1.0, 1000.0])
def test_batches_add_up_to_the_moments_of_all(mean: float) -> None:
    values = (np.random.default_rng(0).standard_normal((5, 90_000)) + mean).astype(np.float32)
    sums = MomentsAccumulator(5)
    for part in np.array_split(values, 7, axis=1):
        sums.add(part)
    moments = sums.result()
    assert moments is not None
    exact = values.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(axis=1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moments.second, np.cov(exact, bias=True), rtol=1e-4, atol=1e-6)
    assert moments.count == 90_000
    assert np.array_equal(moments.second, moments.second.T)
    assert moments.second.dtype == moments.mean.dtype == np.float64


def test_float64_activations_are_not_rounded() -> None:
    values = np.random.default_rng(0).standard_normal((3, 500)) + 1e6
    sums = MomentsAccumulator(3)
    sums.add(values)
    moments = sums.result()
    assert moments is not None
    np.testing.assert_allclose(moments.second, np.cov(values, bias=True), rtol=1e-9, atol=1e-12)


def test_nothing_added_has_no_moments() -> None:
    sums = MomentsAccumulator(3)
    assert sums.result() is None
    sums.add(np.zeros((3, 0), np.float32))
    assert sums.result() is None


def test_pairs() -> None:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((4, 600)) + 2
    y = x + 0.3 * generator.standard_normal((4, 600)) - 1
    sums = PairAccumulator(4)
    for part in np.array_split(np.arange(600), 5):
        sums.add(x[:, part], y[:, part])
    found = sums.result()
    assert found is not None
    joint = np.cov(np.concatenate([x, y]), bias=True)
    np.testing.assert_allclose(found.second, joint[:4, :4], atol=1e-12)
    np.testing.assert_allclose(found.cross, joint[:4, 4:], atol=1e-12)
    np.testing.assert_allclose(found.second_rewritten, joint[4:, 4:], atol=1e-12)
    np.testing.assert_allclose(found.mean, x.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(found.mean_rewritten, y.mean(axis=1), atol=1e-12)


def test_pooled_second_moments_are_about_each_sites_own_mean() -> None:
    generator = np.random.default_rng(2)
    parts = []
    for count, mean in ((300, 0.0), (100, 50.0)):
        sums = MomentsAccumulator(3)
        sums.add(generator.standard_normal((3, count)) + mean)
        moments = sums.result()
        assert moments is not None
        parts.append(SiteStatistics.unchanged(moments))
    pooled = SiteStatistics.pooled(parts)
    expected = 0.75 * parts[0].second + 0.25 * parts[1].second
    np.testing.assert_allclose(pooled.second, expected)
    assert pooled.count == 400
    assert SiteStatistics.pooled(parts[:1]) is parts[0]
