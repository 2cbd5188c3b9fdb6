"""The figure of damage: its interval, and that of parts of the data put together."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from onnx_igpc import compress
from onnx_igpc.evaluation.damage import joined_damage, measure_damage, wilson_interval
from onnx_igpc.planning.options import Published
from onnx_igpc.report.damage import large_damage_warning
from onnx_igpc.report.sections import DamageReport
from tests.calibration_graphs import ListData, images, residual_model
from tests.helpers import pointwise_model


@pytest.mark.parametrize(
    ("hits", "samples", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in
        # Medicine 17, 1998, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_of_the_literature(hits: int, samples: int, low: float, high: float) -> None:
    assert wilson_interval(hits / samples, samples) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(1 - hits / samples, samples)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_an_interval_holds_its_share_and_narrows_with_samples() -> None:
    for share in (0.0, 0.03, 0.5, 0.97, 1.0):
        intervals = [wilson_interval(share, samples) for samples in (1, 10, 100, 1000)]
        for low, high in intervals:
            assert 0 <= low <= share + 1e-12
            assert share - 1e-12 <= high <= 1
        widths = [high - low for low, high in intervals]
        assert all(wider > narrower for wider, narrower in pairwise(widths))


def test_agreement_and_divergence_of_parts_are_those_of_all_samples_at_once() -> None:
    proto = residual_model(16, blocks=2)
    loudness = np.random.default_rng(0).standard_normal((37, 16, 1, 1)).astype(np.float32)
    x = images(37, 16) * loudness
    small = compress(proto, Published(4)).opened
    whole = measure_damage(proto, small, ListData(proto, {"x": x}))
    cuts = [0, 1, 11, 20, 37]
    parts = [
        measure_damage(proto, small, ListData(proto, {"x": x[a:b]})) for a, b in pairwise(cuts)
    ]
    joined = joined_damage(parts)
    assert whole.kl is not None
    assert 0 < whole.agreement < 1
    assert joined.samples == whole.samples == 37
    assert joined.agreement == pytest.approx(whole.agreement, abs=1e-12)
    assert joined.kl == pytest.approx(whole.kl, rel=1e-5)
    assert joined.confidence == pytest.approx(whole.confidence, rel=1e-5)
    assert joined.interval == pytest.approx(whole.interval, abs=1e-12)
    assert joined.relative_error is None


def test_a_relative_error_of_parts_is_the_root_of_the_mean_square() -> None:
    parts = [
        DamageReport(relative_error=0.1, output="a", samples=30),
        DamageReport(relative_error=0.4, output="b", samples=10),
    ]
    joined = joined_damage(parts)
    assert joined.relative_error == pytest.approx(math.sqrt((30 * 0.01 + 10 * 0.16) / 40))
    assert (joined.output, joined.samples) == ("b", 40)
    assert joined.agreement is joined.kl is joined.interval is None


def test_a_relative_error_of_parts_of_equal_power_is_that_of_all_samples() -> None:
    proto = pointwise_model(32, 32, activation=None)
    small = compress(proto, Published(8)).opened
    x = np.random.default_rng(0).standard_normal((8, 32, 5, 5)).astype(np.float32)
    # The parts are the same samples with other signs: the bias alone tells them apart.
    whole = measure_damage(proto, small, ListData(proto, {"x": np.concatenate([x, -x])}))
    parts = [measure_damage(proto, small, ListData(proto, {"x": each})) for each in (x, -x)]
    joined = joined_damage(parts)
    assert whole.relative_error is not None
    assert whole.relative_error > 0.01
    assert joined.relative_error == pytest.approx(whole.relative_error, rel=0.05)
    assert joined.output == whole.output == "y"


def test_what_a_part_does_not_know_the_whole_does_not_know() -> None:
    known = DamageReport(agreement=0.5, interval=(0.2, 0.8), kl=0.1, samples=10)
    joined = joined_damage([known, DamageReport(agreement=1.0, samples=10, not_finite=3)])
    assert joined.agreement == 0.75
    assert joined.kl is joined.confidence is joined.interval is None
    assert joined.not_finite == 3


def test_notes_of_parts_are_said_once() -> None:
    parts = [DamageReport(samples=1, left_out=[text]) for text in ("a", "b", "a")]
    assert joined_damage(parts).left_out == ["a", "b"]


def test_an_output_that_is_zero_on_a_part_is_no_figure_and_says_so() -> None:
    known = DamageReport(samples=5, relative_error=0.9, output="map")
    zero = DamageReport(samples=5, relative_error=None, output="map")
    joined = joined_damage([known, zero])
    assert joined.relative_error is None
    assert "output map of the original is zero" in (joined.unknown or "")
    joined.fitted = DamageReport(samples=10, relative_error=0.96, output="map")
    warning = large_damage_warning(joined)
    assert warning is not None
    assert "0.96 of output map on 10 samples that it was fitted to" in warning
    assert joined_damage([known, known]).unknown is None
