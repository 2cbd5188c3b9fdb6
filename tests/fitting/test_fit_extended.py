"""Fitting beyond the published layouts: the corners in closed form, and never worse by iterating."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_igpc.fitting.fit import fit_layout
from onnx_igpc.fitting.variable_projection import ProjectionProblem, fit_without_sum
from onnx_igpc.fitting.weights import igpc_matrix
from onnx_igpc.layout.extended import extended_layout, low_rank_layout
from onnx_igpc.layout.group_layout import GroupLayout

seeds = st.integers(0, 10_000)


def layer(
    C: int, F: int, seed: int, directions: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight, moments of correlated channels (of rank ``directions``) and filter scales."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(directions or 4 * C, C)) @ generator.normal(size=(C, C))
    scale = generator.uniform(0.1, 1.0, F)
    return generator.normal(size=(F, C)), x.T @ x / len(x), scale / scale.max()


def squared_error(
    W: np.ndarray, M: np.ndarray, S: np.ndarray | None = None, d: np.ndarray | None = None
) -> float:
    difference = (W - M) * (1.0 if d is None else d[:, None])
    return float(np.sum((difference if S is None else difference @ S) * difference))


def error_of(
    layout: GroupLayout, W: np.ndarray, S: np.ndarray | None = None, d: np.ndarray | None = None
) -> float:
    return squared_error(W, igpc_matrix(layout, fit_layout(layout, W, S, d)), S, d)


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), seeds, st.data())
def test_low_rank_is_the_weighted_svd(C: int, F: int, seed: int, data: st.DataObject) -> None:
    """Eckart and Young: what is left is the sum of the squared singular values left out."""
    W, S, d = layer(C, F, seed)
    rank = data.draw(st.integers(1, min(C, F)))
    root = np.linalg.cholesky(S)
    values = np.linalg.svd((W * d[:, None]) @ root, compute_uv=False)
    best, total = np.sum(values[rank:] ** 2), np.sum(values**2)
    error = error_of(low_rank_layout(C, F, rank), W, S, d)
    assert error == pytest.approx(best, abs=1e-9 * total)


@settings(max_examples=25)
@given(st.integers(2, 12), st.integers(2, 12), seeds)
def test_without_moments_each_block_is_its_own_svd(C: int, F: int, seed: int) -> None:
    W, _, d = layer(C, F, seed)
    parts = np.array_split(np.random.default_rng(seed).permutation(C), 2)
    halves = [np.arange(F // 2), np.arange(F // 2, F)]
    layout = extended_layout(C, F, [(part.tolist(), 2) for part in parts], 2)
    best = sum(
        np.sum(np.linalg.svd((W * d[:, None])[np.ix_(f, c)], compute_uv=False)[1:] ** 2)
        for f in halves
        for c in parts
    )
    assert error_of(layout, W, None, d) == pytest.approx(best, abs=1e-9 * np.sum(W**2))


@given(st.integers(2, 10), st.integers(2, 10), seeds)
def test_one_group_of_k_is_an_svd_for_each_group_of_l(C: int, F: int, seed: int) -> None:
    W, S, d = layer(C, F, seed)
    filters = np.random.default_rng(seed).permutation(F)
    halves = np.array_split(filters, 2)
    layout = extended_layout(
        C, F, [(range(C), 2)], [([0], halves[0].tolist()), ([1], halves[1].tolist())]
    )
    T = (W * d[:, None]) @ np.linalg.cholesky(S)
    best = sum(np.sum(np.linalg.svd(T[f], compute_uv=False)[1:] ** 2) for f in halves)
    assert error_of(layout, W, S, d) == pytest.approx(best, rel=1e-6, abs=1e-9 * np.sum(T**2))


@settings(max_examples=25)
@given(st.integers(4, 16), st.integers(2, 16), seeds, st.booleans())
def test_rounds_never_raise_the_error_and_say_what_it_is(
    C: int, F: int, seed: int, shared: bool
) -> None:
    W, S, _ = layer(C, F, seed)
    columns = np.array_split(np.random.default_rng(seed).permutation(C), 3)
    columns = [part for part in columns if len(part)]
    if shared:
        columns.append(np.arange(C))
    problem = ProjectionProblem(W, S, columns)
    previous = problem.total
    # Where S is nearly singular, the ridge is seen in what the last direction is said to bring.
    tolerance = max(1e-6, 1e-11 * float(np.linalg.cond(S))) * problem.total
    for _ in range(4):
        for group in range(len(columns)):
            told = problem.step(group, 1)
            assert told == pytest.approx(problem.objective(), abs=tolerance)
        assert told <= previous + tolerance
        previous = told


def test_a_copy_is_changed_apart() -> None:
    W, S, _ = layer(8, 6, 0)
    problem = ProjectionProblem(W, S, [np.arange(4), np.arange(4, 8)])
    before = problem.solve([1, 1], 1e-6, 50)
    other = problem.copied()
    assert other.solve([2, 2], 1e-6, 50) < before
    assert problem.objective() == pytest.approx(before)
    assert problem.ranks == [1, 1]


@settings(max_examples=20)
@given(st.integers(4, 14), st.integers(4, 14), seeds)
def test_ends_where_no_block_can_be_improved(C: int, F: int, seed: int) -> None:
    """The gradient vanishes: in L always, in K as far as the rounds have converged."""
    W, S, _ = layer(C, F, seed)
    columns = np.array_split(np.arange(C), 2)
    k_groups = [(np.array([0]), columns[0]), (np.array([1]), columns[1])]
    K, L = fit_without_sum(W, S, k_groups, [(np.arange(F), np.arange(2))], 1e-12, 2000)
    R = (W - L @ K) @ S
    total = np.sum((W @ S) * W)
    # K's rows have length 1 in the metric, so that both are of the scale of the error.
    assert np.abs(R @ K.T).max() <= 1e-7 * np.sqrt(total)
    for rows, own in k_groups:
        assert np.abs((L.T @ R)[np.ix_(rows, own)]).max() <= 1e-3 * total


@pytest.mark.parametrize("directions", [1, 3, 7])
def test_moments_without_full_rank(directions: int) -> None:
    W, S, d = layer(12, 9, 5, directions)
    layout = extended_layout(12, 9, [(range(6), 3), (range(6, 12), 3)])
    error = error_of(layout, W, S, d)
    assert np.isfinite(error)
    assert error <= squared_error(W, 0 * W, S, d)
    if directions == 3:
        assert error <= 1e-6 * squared_error(W, 0 * W, S, d)


def test_degenerate_layers() -> None:
    W, S, _ = layer(8, 6, 0)
    layout = extended_layout(8, 6, [(range(4), 2), (range(4, 8), 2)])
    assert error_of(layout, 0 * W, S) == 0
    assert error_of(layout, W, 0 * S) == 0
    switched_off = np.array([1.0, 0, 0, 0, 0, 0])
    weights = fit_layout(layout, W, S, switched_off)
    assert np.isfinite(igpc_matrix(layout, weights)).all()
    # Four rows see all there is of four channels: exact.
    full = extended_layout(8, 6, [(range(4), 4), (range(4, 8), 4)])
    assert error_of(full, W, S) <= 1e-12 * squared_error(W, 0 * W, S)


def test_more_rows_than_channels_do_no_harm() -> None:
    W, S, _ = layer(4, 9, 1)
    layout = extended_layout(4, 9, [([0], 3), ([1, 2, 3], 5)])
    assert error_of(layout, W, S) <= 1e-12 * squared_error(W, 0 * W, S)


def test_a_row_that_reads_everything_beside_groups() -> None:
    """Strictly better than the groups alone, and than low rank with that row alone."""
    W, S, d = layer(12, 12, 2)
    groups = [(range(6), 2), (range(6, 12), 2)]
    both = error_of(extended_layout(12, 12, [*groups, (range(12), 1)]), W, S, d)
    assert both < error_of(extended_layout(12, 12, groups), W, S, d)
    assert both < error_of(low_rank_layout(12, 12, 1), W, S, d)


def test_with_the_sum_and_any_interleave() -> None:
    W, S, d = layer(12, 12, 3)
    order = np.random.default_rng(3).permutation(12)
    k_groups = [(part.tolist(), 4) for part in np.array_split(order, 3)]
    l_groups = [(range(i, 12, 3), range(4 * i, 4 * i + 4)) for i in range(3)]
    with_sum = extended_layout(12, 12, k_groups, l_groups, has_sum=True)
    weights = fit_layout(with_sum, W, S, d)
    alone = extended_layout(12, 12, k_groups, None)
    assert squared_error(W, igpc_matrix(with_sum, weights), S, d) < error_of(alone, W, S, d)
    again = fit_layout(with_sum, W, S, d)
    assert all(np.array_equal(a, b) for a, b in zip(weights.k, again.k, strict=True))
