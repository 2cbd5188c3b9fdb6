"""Models raced against each other in one process, on the execution provider that was asked for."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from onnx_igpc.data.batches import Data
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.progress import Progress
from onnx_igpc.data.random_inputs import random_inputs
from onnx_igpc.data.sources import Arrays, as_data
from onnx_igpc.errors import UsageError
from onnx_igpc.evaluation.contenders import Contender, batched, natural_batch
from onnx_igpc.evaluation.speed_limit import site_work, speed_limit
from onnx_igpc.graph.inputs import Shapes
from onnx_igpc.graph.model import PathLike
from onnx_igpc.report.benchmark import BenchmarkReport, ModelFacts, Race, SpeedLimit, Timing
from onnx_igpc.runtime.bandwidth import Bandwidth, measure_bandwidth
from onnx_igpc.runtime.profile import ExecutionProfile
from onnx_igpc.runtime.racing import race, speedup, timed_run
from onnx_igpc.runtime.session import (
    Session,
    import_onnxruntime,
    make_session,
    provider_label,
    provider_name,
    session_inputs,
)
from onnx_igpc.runtime.setting import Setting, Settings

Feeds = dict[str, np.ndarray]

_LIMIT_RUNS = 20


def benchmark(
    models: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    settings: Settings | None = None,
    data: PathLike | Arrays | Dataset | None = None,
    rounds: int = 30,
    warmup: int = 3,
    footprint: bool = True,
    per_operator: bool = False,
    limit: bool = True,
    progress: Progress | None = None,
) -> BenchmarkReport:
    """Race models; the first is the baseline of every speed-up.

    Args:
        models: paths, or one.
        settings: where they run, at which batch sizes and numbers of threads, and the sizes of dynamic
            dimensions; None: on the CPU, at the batch size that the models fix, or 1.
        data: real inputs: a path, arrays, or a :class:`~onnx_igpc.data.dataset.Dataset`; otherwise inputs
            are seeded random numbers.
        rounds: turns that each model gets.
        warmup: turns before those, which do not count.
        footprint: measure load time and peak memory in a process a model.
        per_operator: add each node's time.
        limit: against an unrewritten first model, measure how fast each rewritten one could at best be.
        progress: called with (rounds done, rounds in all or 0 while none are counted, what is being
            done), and never within a timed turn.

    Raises:
        CheckFailedError: the provider asked for ran none of a model's nodes, or is not there.
        UsageError: options that do not fit the models.
        ModelError: models that cannot run.
        DataError: data that cannot be used.
    """
    models = [models] if isinstance(models, (str, os.PathLike)) else models
    settings = settings or Settings()
    provider, shapes, source = settings.provider, settings.shapes, Dataset.of(data)
    if not models:
        raise UsageError("benchmark needs at least one model")
    if rounds < 2:
        raise UsageError(f"rounds must be at least 2 for an interval, not {rounds}")
    say = progress or (lambda done, total, what: None)
    contenders = [Contender(os.fspath(path)) for path in models]
    facts: list[ModelFacts] = []
    races: list[Race] = []
    for count in settings.thread_counts:
        sessions = [make_session(c.model, provider, threads=count) for c in contenders]
        sizes = settings.batch_sizes or [natural_batch(sessions, shapes)]
        if not facts:
            for contender, session in zip(contenders, sessions, strict=True):
                say(0, 0, f"profiling {Path(contender.path).name}")
                facts.append(
                    contender.facts(
                        session,
                        Setting(provider, count, sizes[0], shapes),
                        footprint=footprint,
                        per_operator=per_operator,
                    )
                )
        limits = _Limits(contenders, provider, count) if limit else None
        for batch in sizes:
            what = f"at batch {batch}"
            feeds = [_feeds(session, batch, shapes, source) for session in sessions]
            runs = [
                timed_run(session, values, provider)
                for session, values in zip(sessions, feeds, strict=True)
            ]
            say(0, rounds, what)
            tell = partial(_tell, say, what)
            seconds = race(runs, rounds=rounds, warmup=warmup, progress=tell)
            timings = _timings([c.path for c in contenders], seconds, batch)
            if limits is not None:
                timings = limits.added(timings, feeds[0])
            races.append(Race(batch, count, timings, limits.bandwidth if limits else None))
    return BenchmarkReport(
        provider=provider_label(provider_name(provider)),
        onnxruntime=import_onnxruntime().__version__,
        machine=f"{platform.machine()} {platform.system()}, {os.cpu_count()} processors",
        rounds=rounds,
        inputs=_source(source.source),
        models=tuple(facts),
        races=tuple(races),
        failures=tuple(f"{each.path}: {each.misplaced}" for each in facts if each.misplaced),
    )


def _source(data: PathLike | Arrays | Data | None) -> str:
    if data is None:
        return "random"
    return os.fspath(data) if isinstance(data, (str, os.PathLike)) else "arrays in memory"


class _Limits:
    """The limits of the rewritten models in the races with one number of threads."""

    def __init__(self, contenders: Sequence[Contender], provider: str, threads: int | None) -> None:
        self._first, *self._others = contenders
        self._provider = provider
        self._threads = threads
        self.bandwidth: Bandwidth | None = None

    def added(self, timings: Sequence[Timing], feeds: Feeds) -> tuple[Timing, ...]:
        """The timings with the limits; profiles the first model on ``feeds`` where one is needed."""
        profile: ExecutionProfile | None = None
        done = [timings[0]]
        for contender, timing in zip(self._others, timings[1:], strict=True):
            limit: SpeedLimit | str | None = self._no_limit(contender)
            if contender.digest is not None and limit is None:
                if self.bandwidth is None:
                    self.bandwidth = measure_bandwidth(self._provider, self._threads)
                if profile is None:
                    profile = self._first.profile(self._provider, self._threads, feeds, _LIMIT_RUNS)
                sites = site_work(contender.digest)
                times = timings[0].median_ms, timing.median_ms
                limit = speed_limit(profile, _LIMIT_RUNS, sites, self.bandwidth, *times)
            if isinstance(limit, SpeedLimit):
                done.append(replace(timing, limit=limit))
            else:
                done.append(replace(timing, no_limit=limit))
        return tuple(done)

    def _no_limit(self, contender: Contender) -> str | None:
        """Why a model that this tool wrote has no limit here."""
        if contender.digest is None:
            return None
        if not contender.digest.rewritten:
            return "none of its sites was rewritten"
        if self._first.digest is not None and self._first.digest.rewritten:
            return "the first model is rewritten itself"
        if contender.quantized != self._first.quantized:
            return "one of the two models is quantized: race it against its like"
        return None


def _tell(say: Progress, what: str, done: int, total: int) -> None:
    say(done, total, what)


def _feeds(session: Session, batch: int, shapes: Shapes, data: Dataset) -> Feeds:
    inputs = session_inputs(session)
    fixed = inputs[0].fixed_batch if inputs else None
    if fixed not in (None, batch):
        raise UsageError(f"batch {batch} was asked for, but a model takes only batches of {fixed}")
    if data.source is None:
        return random_inputs(inputs, batch=batch, shapes=batched(shapes, batch))
    samples = min(data.samples or batch, batch)
    source = as_data(data.source, inputs, data.preprocessing, samples=samples, batch_size=batch)
    feeds = next(iter(source)).feeds
    # Fewer samples than the batch: repeat them, since values hardly matter for time.
    return {name: np.resize(values, (batch, *values.shape[1:])) for name, values in feeds.items()}


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
                rounds_ms=tuple(round(1000 * float(each), 6) for each in seconds[:, i]),
            )
        )
    return tuple(timings)
