"""A map that reads some of its channels alone: which ones, and with what weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_igpc.fitting.moments import MomentsAccumulator, PairAccumulator, SiteStatistics
from onnx_igpc.fitting.narrowing import (
    NarrowWeights,
    fit_narrow,
    fit_without_each,
    rank_channels,
)

SEEDS = st.integers(0, 10_000)


def correlated(random: np.random.Generator, C: int, count: int) -> np.ndarray:
    """Values of C channels that tell of each other, their means not zero."""
    mixing = random.normal(size=(C, C)) / np.sqrt(C) + 0.5 * np.eye(C)
    return np.asarray(mixing @ random.normal(size=(C, count)) + random.normal(size=(C, 1)))


def pair(x: np.ndarray, rewritten: np.ndarray) -> SiteStatistics:
    sums = PairAccumulator(len(x))
    sums.add(x, rewritten)
    found = sums.result()
    assert found is not None
    return found


def same(x: np.ndarray) -> SiteStatistics:
    sums = MomentsAccumulator(len(x))
    sums.add(x)
    found = sums.result()
    assert found is not None
    return SiteStatistics.unchanged(found)


def parts_of(x: np.ndarray, count: int = 4) -> list[SiteStatistics]:
    return [same(part) for part in np.array_split(x, count, axis=1)]


def left_over(W: np.ndarray, x: np.ndarray, kept: Sequence[int]) -> float:
    """The part of the variance of W x that no map of the kept channels makes, by numpy."""
    centred = x - x.mean(axis=1, keepdims=True)
    y, z = (W @ centred).T, centred[list(kept)].T
    missed = y - z @ np.linalg.lstsq(z, y, rcond=None)[0]
    return float(np.sum(missed**2) / np.sum(y**2))


def missed(fit: NarrowWeights, W: np.ndarray, x: np.ndarray, read: np.ndarray) -> float:
    """What the fit misses on data, as a part of the variance of W x; W has no bias."""
    y = W @ x
    made = fit.matrix @ read[list(fit.kept)] + fit.bias[:, np.newaxis]
    return float(np.mean((y - made) ** 2) / np.mean((y - y.mean(axis=1, keepdims=True)) ** 2))


def own_columns(W: np.ndarray, x: np.ndarray, kept: Sequence[int]) -> NarrowWeights:
    """W without its other columns, the means put right."""
    columns = W[:, list(kept)]
    bias = (W @ x).mean(axis=1) - columns @ x[list(kept)].mean(axis=1)
    return NarrowWeights(tuple(kept), columns, bias, 0.0)


def loaded(x: np.ndarray) -> np.ndarray:
    """Centred samples with those added that make the loading of the channels' variances."""
    centred = x - x.mean(axis=1, keepdims=True)
    loading = 1e-4 * np.sum(centred**2) / len(x)
    return np.hstack([centred, np.sqrt(loading) * np.eye(len(x))])


@given(st.integers(2, 9), st.integers(1, 5), SEEDS)
@settings(max_examples=30, deadline=None)
def test_errors_are_those_of_least_squares_with_the_channels_that_stay(
    C: int, F: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x, W = correlated(random, C, 300), random.normal(size=(F, C))
    ranking = rank_channels(W, np.cov(x, bias=True))
    assert sorted(ranking.order) == list(range(C))
    samples = loaded(x)
    for count in range(1, C + 1):
        # Least squares without an intercept: the samples of the loading have no mean.
        y, z = (W @ samples).T, samples[list(ranking.kept(count))].T
        rest = y - z @ np.linalg.lstsq(z, y, rcond=None)[0]
        expected = np.sum(rest**2) / np.sum(y**2)
        assert ranking.errors[count] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert np.isnan(ranking.errors[0])


@given(st.integers(2, 12), SEEDS)
@settings(max_examples=20, deadline=None)
def test_fewer_channels_miss_more_and_are_among_the_others(C: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    ranking = rank_channels(random.normal(size=(3, C)), np.cov(correlated(random, C, 200)))
    for count in range(1, C):
        assert ranking.errors[count] >= ranking.errors[count + 1]
        assert set(ranking.kept(count)) < set(ranking.kept(count + 1))
        assert all(a < b for a, b in pairwise(ranking.kept(count + 1)))
    assert ranking.errors[C] == 0 < ranking.errors[1] < 1


@given(st.integers(2, 8), SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_channel_that_goes_first_is_the_one_that_is_missed_least(C: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, W = correlated(random, C, 200), random.normal(size=(4, C))
    ranking = rank_channels(W, np.cov(x, bias=True))
    samples = loaded(x)
    costs = []
    for channel in range(C):
        others = np.delete(np.arange(C), channel)
        y, z = (W @ samples).T, samples[others].T
        costs.append(np.sum((y - z @ np.linalg.lstsq(z, y, rcond=None)[0]) ** 2))
    assert ranking.order[-1] == np.argmin(costs)


@pytest.mark.parametrize("copied", [True, False])
def test_a_channel_that_others_tell_goes_first_and_nothing_is_missed(copied: bool) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(6, 500))
    x[4] = x[1] if copied else x[1] - 2 * x[3] + 5
    ranking = rank_channels(10 * np.eye(6), np.cov(x, bias=True))
    assert ranking.order[-1] in ((1, 4) if copied else (1, 3, 4))
    assert ranking.errors[5] < 1e-4 < 0.05 < ranking.errors[4]


def test_a_channel_that_is_not_read_and_one_that_is_silent_go_first() -> None:
    W, x = np.ones((2, 5)), np.random.default_rng(0).normal(size=(5, 100))
    W[:, 1], x[3] = 0, 0
    ranking = rank_channels(W, np.cov(x))
    assert set(ranking.order[-2:].tolist()) == {1, 3}
    assert ranking.errors[3] < 1e-3
    silent = rank_channels(W, np.zeros((5, 5)))
    assert np.isfinite(silent.errors[1:]).all()


def test_the_ranking_stops_where_it_is_told_to_and_many_channels_go_several_at_once() -> None:
    random = np.random.default_rng(0)
    x, W = correlated(random, 256, 1000), random.normal(size=(20, 256))
    ranking = rank_channels(W, np.cov(x, bias=True), fewest=247)
    looked_at = np.flatnonzero(~np.isnan(ranking.errors)).tolist()
    assert looked_at == [247, 248, 250, 252, 254, 256]
    assert sorted(ranking.order) == list(range(256))
    samples = loaded(x)
    y, z = (W @ samples).T, samples[list(ranking.kept(247))].T
    rest = y - z @ np.linalg.lstsq(z, y, rcond=None)[0]
    assert ranking.errors[247] == pytest.approx(np.sum(rest**2) / np.sum(y**2), rel=1e-5)


@given(st.integers(3, 10), st.integers(1, 6), SEEDS)
@settings(max_examples=25, deadline=None)
def test_with_much_data_the_fit_is_that_of_least_squares(C: int, F: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, W = correlated(random, C, 4000), random.normal(size=(F, C))
    kept = sorted(random.choice(C, C // 2, replace=False).tolist())
    bias = random.normal(size=F)
    fit = fit_narrow(W, bias, kept, parts_of(x))
    best = left_over(W, x, kept)
    assert fit.kept == tuple(kept)
    assert best - 1e-9 <= fit.error <= 1.02 * best + 1e-4
    without = NarrowWeights(fit.kept, fit.matrix, fit.bias - bias, fit.error)
    assert fit.error == pytest.approx(missed(without, W, x, x), rel=1e-5)
    made = fit.matrix @ x[kept].mean(axis=1) + fit.bias
    np.testing.assert_allclose(made, (W @ x).mean(axis=1) + bias, atol=1e-9)


def test_of_one_part_the_fit_is_least_squares_drawn_a_little_towards_the_own_columns() -> None:
    random = np.random.default_rng(0)
    z = random.normal(size=(3, 500))
    z -= z.mean(axis=1, keepdims=True)
    z = np.linalg.solve(np.linalg.cholesky(np.cov(z, bias=True)), z)  # white, and 1 each
    hidden = random.normal(size=(2, 3))
    W = random.normal(size=(4, 5))
    fit = fit_narrow(W, None, (0, 1, 2), [same(np.vstack([z, hidden @ z + 7]))])
    np.testing.assert_allclose(fit.matrix, W[:, :3] + W[:, 3:] @ hidden / 1.03, rtol=1e-9)
    np.testing.assert_allclose(fit.bias, W[:, 3:] @ [7, 7], rtol=1e-9)


def test_statistics_of_what_is_unchanged_stay_so_when_they_are_joined() -> None:
    x = correlated(np.random.default_rng(5), 4, 60)
    joined = SiteStatistics.joined([same(chunk) for chunk in np.array_split(x, 3, axis=1)])
    assert joined.cross is joined.second
    assert joined.mean_rewritten is joined.mean
    np.testing.assert_allclose(joined.second, np.cov(x, bias=True), atol=1e-12)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_few_samples_do_not_lead_far_from_the_own_columns(seed: int) -> None:
    """The channels are independent: the own columns are the best there is."""
    random = np.random.default_rng(seed)
    C, kept = 24, tuple(range(0, 24, 2))
    W = random.normal(size=(6, C))
    few, held = random.normal(size=(C, 16)), random.normal(size=(C, 2000))
    fit = fit_narrow(W, None, kept, parts_of(few))
    plain = own_columns(W, few, kept)
    assert missed(fit, W, held, held) < 1.4 * missed(plain, W, held, held)
    exact = np.linalg.lstsq(few[list(kept)].T, (W @ few).T, rcond=None)[0].T
    overfit = NarrowWeights(kept, exact, plain.bias, 0.0)
    assert missed(fit, W, held, held) < missed(overfit, W, held, held)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_what_the_rewrite_changed_before_is_made_up_for(seed: int) -> None:
    random = np.random.default_rng(seed)
    C, kept = 6, (0, 1, 3, 4)
    x, W, bias = correlated(random, C, 2000), random.normal(size=(4, C)), random.normal(size=4)
    changed = 0.6 * (np.eye(C) + 0.3 * random.normal(size=(C, C))) @ x + 1
    parts = [
        pair(a, b)
        for a, b in zip(np.split(x, 4, axis=1), np.split(changed, 4, axis=1), strict=True)
    ]
    fit = fit_narrow(W, bias, kept, parts)
    blind = fit_narrow(W, bias, kept, parts_of(x))
    np.testing.assert_allclose(
        fit.matrix @ changed[list(kept)].mean(axis=1) + fit.bias,
        (W @ x).mean(axis=1) + bias,
        atol=1e-8,
    )
    free = NarrowWeights(kept, fit.matrix, fit.bias - bias, fit.error)
    moved = (W @ x).mean(axis=1) - blind.matrix @ changed[list(kept)].mean(axis=1)
    best_shift = NarrowWeights(kept, blind.matrix, moved, 0.0)
    assert fit.error == pytest.approx(missed(free, W, x, changed), rel=1e-5)
    assert fit.error < missed(best_shift, W, x, changed)


def test_a_map_that_makes_nothing_and_channels_that_are_silent() -> None:
    x = np.random.default_rng(0).normal(size=(4, 50))
    nothing = fit_narrow(np.zeros((2, 4)), None, (0, 1), parts_of(x))
    assert (nothing.error, np.abs(nothing.matrix).max()) == (0.0, 0.0)
    silent = fit_narrow(np.ones((2, 4)), np.ones(2), (0, 1), parts_of(np.zeros((4, 8))))
    np.testing.assert_array_equal(silent.matrix, np.ones((2, 2)))
    np.testing.assert_array_equal(silent.bias, [1, 1])


def test_the_dense_map_reads_nothing_of_the_channels_that_are_gone() -> None:
    weights = NarrowWeights((1, 4), np.arange(1.0, 7.0).reshape(3, 2), np.zeros(3), 0.0)
    dense = weights.dense(6)
    np.testing.assert_array_equal(dense[:, [1, 4]], weights.matrix)
    assert dense.shape == (3, 6)
    assert not dense[:, [0, 2, 3, 5]].any()


def test_fits_without_each_part_are_those_to_the_others() -> None:
    random = np.random.default_rng(0)
    x, W = correlated(random, 6, 4000), random.normal(size=(3, 6))
    chunks = np.array_split(x, 4, axis=1)
    fits = fit_without_each(W, None, (0, 2, 5), [same(chunk) for chunk in chunks])
    for number, fit in enumerate(fits):
        rest = np.hstack([chunk for index, chunk in enumerate(chunks) if index != number])
        assert fit.error == pytest.approx(missed(fit, W, rest, rest), rel=1e-6)
        assert fit.error == pytest.approx(left_over(W, rest, (0, 2, 5)), rel=1e-3)
        np.testing.assert_allclose(
            fit.matrix @ rest[[0, 2, 5]].mean(axis=1) + fit.bias, (W @ rest).mean(axis=1)
        )
    (alone,) = fit_without_each(W, None, (0, 2, 5), [same(x)])
    assert alone.error == pytest.approx(left_over(W, x, (0, 2, 5)), rel=1e-2)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), SEEDS)
@settings(max_examples=25, deadline=None)
def test_statistics_of_parts_join_to_those_of_all(counts: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    chunks = []
    for count in counts:
        x = random.normal(3 * random.normal(), 1, (4, count))
        chunks.append((x, x + random.normal(random.normal(), 0.5, (4, count))))
    joined = SiteStatistics.joined([pair(*chunk) for chunk in chunks])
    whole = pair(*(np.hstack(side) for side in zip(*chunks, strict=True)))
    assert joined.count == whole.count == sum(counts)
    for name in ("mean", "mean_rewritten", "second", "cross", "second_rewritten"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), atol=1e-10)
