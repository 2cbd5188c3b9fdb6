"""Learned grouping: planted groups are found, the search never loses, everything is deterministic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_igpc.fitting.variable_projection import ProjectionProblem
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.planning import clustering
from onnx_igpc.planning.clustering import Clustering, channel_affinity
from onnx_igpc.planning.exchange_search import exchange_gains, search_groups
from onnx_igpc.planning.grouping import (
    better_grouping,
    clustered_groups,
    contiguous_groups,
    even_sizes,
    learned_published,
)

seeds = st.integers(0, 10_000)


def layer(C: int, F: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(3 * C, C)) @ generator.normal(size=(C, C))
    return generator.normal(size=(F, C)), x.T @ x / len(x)


def planted(C: int, F: int, groups: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A layer that needs one row for each of the planted groups of channels; and the groups."""
    generator = np.random.default_rng(seed)
    owner = generator.permutation(np.arange(C) % groups)
    W = generator.normal(size=(F, groups))[:, owner] * generator.normal(size=C)
    return W, np.eye(C), owner


def learned_columns(
    W: np.ndarray, S: np.ndarray, sizes: list[int], ranks: list[int], refits: int
) -> list[np.ndarray]:
    """Clusters, improved by exchanges."""
    problem = ProjectionProblem(W, S, contiguous_groups(sizes))
    start = clustered_groups(problem, sizes, ranks, Clustering(channel_affinity(W, S)))
    return [np.sort(each) for each in search_groups(start, ranks, refits).columns]


def error(W: np.ndarray, S: np.ndarray, columns: list[np.ndarray], ranks: list[int]) -> float:
    return ProjectionProblem(W, S, columns).solve(ranks, 1e-6, 200)


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_planted_groups_are_found(groups: int) -> None:
    W, S, owner = planted(24, 16, groups, groups)
    columns = learned_columns(W, S, even_sizes(24, groups), [1] * groups, 20)
    assert sorted(tuple(each) for each in columns) == sorted(
        tuple(np.flatnonzero(owner == g)) for g in range(groups)
    )


@settings(max_examples=25)
@given(st.integers(4, 20), st.integers(3, 20), st.integers(1, 4), seeds)
def test_clusters_have_the_sizes_asked_for(C: int, F: int, groups: int, seed: int) -> None:
    W, S = layer(C, F, seed)
    sizes = even_sizes(C, groups)
    clusters = Clustering(channel_affinity(W, S)).balanced(sizes)
    assert [len(each) for each in clusters] == sizes
    assert sorted(np.concatenate(clusters).tolist()) == list(range(C))


def test_clusters_of_many_items_are_nearly_as_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the assignment problem: the sizes asked for, and little of the distance that chance would add."""
    generator = np.random.default_rng(0)
    for sizes in ([20, 20, 20], [5, 30, 25], even_sizes(60, 12), [0, 59, 1]):
        distance = generator.uniform(0.5, 1.5, (60, len(sizes))) ** 2
        exact = clustering._assigned(distance, sizes)
        with monkeypatch.context() as patch:
            patch.setattr(clustering, "_MOST_EXACT", 0)
            near = clustering._assigned(distance, sizes)
        assert np.bincount(near, minlength=len(sizes)).tolist() == sizes
        any_owner = np.repeat(np.arange(len(sizes)), sizes)
        least, found, chance = (
            float(distance[np.arange(60), owner].sum()) for owner in (exact, near, any_owner)
        )
        assert 0.0 <= found - least <= 0.15 * (chance - least)


def test_affinity_is_one_where_channels_can_share_a_row() -> None:
    W, S = layer(6, 5, 0)
    W[:, 1] = 3.0 * W[:, 0]
    S[:, 3] = 2.0 * S[:, 2]
    S[3] = 2.0 * S[2]
    affinity = channel_affinity(W, S)
    assert affinity[0, 1] == pytest.approx(1.0)
    assert affinity[2, 3] == pytest.approx(1.0)
    assert 0.0 <= affinity.min() <= affinity.max() <= 1.0


def test_channels_that_never_change_are_no_trouble() -> None:
    W, S = layer(8, 6, 1)
    S[2] = S[:, 2] = 0.0
    W[:, 5] = 0.0
    assert np.isfinite(channel_affinity(W, S)).all()
    columns = learned_columns(W, S, [4, 4], [1, 1], 5)
    assert np.isfinite(error(W, S, columns, [1, 1]))
    assert learned_columns(0 * W, 0 * S, [4, 4], [1, 1], 5)


@settings(max_examples=15)
@given(st.integers(6, 24), st.integers(4, 24), seeds)
def test_search_never_loses(C: int, F: int, seed: int) -> None:
    W, S = layer(C, F, seed)
    problem = ProjectionProblem(W, S, contiguous_groups(even_sizes(C, 3)))
    before = problem.solve([1, 1, 1], 1e-4, 50)
    found = search_groups(problem, [1, 1, 1], 20)
    assert found.objective() <= before
    assert [len(each) for each in found.columns] == even_sizes(C, 3)
    assert sorted(np.concatenate(found.columns).tolist()) == list(range(C))
    assert problem.objective() == pytest.approx(before, rel=1e-6, abs=1e-9 * problem.total)


def test_search_repairs_an_exchange() -> None:
    """Two channels of the planted groups have changed places: the gains say so, the search undoes it."""
    W, S, owner = planted(16, 12, 2, 7)
    first, second = np.flatnonzero(owner == 0), np.flatnonzero(owner == 1)
    mixed = [np.append(first[1:], second[0]), np.append(second[1:], first[0])]
    problem = ProjectionProblem(W, S, mixed)
    problem.solve([1, 1], 1e-6, 100)
    gains = exchange_gains(problem)
    assert gains[second[0], 1] > 0
    assert gains[first[0], 0] > 0
    assert (gains <= 1e-9 * problem.total).sum() >= 2 * 16 - 4
    found = search_groups(problem, [1, 1], 20)
    assert {tuple(sorted(each)) for each in found.columns} == {tuple(first), tuple(second)}


def test_learned_columns_are_not_worse_than_contiguous() -> None:
    for seed in range(6):
        W, S = layer(20, 10, seed)
        sizes, ranks = even_sizes(20, 4), [1, 1, 1, 1]
        learned = error(W, S, learned_columns(W, S, sizes, ranks, 10), ranks)
        assert learned <= error(W, S, contiguous_groups(sizes), ranks) * (1 + 1e-6)


@settings(max_examples=20)
@given(st.integers(5, 40), st.integers(2, 40), st.integers(2, 6), seeds)
def test_learned_published_keeps_everything_but_the_order(
    C: int, F: int, ch: int, seed: int
) -> None:
    W, S = layer(C, F, seed)
    layout = plan_layout(C, F, ch)
    if not layout.replaced:
        return
    learned = learned_published(layout, W, S)
    assert learned.weights == layout.weights
    assert (learned.l, learned.interleave) == (layout.l, layout.interleave)
    assert set(learned.k.input_order) == set(layout.k.input_order)
    for path, published in zip(learned.k.paths, layout.k.paths, strict=True):
        assert path.weight_shape == published.weight_shape
        for group in range(path.groups):
            assert len(set(path.group_inputs(group))) == path.channels_per_group


def test_published_layout_is_never_worse_for_learning() -> None:
    better = 0
    for seed in range(6):
        W, S, _ = planted(16, 16, 4, seed)
        published = plan_layout(16, 16, 4)
        learned = learned_published(published, W, S)
        (_, _, alone) = better_grouping([published], W, S)
        layout, _, both = better_grouping([published, learned], W, S)
        assert both <= alone
        better += layout == learned
    assert better >= 4


def test_deterministic() -> None:
    W, S = layer(20, 10, 3)
    first = learned_columns(W, S, [10, 10], [2, 2], 10)
    again = learned_columns(W.copy(), S.copy(), [10, 10], [2, 2], 10)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
