"""What a budget chooses from: never behind its corners, in order, and as good as it says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from onnx_igpc.fitting.fit import fit_layout
from onnx_igpc.fitting.weights import fit_error
from onnx_igpc.layout.extended import low_rank_layout
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.layout.serialization import layout_from_dict, layout_to_dict
from onnx_igpc.planning.candidates import FittedLayout, best_fitted, candidate_layouts
from onnx_igpc.planning.extended_search import two_levels


def layer(C: int, F: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight and moments that fall off as those of trained layers do, and filter scales."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.normal(size=(C, C))).Q
    S = (basis * np.exp(-np.arange(C) * 6.0 / C)) @ basis.T
    scale = generator.uniform(0.2, 1.0, F)
    return generator.normal(size=(F, C)), S, scale / scale.max()


def check(
    candidates: list[FittedLayout], W: np.ndarray, S: np.ndarray | None, d: np.ndarray | None
) -> None:
    for each in candidates:
        told = fit_error(each.layout, each.weights, W, S, d)
        assert told == pytest.approx(each.error, rel=1e-6, abs=1e-9)
        assert layout_from_dict(layout_to_dict(each.layout)) == each.layout
    for few, more in pairwise(candidates):
        assert few.layout.weights < more.layout.weights
        assert few.error > more.error
    assert not candidates[-1].layout.replaced
    assert candidates[-1].error == 0.0


@pytest.mark.parametrize(("C", "F"), [(32, 32), (48, 16), (16, 48), (30, 31)])
@pytest.mark.parametrize("grouping", ["learned", "contiguous"])
def test_never_behind_its_corners(C: int, F: int, grouping: str) -> None:
    W, S, d = layer(C, F)
    sizes = [0.1, 0.2, 0.3, 0.45, 0.6]
    candidates = candidate_layouts(W, S, d, sizes, grouping=grouping, tolerance=1e-4)  # type: ignore[arg-type]
    check(candidates, W, S, d)
    for ch in (4, 8, 12, 16):
        published = plan_layout(C, F, ch)
        if published.weights < C * F:
            error = fit_error(published, fit_layout(published, W, S, d), W, S, d)
            best = best_fitted(candidates, published.weights)
            assert best is None or best.error <= error * (1 + 1e-9)
    for size in sizes:
        low_rank = low_rank_layout(C, F, int(size * C * F) // (C + F) or 1)
        error = fit_error(low_rank, fit_layout(low_rank, W, S, d), W, S, d)
        best = best_fitted(candidates, int(size * C * F))
        if low_rank.weights <= size * C * F:
            assert best is not None
            assert best.error <= error * (1 + 1e-9)


@pytest.mark.parametrize(("C", "F"), [(96, 80), (264, 20), (20, 264), (260, 256)])
def test_larger_layers(C: int, F: int) -> None:
    """They are searched with less care, but no less correctly, and never behind low rank."""
    W, S, d = layer(C, F)
    candidates = candidate_layouts(W, S, d, [0.1, 0.4])
    check(candidates, W, S, d)
    for size in (0.1, 0.4):
        low_rank = low_rank_layout(C, F, int(size * C * F) // (C + F))
        error = fit_error(low_rank, fit_layout(low_rank, W, S, d), W, S, d)
        best = best_fitted(candidates, int(size * C * F))
        assert best is not None
        assert best.error <= error * (1 + 1e-9)


def test_without_data() -> None:
    W, _, d = layer(32, 24)
    check(candidate_layouts(W, None, d, [0.2, 0.5]), W, None, d)
    check(candidate_layouts(W, sizes=[0.2, 0.5]), W, None, None)


def test_degenerate_layers() -> None:
    W, S, d = layer(16, 16)
    assert candidate_layouts(0 * W, S, d)[-1].error == 0.0
    assert candidate_layouts(W, 0 * S, d)[-1].error == 0.0
    assert len(candidate_layouts(np.ones((1, 1)))) == 1
    assert candidate_layouts(np.ones((1, 8)))[-1].layout.weights == 8
    rank_one = np.outer(np.arange(1.0, 17.0), np.arange(1.0, 17.0))
    best = best_fitted(candidate_layouts(rank_one, S, d), 64)
    assert best is not None
    assert best.error < 1e-9


def test_no_candidate_is_small_enough() -> None:
    W, S, d = layer(16, 16)
    assert best_fitted(candidate_layouts(W, S, d, [0.5]), 10) is None


def test_shapes_that_do_not_belong_together() -> None:
    W, S, d = layer(16, 12)
    with pytest.raises(ValueError, match="moments"):
        candidate_layouts(W, S[:8, :8])
    with pytest.raises(ValueError, match="filter_scale"):
        candidate_layouts(W, S, d[:4])


def test_deterministic() -> None:
    W, S, d = layer(32, 32)
    first, again = (candidate_layouts(W, S, d, [0.2, 0.4]) for _ in range(2))
    assert [each.layout for each in first] == [each.layout for each in again]
    assert [each.error for each in first] == [each.error for each in again]


@pytest.mark.parametrize(
    ("ranks", "levels"),
    [
        ([3, 3, 3], [3, 3, 3]),
        ([5, 1, 5, 1], [5, 1, 5, 1]),
        ([4, 3, 3, 1], [3, 3, 3, 2]),
        ([9, 2, 2, 1], [9, 1, 1, 1]),
        ([2], [2]),
    ],
)
def test_two_levels(ranks: list[int], levels: list[int]) -> None:
    found = two_levels(ranks, [10] * len(ranks), 9)
    assert len(set(found)) <= 2
    assert sum(found) <= sum(ranks)
    assert found == levels
