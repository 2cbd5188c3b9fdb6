"""Fits in a full metric of the output: against brute force, and against the fits that know less of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_igpc.fitting.fit import fit_layout
from onnx_igpc.fitting.output_metric import OutputMetric, fit_in_metric
from onnx_igpc.fitting.weights import fit_error, igpc_matrix
from onnx_igpc.layout.extended import extended_layout, low_rank_layout
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.schemes import plan_layout

seeds = st.integers(0, 10_000)


def layer(C: int, F: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight, moments of correlated channels, and a metric of correlated filters."""
    generator = np.random.default_rng(seed)

    def correlated(size: int) -> np.ndarray:
        x = generator.normal(size=(3 * size, size)) @ generator.normal(size=(size, size))
        return x.T @ x / len(x)

    return generator.normal(size=(F, C)), correlated(C), correlated(F)


def error_in(G: np.ndarray, W: np.ndarray, M: np.ndarray, S: np.ndarray) -> float:
    return float(np.trace(G @ (W - M) @ S @ (W - M).T))


def fitted(layout: GroupLayout, W: np.ndarray, S: np.ndarray, G: np.ndarray) -> np.ndarray:
    metric = OutputMetric.of_matrix(G)
    return igpc_matrix(layout, fit_in_metric(layout, W, S, metric, tolerance=1e-9))


def groups_of_l(
    C: int, F: int, seed: int, parts: int
) -> tuple[GroupLayout, Sequence[np.ndarray], Sequence[np.ndarray]]:
    """K in two groups of two rows, L in ``parts`` groups over scattered filters, each reading rows of both."""
    generator = np.random.default_rng(seed)
    columns = np.array_split(generator.permutation(C), 2)
    filters = np.array_split(generator.permutation(F), parts)
    rows = [[0, 1, 2, 3]] if parts == 1 else [[0, 2], [1, 3]]
    layout = extended_layout(
        C,
        F,
        [(part.tolist(), 2) for part in columns],
        [(read, made.tolist()) for read, made in zip(rows, filters, strict=True)],
    )
    return layout, columns, filters


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), seeds, st.data())
def test_low_rank_is_the_svd_between_the_roots(
    C: int, F: int, seed: int, data: st.DataObject
) -> None:
    """Eckart and Young in both metrics: no matrix of that rank is nearer."""
    W, S, G = layer(C, F, seed)
    rank = data.draw(st.integers(1, min(C, F)))
    values = np.linalg.svd(np.linalg.cholesky(G).T @ W @ np.linalg.cholesky(S), compute_uv=False)
    M = fitted(low_rank_layout(C, F, rank), W, S, G)
    total = float(np.sum(values**2))
    assert error_in(G, W, M, S) == pytest.approx(np.sum(values[rank:] ** 2), abs=1e-6 * total)


@settings(max_examples=10, deadline=None)
@given(st.integers(4, 8), st.integers(4, 8), seeds)
def test_the_fit_with_a_dense_l_is_a_local_optimum(C: int, F: int, seed: int) -> None:
    """At the fit, the objective does not fall in any direction of K's blocks or of L."""
    W, S, G = layer(C, F, seed)
    layout, columns, _ = groups_of_l(C, F, seed, 1)
    M = fitted(layout, W, S, G)
    slope = G @ (W - M) @ S
    _, values, vt = np.linalg.svd(M)
    scale = np.linalg.norm(G) * np.linalg.norm(W) * np.linalg.norm(S)
    # M = L K: steps of L move within M's row space, steps of K within the column space, by blocks.
    rank = int(np.sum(values > 1e-9 * values[0]))
    assert np.linalg.norm(slope @ vt[:rank].T) <= 1e-5 * scale
    for part in columns:
        block = np.linalg.svd(M[:, part])[0][:, : min(2, len(part))]
        assert np.linalg.norm(block.T @ slope[:, part]) <= 1e-3 * scale


def by_blocks(G: np.ndarray, filters: Sequence[np.ndarray]) -> np.ndarray:
    """G without what ties filters of different groups."""
    blocks = np.zeros_like(G)
    for each in filters:
        blocks[np.ix_(each, each)] = G[np.ix_(each, each)]
    return blocks


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 12), st.integers(4, 12), seeds, st.sampled_from([1, 2]))
def test_where_the_fit_is_exact_no_fit_that_knows_less_is_nearer(
    C: int, F: int, seed: int, parts: int
) -> None:
    W, S, G = layer(C, F, seed)
    filters = np.array_split(np.random.default_rng(seed).permutation(F), parts)
    rows = [[0, 1, 2, 3]] if parts == 1 else [[0, 2], [1, 3]]
    l_groups = [(read, made.tolist()) for read, made in zip(rows, filters, strict=True)]
    layout = extended_layout(C, F, [(range(C), 4)], l_groups)
    G = by_blocks(G, filters)
    found = error_in(G, W, fitted(layout, W, S, G), S)
    best = 0.0
    for each, read in zip(filters, rows, strict=True):
        root = np.linalg.cholesky(G[np.ix_(each, each)]).T
        values = np.linalg.svd(root @ W[each] @ np.linalg.cholesky(S), compute_uv=False)
        best += float(np.sum(values[len(read) :] ** 2))
    total = error_in(G, W, np.zeros_like(W), S)
    assert found == pytest.approx(best, abs=1e-6 * total)
    for scale in (None, np.sqrt(np.diagonal(G))):
        plain = igpc_matrix(layout, fit_layout(layout, W, S, scale))
        assert found <= error_in(G, W, plain, S) + 1e-6 * total


@pytest.mark.parametrize("parts", [1, 2])
def test_with_several_groups_of_k_it_is_nearer_than_fits_that_know_less(parts: int) -> None:
    """Such fits are local optima: of a few layers, one may be worse by chance, but not all together."""
    ratios = []
    for seed in range(12):
        W, S, G = layer(12, 10, seed)
        layout, _, filters = groups_of_l(12, 10, seed, parts)
        G = by_blocks(G, filters)
        found = error_in(G, W, fitted(layout, W, S, G), S)
        plain = igpc_matrix(layout, fit_layout(layout, W, S, np.sqrt(np.diagonal(G))))
        ratios.append(found / error_in(G, W, plain, S))
    assert np.exp(np.mean(np.log(ratios))) < 0.9
    assert max(ratios) < 1.1


def layouts(C: int, F: int) -> list[GroupLayout]:
    return [
        plan_layout(C, F, 3),
        plan_layout(C, F, 3, "v1"),
        extended_layout(C, F, [(range(C // 2), F // 2), (range(C // 2, C), F - F // 2)], None),
        low_rank_layout(C, F, 3),
        groups_of_l(C, F, 1, 1)[0],
        groups_of_l(C, F, 2, 2)[0],
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_diagonal_metric_is_the_scale_of_the_filters(number: int) -> None:
    C, F = 12, 12
    W, S, _ = layer(C, F, 3)
    layout = layouts(C, F)[number]
    scale = np.random.default_rng(4).uniform(0.1, 2.0, F)
    scale[5] = 0.0
    metric = OutputMetric.of_matrix(np.diag(scale**2), load=0.7)
    known = fit_layout(layout, W, S, scale)
    for each in (metric, OutputMetric.of_scale(scale, F)):
        weights = fit_in_metric(layout, W, S, each)
        np.testing.assert_allclose(
            igpc_matrix(layout, weights), igpc_matrix(layout, known), atol=1e-6
        )
        wanted = fit_error(layout, known, W, S, np.maximum(scale / scale.max(), 1e-4))
        assert each.error(layout, weights, W, S) == pytest.approx(wanted, rel=1e-6)


def test_with_the_sum_the_scales_alone_are_used() -> None:
    W, S, G = layer(12, 12, 0)
    layout = plan_layout(12, 12, 3)
    assert layout.has_sum
    assert layout.l is not None
    found = fit_in_metric(layout, W, S, OutputMetric.of_matrix(G))
    known = fit_layout(layout, W, S, np.sqrt(np.diagonal(G)))
    for ours, theirs in zip((*found.k, *found.l), (*known.k, *known.l), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


@given(st.integers(1, 10), seeds, st.floats(0.0, 10.0), st.booleans())
def test_the_root_is_that_of_the_loaded_metric(F: int, seed: int, load: float, few: bool) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(1 if few else 2 * F, F)) * generator.uniform(0.1, 10.0, F)
    G = x.T @ x
    metric = OutputMetric.of_matrix(G, load)
    root = metric.whitened(np.eye(F))
    wanted = (G + load * np.diag(np.diagonal(G))) / (1 + load) / np.diagonal(G).max()
    floored = np.maximum(np.diagonal(wanted), 1e-8)
    np.fill_diagonal(wanted, floored)
    np.testing.assert_allclose(root.T @ root, wanted, atol=1e-7)
    np.testing.assert_allclose(metric.unwhitened(root), np.eye(F), atol=1e-6)


def test_filters_that_do_not_matter_keep_a_weight_that_can_be_divided_by() -> None:
    W, S, G = layer(8, 6, 5)
    G[2] = G[:, 2] = 0.0
    layout = low_rank_layout(8, 6, 3)
    for matrix in (G, np.zeros_like(G)):
        M = fitted(layout, W, S, matrix)
        assert np.isfinite(M).all()
    alike = igpc_matrix(layout, fit_layout(layout, W, S))
    np.testing.assert_allclose(M, alike, atol=1e-9)


@pytest.mark.parametrize(
    "matrix",
    [np.ones((2, 3)), np.ones(3), np.full((2, 2), np.nan), np.array([[1.0, 2.0], [2.0, 1.0]])],
)
def test_what_is_no_metric_is_refused(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match="metric"):
        OutputMetric.of_matrix(matrix)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    W, S, G = layer(6, 5, 0)
    with pytest.raises(ValueError, match="5 filters"):
        fit_in_metric(low_rank_layout(6, 6, 2), np.ones((6, 6)), S, OutputMetric.of_matrix(G))
    with pytest.raises(ValueError, match="filter_scale"):
        OutputMetric.of_scale(np.ones(4), 5)
    assert W.shape == (5, 6)
