"""The knapsack: the best there is, as enumeration and HiGHS find it, and the best where many are alike."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_igpc.planning.multiple_choice import GAP, least_damage

Problem = tuple[list[list[float]], list[list[float]]]

numbers = st.one_of(st.integers(0, 20), st.floats(0, 10))
options = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4)


def sums(problem: Problem, choice: list[int]) -> tuple[float, float]:
    costs, damages = problem
    return (
        sum(each[i] for each, i in zip(costs, choice, strict=True)),
        sum(each[i] for each, i in zip(damages, choice, strict=True)),
    )


def highs(problem: Problem, budget: float) -> float:
    """The least damage by scipy's solver."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    costs, damages = (np.concatenate([np.asarray(e) for e in part]) for part in problem)
    owner = np.repeat(np.arange(len(problem[0])), [len(each) for each in problem[0]])
    one_each = (owner[None, :] == np.arange(len(problem[0]))[:, None]).astype(float)
    unit = float(damages.max())
    result = milp(
        damages / unit,
        constraints=[
            LinearConstraint(one_each, 1.0, 1.0),
            LinearConstraint(costs[None, :] / costs.max(), -np.inf, budget / costs.max()),
        ],
        integrality=np.ones(len(costs)),
        bounds=Bounds(0.0, 1.0),
        options={"mip_rel_gap": 1e-9},
    )
    return float(result.fun) * unit


@settings(max_examples=150, deadline=None)
@given(st.lists(options, min_size=1, max_size=5), numbers)
def test_as_good_as_all_choices_tried(
    items: list[list[tuple[float, float]]], budget: float
) -> None:
    problem = ([[c for c, _ in each] for each in items], [[d for _, d in each] for each in items])
    every = [sums(problem, list(i)) for i in product(*(range(len(each)) for each in items))]
    within = [damage for cost, damage in every if cost <= budget]
    found = least_damage(*problem, budget)
    if not within:
        assert found is None
        return
    assert found is not None
    cost, damage = sums(problem, found)
    assert cost <= budget
    assert damage <= min(within) * (1 + 2 * GAP)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_as_good_as_another_solver(seed: int, share: float) -> None:
    """Thirty layers of sizes from a hundred to a million weights, whose damage falls as they grow."""
    generator = np.random.default_rng(seed)
    costs, damages = [], []
    for _ in range(30):
        part = np.append(np.sort(generator.uniform(0.04, 0.8, 14)), 1.0)
        size, steepness = 10 ** generator.uniform(2, 6), generator.uniform(2, 8)
        damage = 10 ** generator.uniform(-4, 0) * np.exp(-steepness * part)
        costs.append(np.round(size * part).tolist())
        damages.append([*(damage * generator.uniform(0.8, 1.2, 15))[:-1].tolist(), 0.0])
    least, most = (sum(each[i] for each in costs) for i in (0, -1))
    budget = least + share * (most - least)
    found = least_damage(costs, damages, budget)
    assert found is not None
    cost, damage = sums((costs, damages), found)
    assert cost <= budget
    assert damage <= highs((costs, damages), budget) * (1 + 1e-5)


def test_many_equally_good_choices_do_no_harm() -> None:
    """Whatever is spent saves as much: all choices that spend everything are best."""
    generator = np.random.default_rng(0)
    costs = [generator.integers(1, 10**6, 25).tolist() for _ in range(60)]
    damages = [[float(10**6 - cost) for cost in each] for each in costs]
    budget = 0.5 * sum(max(each) for each in costs)
    found = least_damage(costs, damages, budget)
    assert found is not None
    assert sums((costs, damages), found)[0] == pytest.approx(budget, rel=1e-5)


def test_a_budget_that_is_met_exactly() -> None:
    costs = [[0.1, 0.3], [0.2, 0.7], [0.3, 0.9]]
    damages = [[1.0, 0.0]] * 3
    assert least_damage(costs, damages, 0.1 + 0.2 + 0.3) == [0, 0, 0]
    assert least_damage(costs, damages, 0.3 + 0.7 + 0.9) == [1, 1, 1]
    assert least_damage(costs, damages, 0.59) is None
