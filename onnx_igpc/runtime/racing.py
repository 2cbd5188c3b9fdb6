"""Timing several things against each other in one process, and what the times say.

They take turns in every round, so that whatever slows the machine down for a while slows all of them
down, and a ratio is taken between times of the same rounds. The order moves on by one from round to
round (A B, B A), because the place in a round matters too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_igpc.runtime.session import (
    Session,
    import_onnxruntime,
    provider_label,
    provider_name,
    run_session,
)

MIN_TURN_SECONDS = 0.01
"""A turn runs the same thing so often that it takes this long: below, caches decide and timers."""
MAX_RUNS_A_TURN = 200
_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def race(
    runs: Sequence[Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Seconds for one call of each run in each round: float64[rounds, runs].

    Each is first called ``warmup`` times, from which the number of calls a turn is taken; a further call
    that begins each turn is not timed. progress is called with (rounds done, rounds in all) between
    rounds.
    """
    calls = [_calls_a_turn(run, warmup, clock) for run in runs]
    seconds = np.empty((rounds, len(runs)))
    for turn, row in enumerate(seconds):
        if progress is not None:
            progress(turn, rounds)
        for place in range(len(runs)):
            i = (turn + place) % len(runs)
            runs[i]()  # what the others left in the caches is no business of this one
            start = clock()
            for _ in range(calls[i]):
                runs[i]()
            row[i] = (clock() - start) / calls[i]
    return seconds


def speedup(baseline: np.ndarray, seconds: np.ndarray, seed: int = 0) -> Interval:
    """How many times faster than the baseline: the ratio of the medians over the same rounds.

    baseline, seconds: float[rounds]. The interval comes from a seeded bootstrap that draws whole
    rounds, so that what slowed both down in a round cancels out.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(seconds), (_RESAMPLES, len(seconds)))
    ratios = np.median(baseline[drawn], axis=1) / np.median(seconds[drawn], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    value = float(np.median(baseline) / np.median(seconds))
    return Interval(value, float(low), float(high))


def _calls_a_turn(run: Callable[[], object], warmup: int, clock: Callable[[], float]) -> int:
    run()  # the first call allocates and, on a GPU, chooses kernels
    start = clock()
    for _ in range(max(1, warmup)):
        run()
    once = (clock() - start) / max(1, warmup)
    return int(min(MAX_RUNS_A_TURN, max(1, np.ceil(MIN_TURN_SECONDS / max(once, 1e-9)))))


# Where a provider's tensors live, as onnxruntime calls the device; not listed: in main memory.
_DEVICE = {"cuda": "cuda", "tensorrt": "cuda"}


def timed_run(
    session: Session, feeds: Mapping[str, np.ndarray], provider: str
) -> Callable[[], object]:
    """A function that runs the session once on ``feeds`` (arrays by input name).

    On a GPU inputs are copied there now and outputs are bound to it, so that copies between host and
    device are not in the time, and a run ends when the outputs are there. The session is run once
    here, before anything is timed. Raises ModelError where it cannot run.
    """
    device = _DEVICE.get(provider_label(provider_name(provider)))
    run_session(session, feeds)
    if device is None:
        return lambda: session.run(None, feeds)
    binding = session.io_binding()
    make = import_onnxruntime().OrtValue.ortvalue_from_numpy
    for name, values in feeds.items():
        binding.bind_ortvalue_input(name, make(values, device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run
