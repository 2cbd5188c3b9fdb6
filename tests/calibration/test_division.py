"""How calibration data is shared out: nothing twice, nothing lost, and as much held out as was said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_igpc.calibration.division import LEAST_TO_DIVIDE, divide
from onnx_igpc.calibration.held_samples import HeldSamples
from onnx_igpc.calibration.options import Calibration
from onnx_igpc.errors import UsageError
from onnx_igpc.graph.inputs import model_inputs
from tests.calibration_graphs import ListData
from tests.helpers import GraphBuilder


def held_samples(count: int) -> HeldSamples:
    builder = GraphBuilder()
    builder.input("x", ["batch", 1])
    builder.output(builder.add("Relu", ["x"], "y"))
    model = builder.model()
    data = ListData(model, {"x": np.arange(count, dtype=np.float32)[:, None]}, 64)
    return HeldSamples(data, model_inputs(model))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 300),
    share=st.none() | st.floats(0, 1, exclude_max=True, allow_subnormal=False),
)
def test_every_sample_is_in_one_part(count: int, share: float | None) -> None:
    with held_samples(count) as held:
        division = divide(held, share)
        chosen_by = division.chosen_by.numbers
        held_out = division.held_out.numbers if division.held_out else []
    assert chosen_by, "something is left to fit to"
    assert sorted([*chosen_by, *held_out]) == list(range(count))
    assert sorted(division.everything.numbers) == list(range(count))
    assert chosen_by == sorted(chosen_by)
    if share:
        assert abs(len(held_out) - share * count) <= 1
    if division.held_out is not None:
        assert division.held_out.size == len(held_out) > 0


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [
        (LEAST_TO_DIVIDE - 1, None, 0),
        (LEAST_TO_DIVIDE, None, 10),  # half: fewer than 100 either way
        (150, None, 75),
        (200, None, 100),
        (400, None, 100),
        (1000, None, 200),  # a fifth
        (1000, 0.0, 0),
        (1000, 0.5, 500),
        (10, 0.5, 5),  # what is asked for is done
        (10, 0.01, 1),
        (10, 0.999, 9),
        (1, 0.5, 0),
    ],
)
def test_how_much_is_held_out(count: int, share: float | None, expected: int) -> None:
    with held_samples(count) as held:
        division = divide(held, share)
    assert (division.held_out.size if division.held_out else 0) == expected
    assert division.chosen_by.size == count - expected


def test_what_is_held_out_is_drawn_from_all_over_and_the_same_each_time() -> None:
    picks = []
    for _ in range(2):
        with held_samples(400) as held:
            division = divide(held)
            assert division.held_out is not None
            picks.append(division.held_out.numbers)
    assert picks[0] == picks[1]
    # A quarter of them: of each hundred neighbours some are held out, and some not.
    spread = np.bincount(np.array(picks[0]) // 100, minlength=4)
    assert spread.min() >= 10
    assert spread.max() <= 45


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="`holdout` must lie between 0 and 1"):
        Calibration("data", holdout=share)
