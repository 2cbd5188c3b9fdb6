"""K and L fitted to a dense weight: optimal where there is a closed form, never worse elsewhere."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_igpc.fitting.alternating import BlockPattern, FittingProblem
from onnx_igpc.fitting.alternating_plain import PlainProblem
from onnx_igpc.fitting.anderson import solve_gram
from onnx_igpc.fitting.fit import fit_layout, random_weights, stage_groups
from onnx_igpc.fitting.weights import (
    IgpcWeights,
    igpc_matrix,
    plain_error,
    relative_error,
    stage_matrix,
)
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.layout.schemes import plan_layout

SMALL = settings(deadline=None, max_examples=40)
SCHEMES = st.sampled_from(["v1", "v2"])


def dense(F: int, C: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((F, C))


def moments_of(C: int, seed: int = 0, rank: int | None = None) -> np.ndarray:
    """Second moments of correlated inputs; of lower rank if asked."""
    samples = np.random.default_rng([seed, 1]).standard_normal((C, rank or 2 * C))
    samples *= np.linspace(0.2, 3, C)[:, None]
    moments: np.ndarray = samples @ samples.T / samples.shape[1]
    return moments


def replaced(C: int, F: int, ch: int, scheme: str = "v2") -> GroupLayout:
    layout = plan_layout(C, F, ch, scheme)
    assert layout.replaced
    return layout


def weighted_error(
    weight: np.ndarray,
    matrix: np.ndarray,
    moments: np.ndarray | None = None,
    scale: np.ndarray | None = None,
) -> float:
    difference = weight - matrix
    S = np.eye(weight.shape[1]) if moments is None else moments
    d = np.ones(len(weight)) if scale is None else scale
    return float(np.einsum("f,fc,ce,fe->", d**2, difference, S, difference))


def support(stage: GroupedStage) -> np.ndarray:
    """Where the matrix of a stage may be other than zero, from the definition of its paths."""
    mask = np.zeros((stage.out_channels, stage.in_channels), dtype=bool)
    row = 0
    for path in stage.paths:
        for group in range(path.groups):
            start = group * path.channels_per_group
            columns = path.inputs[start : start + path.channels_per_group]
            for _ in range(path.filters_per_group):
                mask[row, list(columns)] = True
                row += 1
    return mask


def apply_stage(stage: GroupedStage, weights: tuple[np.ndarray, ...], x: np.ndarray) -> np.ndarray:
    """The stage on one pixel, filter by filter, as a grouped convolution computes it."""
    out = []
    for path, kernel in zip(stage.paths, weights, strict=True):
        gathered = x[list(path.inputs)]
        for row in range(path.filters):
            start = row // path.filters_per_group * path.channels_per_group
            out.append(kernel[row] @ gathered[start : start + path.channels_per_group])
    return np.array(out)


def apply_layout(layout: GroupLayout, weights: IgpcWeights, x: np.ndarray) -> np.ndarray:
    """What the rewritten layer computes for one pixel, step by step."""
    k = apply_stage(layout.k, weights.k, x)
    y = k
    if layout.l is not None:
        assert weights.l
        order = range(len(k)) if layout.interleave is None else layout.interleave
        y = apply_stage(layout.l, weights.l, k[list(order)]) + k
    return y if layout.output_interleave is None else y[list(layout.output_interleave)]


# --------------------------------------------------------------------------- the matrix


@SMALL
@given(
    C=st.integers(1, 40), F=st.integers(1, 40), ch=st.integers(1, 16), scheme=SCHEMES,
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_matrix_is_what_the_layout_computes(
    C: int, F: int, ch: int, scheme: str, seed: int
) -> None:
    layout = plan_layout(C, F, ch, scheme)
    weights = random_weights(layout, seed, "site", activated=False)
    M = igpc_matrix(layout, weights)
    assert M.shape == (F, C)
    for x in np.random.default_rng(seed).standard_normal((3, C)):
        np.testing.assert_allclose(M @ x, apply_layout(layout, weights, x), atol=1e-10)


@SMALL
@given(C=st.integers(2, 64), F=st.integers(2, 64), ch=st.integers(1, 16), scheme=SCHEMES)
def test_groups_cover_every_block_once(C: int, F: int, ch: int, scheme: str) -> None:
    layout = plan_layout(C, F, ch, scheme)
    for stage in (layout.k, layout.l):
        if stage is None:
            continue
        mask = np.zeros((stage.out_channels, stage.in_channels), dtype=int)
        for rows, columns in stage_groups(stage):
            mask[np.ix_(rows, columns)] += 1
        np.testing.assert_array_equal(mask, support(stage))


# --------------------------------------------------------------------------- the optimum


@SMALL
@given(
    C=st.integers(2, 48), F=st.integers(2, 48), ch=st.integers(1, 12), scheme=SCHEMES,
    seed=st.integers(0, 99), with_moments=st.booleans(),
)  # fmt: skip
def test_a_fit_is_never_worse_than_a_projection(
    C: int, F: int, ch: int, scheme: str, seed: int, with_moments: bool
) -> None:
    layout = plan_layout(C, F, ch, scheme)
    if not layout.replaced:
        return
    W = dense(F, C, seed)
    S = moments_of(C, seed) if with_moments else None
    fitted = igpc_matrix(layout, fit_layout(layout, W, S))
    inverse = np.argsort(layout.output_interleave or range(F))
    projected = np.where(support(layout.k)[np.argsort(inverse)], W, 0)
    assert relative_error(W, fitted, S) <= relative_error(W, projected, S) + 1e-9
    assert relative_error(W, fitted, S) <= 1 + 1e-9


@pytest.mark.parametrize(("C", "F", "ch"), [(12, 20, 4), (10, 24, 4), (7, 9, 3), (30, 31, 8)])
@pytest.mark.parametrize("kind", ["identity", "moments", "deficient"])
def test_without_an_l_the_fit_is_the_least_squares_optimum(
    C: int, F: int, ch: int, kind: str
) -> None:
    layout = replaced(C, F, ch)
    assert layout.l is None
    W = dense(F, C)
    samples = np.random.default_rng(5).standard_normal(
        (C, C // 2 if kind == "deficient" else 3 * C)
    )
    S = None if kind == "identity" else samples @ samples.T
    M = igpc_matrix(layout, fit_layout(layout, W, S))
    mask = support(layout.k)
    assert not M[~mask].any()
    inputs = np.eye(C) if S is None else samples
    for row in range(F):
        columns = mask[row]
        best, *_ = np.linalg.lstsq(inputs[columns].T, W[row] @ inputs, rcond=None)
        optimum = np.sum((W[row] @ inputs - best @ inputs[columns]) ** 2)
        reached = np.sum(((W[row] - M[row]) @ inputs) ** 2)
        assert reached <= optimum + 1e-6 * np.sum((W[row] @ inputs) ** 2)


def test_v1_without_an_l_is_optimal_behind_its_interleave() -> None:
    layout = replaced(16, 32, 4, "v1")
    assert layout.output_interleave is not None
    W = dense(32, 16)
    M = igpc_matrix(layout, fit_layout(layout, W))
    mask = support(layout.k)[list(layout.output_interleave)]
    np.testing.assert_array_equal(M, np.where(mask, W, 0))


@pytest.mark.parametrize(
    ("C", "F", "ch", "scheme"),
    [
        (64, 64, 16, "v2"),
        (64, 64, 16, "v1"),
        (40, 36, 8, "v2"),
        (50, 20, 8, "v2"),
        (96, 48, 16, "v1"),
    ],
)
@pytest.mark.parametrize("with_moments", [False, True])
def test_a_weight_of_the_structure_is_recovered(
    C: int, F: int, ch: int, scheme: str, with_moments: bool
) -> None:
    """A random matrix of that structure: other weights get less than half of it, the fit nearly all."""
    layout = replaced(C, F, ch, scheme)
    assert layout.l is not None
    W = igpc_matrix(layout, random_weights(layout, 3, "site", activated=False))
    S = moments_of(C) if with_moments else None
    error = relative_error(W, igpc_matrix(layout, fit_layout(layout, W, S)), S)
    assert error < 0.02


def test_fit_is_a_stationary_point_of_both_stages() -> None:
    """No single block of K or of L can be moved to lower the error by much."""
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48)
    weights = fit_layout(layout, W, S)
    reached = weighted_error(W, igpc_matrix(layout, weights), S)
    generator = np.random.default_rng(0)
    assert weights.l
    for stage in ("k", "l"):
        for _ in range(10):
            moved = {
                name: tuple(
                    kernel + (name == stage) * 1e-2 * generator.standard_normal(kernel.shape)
                    for kernel in getattr(weights, name)
                )
                for name in ("k", "l")
            }
            trial = igpc_matrix(layout, IgpcWeights(moved["k"], moved["l"]))
            assert weighted_error(W, trial, S) > reached * (1 - 1e-3)


# --------------------------------------------------------------------------- moments and scales


def test_moments_decide_what_counts() -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48)
    with_data = igpc_matrix(layout, fit_layout(layout, W, S))
    without = igpc_matrix(layout, fit_layout(layout, W))
    assert relative_error(W, with_data, S) < relative_error(W, without, S)
    assert relative_error(W, without) < relative_error(W, with_data)


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_moments_of_low_rank(rank: int) -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48, rank=rank)
    M = igpc_matrix(layout, fit_layout(layout, W, S))
    assert np.isfinite(M).all()
    assert relative_error(W, M, S) < (1e-3 if rank == 1 else 0.3)


def test_channels_that_are_always_zero_cost_nothing() -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48)
    S[:4] = S[:, :4] = 0
    M = igpc_matrix(layout, fit_layout(layout, W, S))
    assert np.isfinite(M).all()
    assert relative_error(W, M, S) < relative_error(
        W, igpc_matrix(layout, fit_layout(layout, W)), S
    )


@pytest.mark.parametrize("dead", [8, 16, 48])
def test_groups_whose_inputs_are_always_zero(dead: int) -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48)
    S[:dead] = S[:, :dead] = 0
    M = igpc_matrix(layout, fit_layout(layout, W, S))
    assert np.isfinite(M).all()
    assert relative_error(W, M, S) < 0.95
    alone = replaced(12, 20, 4)
    S = moments_of(12)
    S[:4] = S[:, :4] = 0
    assert np.isfinite(igpc_matrix(alone, fit_layout(alone, dense(20, 12), S))).all()


def test_filter_scale_moves_the_error_to_filters_that_count_less() -> None:
    layout = replaced(48, 40, 8)
    W = dense(40, 48)
    scale = np.where(np.arange(40) < 20, 10.0, 0.1)
    plain = W - igpc_matrix(layout, fit_layout(layout, W))
    scaled = W - igpc_matrix(layout, fit_layout(layout, W, filter_scale=scale))
    assert np.sum(scaled[:20] ** 2) < np.sum(plain[:20] ** 2)
    assert np.sum(scaled[20:] ** 2) > np.sum(plain[20:] ** 2)


@pytest.mark.parametrize("off", [1, 39, 40])
def test_filters_that_are_switched_off(off: int) -> None:
    layout = replaced(48, 40, 8)
    W = dense(40, 48)
    scale = np.ones(40)
    scale[:off] = 0
    M = igpc_matrix(layout, fit_layout(layout, W, moments_of(48), scale))
    assert np.isfinite(M).all()
    if off == 39:
        assert weighted_error(W[39:], M[39:]) < 0.5 * weighted_error(W[39:], 0 * M[39:])


def test_the_sign_of_a_scale_and_its_size_do_not_matter() -> None:
    layout = replaced(48, 40, 8)
    W = dense(40, 48)
    scale = np.random.default_rng(1).uniform(0.5, 2, 40)
    first = igpc_matrix(layout, fit_layout(layout, W, filter_scale=scale))
    second = igpc_matrix(layout, fit_layout(layout, W, filter_scale=-8 * scale))
    np.testing.assert_allclose(second, first, rtol=1e-9, atol=1e-12)


def test_replicated_channels_share_their_weight() -> None:
    layout = replaced(18, 12, 4)
    assert layout.k.replicated
    W, S = dense(12, 18), moments_of(18)
    weights = fit_layout(layout, W, S)
    M = igpc_matrix(layout, weights)
    assert weights.l
    by_hand = [apply_layout(layout, weights, x) for x in np.eye(18)]
    np.testing.assert_allclose(np.array(by_hand).T, M, atol=1e-10)
    assert relative_error(W, M, S) < 1


def test_a_zero_weight_and_a_zero_filter() -> None:
    layout = replaced(48, 40, 8)
    assert not igpc_matrix(layout, fit_layout(layout, np.zeros((40, 48)))).any()
    W = dense(40, 48)
    W[3] = 0
    assert np.isfinite(igpc_matrix(layout, fit_layout(layout, W))).all()


@pytest.mark.parametrize("factor", [1e-12, 1e-4, 1e6])
def test_fits_do_not_depend_on_the_unit(factor: float) -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48), moments_of(48)
    plain = relative_error(W, igpc_matrix(layout, fit_layout(layout, W, S)), S)
    M = igpc_matrix(layout, fit_layout(layout, W * factor, S * factor))
    assert relative_error(W * factor, M, S * factor) == pytest.approx(plain, rel=0.02)


# --------------------------------------------------------------------------- the iteration


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


# --------------------------------------------------------------------------- the interface


def test_fits_are_deterministic_in_float64_and_leave_their_input_alone() -> None:
    layout = replaced(48, 40, 8)
    W, S = dense(40, 48).astype(np.float32), moments_of(48)
    copies = W.copy(), S.copy()
    first, second = fit_layout(layout, W, S), fit_layout(layout, W, S)
    assert first.l
    assert second.l
    for one, two in zip((*first.k, *first.l), (*second.k, *second.l), strict=True):
        assert one.dtype == np.float64
        assert one.tobytes() == two.tobytes()
    np.testing.assert_array_equal(W, copies[0])
    np.testing.assert_array_equal(S, copies[1])
    shapes = [path.weight_shape for path in layout.k.paths]
    assert [kernel.shape for kernel in first.k] == shapes


@pytest.mark.parametrize("shape", [(48, 40), (40, 47), (40, 48, 1)])
def test_weights_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="weight has shape"):
        fit_layout(replaced(48, 40, 8), np.zeros(shape))


def test_moments_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="moments have shape"):
        fit_layout(replaced(48, 40, 8), dense(40, 48), np.eye(40))


def test_random_weights_have_the_variance_that_was_promised() -> None:
    layout = replaced(512, 512, 16)
    for activated, variance in ((True, 2 / 16), (False, 1 / 16)):
        weights = random_weights(layout, 0, "site", activated)
        assert weights.l
        for kernels in (weights.k, weights.l):
            values = np.concatenate([kernel.ravel() for kernel in kernels])
            assert values.var() == pytest.approx(variance, rel=0.08)
            assert abs(values.mean()) < 4 * np.sqrt(variance / values.size)
    alone = random_weights(replaced(256, 512, 16), 0, "site", activated=False)
    assert not alone.l
    assert alone.k[0].var() == pytest.approx(2 / 16, rel=0.08)


def test_random_weights_keep_the_variance_of_the_signal() -> None:
    layout = replaced(512, 512, 16)
    M = igpc_matrix(layout, random_weights(layout, 1, "site", activated=False))
    # One from K; one times one from L after K.
    assert np.sum(M**2) / 512 == pytest.approx(2, rel=0.1)


def test_every_site_and_every_seed_draws_its_own_weights() -> None:
    layout = replaced(64, 64, 16)

    def first(seed: int, name: str) -> np.ndarray:
        return random_weights(layout, seed, name, activated=True).k[0]

    np.testing.assert_array_equal(first(1, "a"), first(1, "a"))
    for seed, name in ((1, "b"), (2, "a")):
        correlation = np.corrcoef(first(1, "a").ravel(), first(seed, name).ravel())[0, 1]
        assert abs(correlation) < 0.15


def test_k_and_l_of_a_site_are_independent() -> None:
    weights = random_weights(replaced(64, 64, 16), 1, "a", activated=True)
    assert weights.l
    assert abs(np.corrcoef(weights.k[0].ravel(), weights.l[0].ravel())[0, 1]) < 0.15


def test_relative_error_is_that_of_sampled_inputs() -> None:
    W, M = dense(7, 12), dense(7, 12, 1)
    mixing = dense(12, 12, 2)
    x = mixing @ np.random.default_rng(3).standard_normal((12, 200_000))
    expected = np.mean(np.sum(((W - M) @ x) ** 2, axis=0)) / np.mean(np.sum((W @ x) ** 2, axis=0))
    assert relative_error(W, M, mixing @ mixing.T) == pytest.approx(expected, rel=0.02)
    exact = relative_error(W, M, x @ x.T / x.shape[1])
    assert exact == pytest.approx(expected, rel=1e-9)
    assert relative_error(W, M) == pytest.approx(relative_error(W, M, np.eye(12)))


@pytest.mark.parametrize(("C", "F", "ch"), [(150, 100, 8), (64, 64, 16)])
def test_plain_error_needs_no_matrix(C: int, F: int, ch: int) -> None:
    layout = replaced(C, F, ch)
    weights = random_weights(layout, 3, "site", activated=False)
    W = dense(F, C).astype(np.float32)
    expected = relative_error(W.astype(np.float64), igpc_matrix(layout, weights))
    assert plain_error(layout, weights, W) == pytest.approx(expected, rel=1e-9)
    assert plain_error(layout, weights, np.zeros((F, C))) == float("inf")


def test_relative_error_of_a_zero_weight() -> None:
    zero, one = np.zeros((2, 2)), np.ones((2, 2))
    assert relative_error(zero, zero) == 0
    assert relative_error(zero, one) == float("inf")
    assert relative_error(one, one) == 0


def test_stage_matrix_puts_filters_behind_one_another() -> None:
    layout = replaced(18, 13, 4)
    assert len(layout.k.paths) == 2
    kernels = tuple(np.full(path.weight_shape, i + 1.0) for i, path in enumerate(layout.k.paths))
    matrix = stage_matrix(layout.k, kernels)
    first = layout.k.paths[0].filters
    assert set(np.unique(matrix[:first])) == {0, 1}
    assert set(np.unique(matrix[first:])) == {0, 2}
    np.testing.assert_array_equal(matrix != 0, support(layout.k))
