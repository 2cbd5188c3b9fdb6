"""The budget: exact choices, honest limits, and damages between measurements."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_igpc.errors import CheckFailedError, UsageError
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout, GroupPath
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.planning.knapsack import (
    Candidate,
    Choice,
    Options,
    Target,
    best_within,
    choose,
    interpolate_damage,
    trade_off,
)

PARAMETERS = Target("pointwise-parameters", 0.5)


def layout_of(weights: int, dense: int) -> GroupLayout:
    """A layout with that many weights, of a layer with ``dense`` weights."""
    path = GroupPath(1, 1, weights, (0,))
    return GroupLayout("test", 1, dense, 1, GroupedStage(1, (path,)))


def site(name: str, *pairs: tuple[int, float], dense: int = 100, positions: int = 1) -> Options:
    """A site whose candidates have (weights, damage)."""
    return Options(
        name,
        positions,
        tuple(Candidate(layout_of(weights, dense), damage, damage) for weights, damage in pairs),
    )


def brute_force(sites: list[Options], target: Target, budget: float) -> float | None:
    """The least damage of all choices within the budget."""
    best = None
    for indices in product(*(range(len(each.candidates)) for each in sites)):
        cost = sum(each.cost(i, target) for each, i in zip(sites, indices, strict=True))
        damage = sum(each.candidates[i].damage for each, i in zip(sites, indices, strict=True))
        if cost <= budget and (best is None or damage < best):
            best = damage
    return best


candidates = st.lists(st.tuples(st.integers(1, 100), st.floats(0, 10)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(candidates, min_size=1, max_size=4), budget=st.integers(1, 300))
def test_the_choice_is_the_best_there_is(pairs: list[list[tuple[int, float]]], budget: int) -> None:
    sites = [site(str(number), *each) for number, each in enumerate(pairs)]
    expected = brute_force(sites, PARAMETERS, budget)
    found = choose(sites, PARAMETERS, budget)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.cost <= budget
    assert found.damage == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_macs_weigh_by_positions() -> None:
    """With equal weights, the site at many positions is the one to shrink under a MAC budget."""
    wide = site("wide", (100, 0.0), (50, 1.0), positions=1000)
    deep = site("deep", (100, 0.0), (50, 1.0), positions=1)
    target = Target("pointwise-macs", 0.6)
    chosen = best_within([wide, deep], target, fixed=0)
    assert chosen.indices == (1, 0)


def test_what_is_fixed_counts_for_the_whole_model() -> None:
    one = site("one", (100, 0.0), (50, 1.0), (10, 5.0))
    # 100 of 200 are fixed: 80 % of the model leaves 60 for the site, 80 % of the site leaves 80.
    assert best_within([one], Target("parameters", 0.8), fixed=100).indices == (1,)
    assert best_within([one], Target("pointwise-parameters", 0.8), fixed=100).indices == (1,)
    assert best_within([one], Target("parameters", 0.55), fixed=100).indices == (2,)


def test_out_of_reach_names_the_least() -> None:
    one = site("one", (100, 0.0), (40, 1.0))
    with pytest.raises(CheckFailedError, match=r"the least is 40\.0%") as caught:
        best_within([one], Target("pointwise-parameters", 0.3), fixed=0)
    assert caught.value.exit_code == 1


def test_the_trade_off_falls_from_the_least_cost_to_dense() -> None:
    sites = [site("a", (100, 0.0), (50, 1.0), (10, 5.0)), site("b", (100, 0.0), (20, 0.5))]
    curve = trade_off(sites, PARAMETERS)
    shares, damages = zip(*curve, strict=True)
    assert shares[0] == pytest.approx(30 / 200)
    assert (shares[-1], damages[-1]) == (1.0, 0.0)
    assert list(damages) == sorted(damages, reverse=True)


def test_no_sites_cost_nothing() -> None:
    assert choose([], PARAMETERS, 0) == Choice((), 0, 0.0)


@given(
    measured=st.lists(
        st.tuples(st.floats(1e-6, 1.0), st.floats(1e-9, 10.0)), min_size=1, max_size=5
    ),
    errors=st.lists(st.floats(0.0, 1.5), min_size=2, max_size=8),
)
def test_interpolated_damage_never_falls(
    measured: list[tuple[float, float]], errors: list[float]
) -> None:
    errors = sorted(errors)
    damages = interpolate_damage(errors, measured)
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(damages))


def test_interpolation_passes_through_what_was_measured() -> None:
    measured = [(0.01, 0.001), (0.1, 0.02), (0.5, 0.9)]
    found = interpolate_damage([0.01, 0.1, 0.5, 0.005, 0.0], measured)
    assert found == pytest.approx([0.001, 0.02, 0.9, 0.0005, 0.0])


@pytest.mark.parametrize("text", ["pointwise-parameters=40%", " macs=7.5% ", "parameters=100%"])
def test_targets_are_read(text: str) -> None:
    assert str(Target.parse(text)) == text.strip()


@pytest.mark.parametrize(
    "text", ["", "40%", "weights=40%", "macs=40", "macs=0%", "macs=101%", "macs=..%"]
)
def test_other_targets_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="`target`"):
        Target.parse(text)


def test_published_layouts_are_candidates() -> None:
    layouts = [plan_layout(64, 64, ch) for ch in (4, 8, 16)]
    one = Options("site", 49, tuple(Candidate(each, 0.1, 0.1) for each in layouts))
    assert one.cost(0, PARAMETERS) == layouts[0].weights
    assert one.cost(0, Target("macs", 0.5)) == 49 * layouts[0].weights
