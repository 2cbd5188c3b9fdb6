"""The arithmetic of a comparison, against plain formulas over whole arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnx_igpc.evaluation.differences import (
    ClassifierAccumulator,
    DifferenceAccumulator,
    class_scores,
    label_ranks,
)

FINITE = st.floats(-1e3, 1e3, width=32)


@given(
    arrays=hnp.arrays(
        np.float32, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 4)), elements=FINITE
    ),
    cut=st.integers(0, 9),
)
def test_batches_add_up_to_the_whole(arrays: np.ndarray, cut: int) -> None:
    original, candidate = arrays.astype(np.float64)
    accumulator = DifferenceAccumulator("y")
    for part in (slice(None, cut), slice(cut, None)):
        accumulator.add(original[part], candidate[part])
    result = accumulator.result()
    gap = np.abs(candidate - original)
    assert result.elements == original.size
    assert result.max_abs == gap.max()
    assert result.mean_abs == pytest.approx(gap.mean())
    largest = np.abs(original).max()
    assert result.relative == (pytest.approx(gap.max() / largest) if largest else None)
    norms = np.linalg.norm(original) * np.linalg.norm(candidate)
    if norms > 1e-20:
        cosine = (original * candidate).sum() / norms
        assert result.cosine == pytest.approx(cosine, abs=1e-9)


def test_values_that_are_not_finite_are_counted_and_left_out() -> None:
    nan, inf = np.nan, np.inf
    accumulator = DifferenceAccumulator("y")
    accumulator.add(
        np.array([1.0, nan, 2.0, nan, inf, inf]), np.array([2.0, nan, inf, 1.0, inf, nan])
    )
    result = accumulator.result()
    assert (result.nonfinite_original, result.nonfinite_candidate) == (4, 4)
    assert result.new_nonfinite == 2  # 2 became inf, and inf became NaN
    assert (result.max_abs, result.mean_abs, result.relative) == (1.0, 1.0, 1.0)


def test_zero_original_has_no_relative_error() -> None:
    accumulator = DifferenceAccumulator("y")
    accumulator.add(np.zeros(3), np.ones(3))
    result = accumulator.result()
    assert (result.max_abs, result.relative, result.cosine) == (1.0, None, None)
    assert result.within(1.0, 0.0)
    assert not result.within(0.5, 100.0)


def test_accuracy_of_a_case_computed_by_hand() -> None:
    original = np.array([[6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [0, 9, 1, 1, 1, 1]], float)
    candidate = np.array([[5, 6, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [0, 9, 1, 1, 1, 1]], float)
    labels = np.array([0, 0, 5])
    # original: hit; rank 5, a miss; rank 4 behind class 1 and the equal scores before it, in the top 5
    # candidate: the first sample falls to rank 1
    accumulator = ClassifierAccumulator("scores")
    accumulator.add(original[:1], candidate[:1], labels[:1])
    accumulator.add(original[1:], candidate[1:], labels[1:])
    result = accumulator.result()
    assert result.agreement == pytest.approx(2 / 3)
    assert result.original is not None
    assert result.candidate is not None
    assert result.original.top1 == pytest.approx(1 / 3)
    assert result.original.top5 == pytest.approx(2 / 3)
    assert result.candidate.top1 == 0.0
    assert result.candidate.top5 == pytest.approx(2 / 3)


def test_few_classes_have_no_top5_and_no_labels_no_accuracy() -> None:
    accumulator = ClassifierAccumulator("scores")
    accumulator.add(np.eye(5), np.eye(5), np.arange(5))
    result = accumulator.result()
    assert result.original is not None
    assert (result.original.top1, result.original.top5) == (1.0, None)
    accumulator = ClassifierAccumulator("scores")
    accumulator.add(np.eye(5), np.eye(5), None)
    assert accumulator.result().candidate is None


@given(
    scores=hnp.arrays(np.float32, (4, 7), elements=st.integers(-2, 2).map(float)),
    labels=hnp.arrays(np.int64, 4, elements=st.integers(0, 6)),
)
def test_rank_is_the_place_in_a_stable_sort(scores: np.ndarray, labels: np.ndarray) -> None:
    order = np.argsort(-scores, axis=1, kind="stable")
    want = [int(np.flatnonzero(row == label)[0]) for row, label in zip(order, labels, strict=True)]
    ranks = label_ranks(scores, labels)
    assert ranks.tolist() == want
    assert ((ranks == 0) == (scores.argmax(axis=1) == labels)).all()


def test_nan_score_is_never_a_hit() -> None:
    scores = np.array([[np.nan, 1.0, 0.0]])
    assert label_ranks(scores, np.array([0])).tolist() == [2]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 10), (1, 10)),
        ((4, 10, 1, 1), (4, 10)),
        ((1, 1, 1, 10), (1, 10)),
        ((4, 1), None),
        ((10,), None),
        ((1, 2, 5, 5), None),
    ],
)
def test_class_scores_keep_the_batch(
    shape: tuple[int, ...], expected: tuple[int, int] | None
) -> None:
    scores = class_scores(np.zeros(shape))
    assert (None if scores is None else scores.shape) == expected
