"""Samples held out to choose by and to measure on: always the same ones, and none used twice."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_igpc.calibration.held_samples import HeldSamples, Part
from onnx_igpc.data.sources import as_data
from onnx_igpc.graph.inputs import InputSpec
from onnx_igpc.lowering.quantization.parts import Parts, split


def numbered(count: int, batch: int | str = "n") -> tuple[Parts, Parts]:
    """Samples that hold their own numbers, in parts with and without any to choose by."""
    inputs = [InputSpec("x", np.dtype(np.float32), (batch, 1))]
    values = np.arange(count, dtype=np.float32)[:, np.newaxis]
    data = as_data({"x": values, "labels": np.arange(count)}, inputs, batch_size=8)
    held = HeldSamples(data, inputs)
    return split(held, choosing=True), split(held, choosing=False)


def members(part: Part | None) -> list[int]:
    if part is None:
        return []
    return [int(row) for batch in part for row in batch.feeds["x"][: batch.count, 0]]


@pytest.mark.parametrize(
    ("count", "calibrate", "choose", "measure"),
    [(24, 24, 0, 0), (25, 15, 5, 5), (99, 61, 19, 19), (100, 40, 20, 40), (500, 300, 100, 100)],
)
def test_a_fifth_is_held_out_of_enough_samples(
    count: int, calibrate: int, choose: int, measure: int
) -> None:
    parts, _ = numbered(count)
    found = [members(part) for part in (parts.calibrate, parts.choose, parts.measure)]
    assert [len(each) for each in found] == [calibrate, choose, measure]
    assert sorted(row for each in found for row in each) == list(range(count))
    assert [members(part) for part in (parts.calibrate, parts.choose, parts.measure)] == found


def test_what_is_not_chosen_by_is_calibrated_with() -> None:
    parts, unchosen = numbered(200)
    assert unchosen.choose is None
    assert members(unchosen.measure) == members(parts.measure)
    assert len(members(unchosen.calibrate)) == 160


def test_held_out_samples_lie_all_over_the_data() -> None:
    parts, _ = numbered(200)
    gaps = np.diff(members(parts.measure))
    assert set(gaps.tolist()) == {5}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_filled_up(batch: int) -> None:
    parts, _ = numbered(50, batch)
    assert parts.measure is not None
    batches = list(parts.measure)
    assert {len(each.feeds["x"]) for each in batches} == {batch}
    assert sum(each.count for each in batches) == parts.measure.size == 10
    assert parts.measure.describe().samples == 10
