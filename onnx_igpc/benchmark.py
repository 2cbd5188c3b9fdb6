"""Models raced against each other in one process, on the execution provider that was asked for."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnx_igpc.contenders import Contender, ModelFacts, batched, natural_batch
from onnx_igpc.errors import UsageError
from onnx_igpc.feeds import Shapes, random_inputs, session_inputs
from onnx_igpc.inputs import open_data
from onnx_igpc.preprocessing import Preprocessing
from onnx_igpc.racing import Interval, race, speedup
from onnx_igpc.runtime import (
    Session,
    import_onnxruntime,
    make_session,
    provider_label,
    provider_name,
    run_session,
)

_DEVICE = {"cuda": "cuda", "tensorrt": "cuda"}

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Timing:
    """One model in one race. Times are milliseconds a run; samples_per_second from the median.

    speedup: over the first model, None for that one.
    """

    path: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    samples_per_second: float
    speedup: Interval | None


@dataclass(frozen=True)
class Race:
    """All models at one batch size and number of threads (None: onnxruntime's choice)."""

    batch: int
    threads: int | None
    timings: tuple[Timing, ...]


@dataclass(frozen=True)
class BenchmarkReport:
    """Everything that was measured; :meth:`to_dict` is its JSON form."""

    provider: str
    onnxruntime: str
    machine: str
    rounds: int
    inputs: str
    models: tuple[ModelFacts, ...]
    races: tuple[Race, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def benchmark(
    models: Sequence[str | os.PathLike[str]],
    *,
    provider: str = "cpu",
    batches: Sequence[int] = (),
    threads: Sequence[int | None] = (None,),
    shapes: Shapes | None = None,
    data: str | os.PathLike[str] | None = None,
    preprocessing: Preprocessing | None = None,
    rounds: int = 30,
    warmup: int = 3,
    seed: int = 0,
    footprint: bool = True,
    per_operator: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> BenchmarkReport:
    """Race models; the first is the baseline of every speed-up.

    batches: sizes to race at; none means the one that the models fix, or 1. shapes: sizes of dynamic
    dimensions, by input; data: real inputs, as :func:`open_data` takes them; otherwise inputs are
    seeded random numbers. rounds: turns that each model gets. footprint: measure load time and peak
    memory in a process a model. per_operator: add each node's time. progress: called with (rounds done,
    rounds in all or 0 while none are counted, what is being done), and never within a timed turn.

    Raises CheckFailedError where the provider asked for ran none of a model's nodes or is not there,
    UsageError for options that do not fit the models, ModelError for models that cannot run.
    """
    if not models:
        raise UsageError("benchmark needs at least one model")
    if rounds < 2:
        raise UsageError(f"rounds must be at least 2 for an interval, not {rounds}")
    say = progress or (lambda done, total, what: None)
    contenders = [Contender(os.fspath(path)) for path in models]
    facts, races = [], []
    for contender in contenders:
        say(0, 0, f"profiling {Path(contender.path).name}")
        facts.append(
            contender.facts(provider, threads[0], shapes, batches, footprint, per_operator)
        )
    for count in threads:
        sessions = [make_session(c.model, provider, threads=count) for c in contenders]
        for batch in batches or [natural_batch(sessions, shapes)]:
            what = f"at batch {batch}"
            feeds = [
                _feeds(session, batch, seed, shapes, data, preprocessing) for session in sessions
            ]
            runs = [
                _runner(session, values, provider)
                for session, values in zip(sessions, feeds, strict=True)
            ]
            say(0, rounds, what)
            tell = partial(_tell, say, what)
            seconds = race(runs, rounds=rounds, warmup=warmup, progress=tell)
            races.append(Race(batch, count, _timings([c.path for c in contenders], seconds, batch)))
    return BenchmarkReport(
        provider=provider_label(provider_name(provider)),
        onnxruntime=import_onnxruntime().__version__,
        machine=f"{platform.machine()} {platform.system()}, {os.cpu_count()} processors",
        rounds=rounds,
        inputs="random" if data is None else os.fspath(data),
        models=tuple(facts),
        races=tuple(races),
    )


def _tell(say: Callable[[int, int, str], None], what: str, done: int, total: int) -> None:
    say(done, total, what)


def _feeds(
    session: Session,
    batch: int,
    seed: int,
    shapes: Shapes | None,
    data: str | os.PathLike[str] | None,
    preprocessing: Preprocessing | None,
) -> Feeds:
    inputs = session_inputs(session)
    fixed = inputs[0].fixed_batch if inputs else None
    if fixed not in (None, batch):
        raise UsageError(f"batch {batch} was asked for, but a model takes only batches of {fixed}")
    if data is None:
        return random_inputs(inputs, batch=batch, seed=seed, shapes=batched(shapes, batch))
    source = open_data(data, inputs, preprocessing, samples=batch, batch_size=batch)
    feeds = next(iter(source)).feeds
    # Fewer samples than the batch: repeat them, since values hardly matter for time.
    return {name: np.resize(values, (batch, *values.shape[1:])) for name, values in feeds.items()}


def _runner(session: Session, feeds: Feeds, provider: str) -> Callable[[], object]:
    """One run of the session; on a GPU inputs and outputs stay there, so that copies do not count."""
    device = _DEVICE.get(provider_label(provider_name(provider)))
    run_session(session, feeds)  # fails in one line, before anything is timed
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


def _timings(paths: Sequence[str], seconds: np.ndarray, batch: int) -> tuple[Timing, ...]:
    timings = []
    for i, path in enumerate(paths):
        low, median, high = np.percentile(seconds[:, i], [25, 50, 75])
        timings.append(
            Timing(
                path=path,
                median_ms=1000 * float(median),
                quartiles_ms=(1000 * float(low), 1000 * float(high)),
                samples_per_second=batch / float(median),
                speedup=speedup(seconds[:, 0], seconds[:, i]) if i else None,
            )
        )
    return tuple(timings)
