"""K and L fitted to a dense weight: optimal where there is a closed form, never worse elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_igpc.fitting.fit import fit_layout, random_weights, stage_groups
from onnx_igpc.fitting.weights import (
    IgpcWeights,
    igpc_matrix,
    relative_error,
)
from onnx_igpc.layout.schemes import plan_layout
from tests.fitting.layers import (
    SCHEMES,
    SMALL,
    apply_layout,
    dense,
    moments_of,
    replaced,
    support,
    weighted_error,
)

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
