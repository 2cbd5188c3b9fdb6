"""Refitting from known weights: never worse than they are, and near to the full fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_igpc.fitting.fit import fit_layout, random_weights, refit_layout
from onnx_igpc.fitting.weights import IgpcWeights, fit_error
from onnx_igpc.layout.extended import extended_layout, low_rank_layout
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.schemes import plan_layout


def extended(C: int, F: int, l_groups: int) -> GroupLayout:
    order = np.random.default_rng(C + F).permutation(C).tolist()
    rows = max(F // 3, l_groups)
    return extended_layout(C, F, [(order[: C // 2], rows), (order[C // 2 :], rows + 1)], l_groups)


LAYOUTS = {
    "v1 with the sum": plan_layout(24, 12, 4, "v1"),
    "v1 without L": plan_layout(12, 24, 4, "v1"),
    "v2 with the sum": plan_layout(26, 17, 4),
    "v2 without L": plan_layout(14, 23, 4),
    "extended": extended(20, 14, 1),
    "extended, two groups of L": extended(20, 14, 2),
    "low rank": low_rank_layout(18, 13, 4),
    "any interleave and the sum": extended_layout(
        12,
        12,
        [(part.tolist(), 4) for part in np.split(np.random.default_rng(3).permutation(12), 3)],
        [(range(i, 12, 3), range(4 * i, 4 * i + 4)) for i in range(3)],
        has_sum=True,
    ),
    "filters out of order": extended_layout(
        10,
        8,
        [(range(5), 3), (range(5, 10), 2)],
        [([0, 3], [7, 2, 4]), ([4, 1, 2], [0, 1, 3, 5, 6])],
    ),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def layer(layout: GroupLayout, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight, moments of correlated channels, filter scales."""
    generator = np.random.default_rng(seed)
    C, F = layout.in_channels, layout.out_channels
    x = generator.normal(size=(4 * C, C)) @ generator.normal(size=(C, C))
    return generator.normal(size=(F, C)), x.T @ x / len(x), generator.uniform(0.1, 1.0, F)


def other_moments(moments: np.ndarray, by: float, seed: int) -> np.ndarray:
    """Moments that differ by a random mixing of the channels."""
    generator = np.random.default_rng([seed, 1])
    C = len(moments)
    mixing = np.eye(C) + by / np.sqrt(C) * generator.normal(size=(C, C))
    found: np.ndarray = mixing @ moments @ mixing.T
    return found


@layouts
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), by=st.sampled_from([0.0, 0.1, 1.0]), rounds=st.integers(1, 3))
def test_never_worse_than_the_start(layout: GroupLayout, seed: int, by: float, rounds: int) -> None:
    W, S, d = layer(layout, seed)
    changed = other_moments(S, by, seed)
    for start in (fit_layout(layout, W, S, d), random_weights(layout, seed, "start", False)):
        again = refit_layout(layout, start, W, changed, d, rounds=rounds)
        assert fit_error(layout, again, W, changed, d) <= fit_error(layout, start, W, changed, d)


@layouts
def test_near_to_the_full_fit_where_little_has_changed(layout: GroupLayout) -> None:
    """One round makes up for a good part of what the change of the moments cost: all of it where the
    steps are exact, less where the sum ties many groups together."""
    W, S, d = layer(layout, 1)
    changed = other_moments(S, 0.1, 1)
    start = fit_layout(layout, W, S, d, tolerance=1e-7)
    full = fit_layout(layout, W, changed, d, tolerance=1e-7)
    before, after, best = (
        fit_error(layout, each, W, changed, d)
        for each in (start, refit_layout(layout, start, W, changed, d), full)
    )
    assert after - best <= (0.65 if layout.has_sum else 0.1) * (before - best)


@layouts
def test_nothing_to_do_changes_nothing(layout: GroupLayout) -> None:
    W, S, d = layer(layout, 2)
    start = fit_layout(layout, W, S, d)
    error = fit_error(layout, start, W, S, d)
    again = fit_error(layout, refit_layout(layout, start, W, S, d), W, S, d)
    assert again == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("rank", [0, 2])
def test_moments_without_full_rank(rank: int) -> None:
    for layout in LAYOUTS.values():
        W, S, d = layer(layout, 3)
        flat = S[:, :rank] @ S[:rank]
        start = fit_layout(layout, W, S, d)
        again = refit_layout(layout, start, W, flat, d)
        assert all(np.isfinite(each).all() for each in (*again.k, *again.l))
        assert fit_error(layout, again, W, flat, d) <= fit_error(layout, start, W, flat, d)


def test_shapes_that_do_not_match() -> None:
    layout = LAYOUTS["extended"]
    W, S, d = layer(layout, 4)
    start: IgpcWeights = fit_layout(layout, W, S, d)
    with pytest.raises(ValueError, match="moments"):
        refit_layout(layout, start, W, S[:4, :4], d)
    with pytest.raises(ValueError, match="weight"):
        refit_layout(layout, start, W.T, S, d)
