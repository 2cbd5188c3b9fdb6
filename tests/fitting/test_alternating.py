"""The iteration: every step lowers the objective, and what is kept up to date is exact."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_igpc.fitting.alternating import BlockPattern, FittingProblem
from onnx_igpc.fitting.alternating_plain import PlainProblem
from onnx_igpc.fitting.anderson import solve_gram
from onnx_igpc.fitting.fit import fit_layout, stage_groups
from onnx_igpc.fitting.weights import (
    igpc_matrix,
)
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.schemes import plan_layout
from tests.fitting.layers import SCHEMES, SMALL, dense, moments_of, replaced, weighted_error


def _problem(
    layout: GroupLayout, W: np.ndarray, S: np.ndarray | None
) -> FittingProblem | PlainProblem:
    assert layout.l is not None
    pattern = BlockPattern(stage_groups(layout.k), stage_groups(layout.l, layout.interleave))
    if S is None:
        return PlainProblem(W, np.ones(len(W)), pattern)
    return FittingProblem(W, np.ones(len(W)), S, pattern)


@pytest.mark.parametrize("with_moments", [False, True])
def test_every_sweep_and_every_accelerated_step_lowers_the_objective(with_moments: bool) -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48) if with_moments else None
    problem = _problem(layout, W, S)
    problem.start()
    objectives = [problem.objective()]
    for iterations in range(1, 12):
        fresh = _problem(layout, W, S)
        fresh.start()
        fresh.solve(0.0, iterations)
        objectives.append(fresh.objective())
    assert all(b <= a * (1 + 1e-9) for a, b in pairwise(objectives))
    assert objectives[-1] < 0.9 * objectives[0]


@pytest.mark.parametrize("with_moments", [False, True])
@pytest.mark.parametrize(("C", "F", "ch"), [(48, 40, 8), (64, 64, 16), (50, 20, 8)])
def test_a_fit_is_no_worse_than_fifteen_plain_sweeps(
    C: int, F: int, ch: int, with_moments: bool
) -> None:
    layout = replaced(C, F, ch)
    W, S = dense(F, C), moments_of(C) if with_moments else None
    plain = _problem(layout, W, S)
    plain.start()
    for _ in range(15):
        plain.sweep()
    M = igpc_matrix(layout, fit_layout(layout, W, S))
    assert weighted_error(W, M, S) <= plain.objective() * (1 + 1e-9)


@pytest.mark.parametrize(("C", "F", "ch"), [(48, 40, 8), (64, 64, 16)])
def test_acceleration_is_worth_its_steps(C: int, F: int, ch: int) -> None:
    layout, W, S = replaced(C, F, ch), dense(F, C), moments_of(C)
    accelerated, plain = _problem(layout, W, S), _problem(layout, W, S)
    for problem in (accelerated, plain):
        problem.start()
    accelerated.solve(0.0, 30)
    for _ in range(30):
        plain.sweep()
    assert accelerated.objective() < 0.995 * plain.objective()


def test_the_residual_is_kept_up_to_date() -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48)
    problem = _problem(layout, W, S)
    assert isinstance(problem, FittingProblem)
    problem.start()
    for _ in range(5):
        problem.sweep()
    product = problem.L @ problem.K + (problem.K if layout.has_sum else 0.0)
    np.testing.assert_allclose(problem.R, W - product, atol=1e-9)
    np.testing.assert_allclose(problem.RS, problem.R @ S, atol=1e-9)
    exact = weighted_error(W, product, S)
    assert problem.objective() == pytest.approx(exact, rel=1e-9)


@SMALL
@given(
    C=st.integers(2, 40), F=st.integers(2, 40), ch=st.integers(1, 8), scheme=SCHEMES,
    seed=st.integers(0, 99),
)  # fmt: skip
def test_without_data_the_fit_is_that_of_the_identity(
    C: int, F: int, ch: int, scheme: str, seed: int
) -> None:
    """The way that needs no residual does what the one with a residual does, step by step."""
    layout = plan_layout(C, F, ch, scheme)
    if layout.l is None:
        return
    W, scale = dense(F, C, seed), np.random.default_rng(seed).uniform(0.1, 2.0, F)
    pattern = BlockPattern(stage_groups(layout.k), stage_groups(layout.l, layout.interleave))
    plain = PlainProblem(W, scale, pattern)
    general = FittingProblem(W, scale, np.eye(C), pattern)
    for problem in (plain, general):
        problem.start()
    for _ in range(3):
        assert plain.objective() == pytest.approx(general.objective(), rel=1e-6, abs=1e-9)
        for problem in (plain, general):
            problem.sweep()


@pytest.mark.parametrize("with_moments", [False, True])
def test_states_are_copies(with_moments: bool) -> None:
    layout = replaced(48, 40, 8)
    problem = _problem(layout, dense(40, 48), moments_of(48) if with_moments else None)
    problem.start()
    state, before = problem.state(), problem.objective()
    problem.sweep()
    problem.restore(state)
    assert problem.objective() == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize("with_moments", [False, True])
def test_without_the_sum_and_with_fewer_rows_it_is_low_rank(with_moments: bool) -> None:
    """One group of K and one of L with D rows between: the truncated singular value decomposition."""
    W = dense(20, 30)
    groups = [(np.arange(6), np.arange(30))]
    above = [(np.arange(20), np.arange(6))]
    pattern = BlockPattern(groups, above, has_sum=False, k_rows=6)
    problem = (
        FittingProblem(W, np.ones(20), np.eye(30), pattern)
        if with_moments
        else PlainProblem(W, np.ones(20), pattern)
    )
    problem.start()
    problem.solve(1e-6, 50)
    best = np.sum(np.linalg.svd(W, compute_uv=False)[6:] ** 2)
    assert problem.objective() == pytest.approx(best, rel=1e-6)


def test_solve_gram_solves_and_survives_singular_matrices() -> None:
    gram = moments_of(6)
    right = dense(6, 3)
    np.testing.assert_allclose(gram @ solve_gram(gram, right), right, rtol=1e-6, atol=1e-6)
    assert not solve_gram(np.zeros((3, 3)), np.zeros((3, 2))).any()
    low = moments_of(6, rank=2)
    reachable = low @ right
    np.testing.assert_allclose(low @ solve_gram(low, reachable), reachable, atol=1e-6)
