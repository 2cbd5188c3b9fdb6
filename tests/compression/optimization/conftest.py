"""Races with made-up times, so that what is chosen does not depend on the machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from onnx_igpc import Lowering, Optimization
from onnx_igpc.compression.optimization import choice
from onnx_igpc.report.benchmark import BenchmarkReport, Race, Timing
from onnx_igpc.runtime.racing import Interval


def raced(models: Sequence[Path], **_: Any) -> BenchmarkReport:
    """A race in which the smaller file is the faster one: times that do not depend on the machine."""
    sizes = [Path(model).stat().st_size for model in models]
    timings = []
    for model, size in zip(models, sizes, strict=True):
        speed = sizes[0] / size
        interval = None if model is models[0] else Interval(speed, 0.99 * speed, 1.01 * speed)
        timings.append(Timing(str(model), size / 1e4, (size / 1e4, size / 1e4), 1.0, interval))
    race = Race(1, 1, tuple(timings))
    return BenchmarkReport("cpu", "x", "a machine", 2, "arrays", (), (race,))


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """No races: their times, and with them the choice, would differ from run to run."""
    literal = property(lambda self: Lowering("literal", self.setting, cache=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "benchmark", raced)
        patch.setattr(Optimization, "lowering", literal)
        yield
