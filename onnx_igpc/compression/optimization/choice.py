"""The race of all that was tried, and the choice: the fastest that holds the promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnx_igpc.compression.optimization.attempts import Attempts
from onnx_igpc.compression.optimization.exploration import LEAST_ROUNDS, loss, turn_seconds
from onnx_igpc.compression.optimization.workbench import Workbench
from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.evaluation.benchmark import benchmark
from onnx_igpc.evaluation.damage import damage_of
from onnx_igpc.report.benchmark import BenchmarkReport
from onnx_igpc.report.optimization import ORIGINAL, PointReport, StatedReport
from onnx_igpc.runtime.setting import Settings

RACE = "race"
STATE, VAL = "further images", "labelled data"
# Within so much of the fastest, the one that does less damage is taken.
_AS_FAST = 1.02
_RACE_SECONDS = 60.0
_MOST_ROUNDS = 60


def race(attempts: Attempts, points: Sequence[PointReport]) -> BenchmarkReport:
    """Race all models in one process, the original first, and put the times into the points.

    Raises:
        CheckFailedError: they cannot be raced.
    """
    task, bench = attempts.task, attempts.bench
    setting = task.setting
    settings = Settings(setting.provider, setting.batch, (setting.threads,), setting.shapes)

    rounds = _rounds(bench, points)

    def make(progress: Progress) -> str:
        files = [bench.folder / point.file for point in points]
        data = task.images.dataset(task.images.choose)
        found = benchmark(
            files,
            settings=settings,
            data=data,
            rounds=rounds,
            footprint=False,
            limit=False,
            progress=progress,
        )
        names = {str(file): point.name for file, point in zip(files, points, strict=True)}
        bench.journal.write(RACE, _renamed(found, names))
        return f"{len(points)} models in one process"

    line = task.command(
        "benchmark",
        *(task.place(point.name) for point in points),
        **task.data(task.images.dataset(task.images.choose)),
        **task.where,
        **task.batch,
        rounds=rounds,
        no_limit=True,
    )
    bench.step(RACE, "benchmark", lambda: line, make, needed=True)
    found = bench.journal.read(RACE, BenchmarkReport)
    if found is None:
        raise CheckFailedError(f"the models could not be raced: {bench.steps[-1].note}")
    timings = {timing.path: timing for timing in found.races[0].timings}
    for point in points:
        point.milliseconds = timings[point.name].median_ms
        point.speedup = timings[point.name].speedup
    return found


def _rounds(bench: Workbench, points: Sequence[PointReport]) -> int:
    """As many rounds as fit into a minute and half of what is left."""
    turn = turn_seconds(bench, points[0])
    seconds = min(_RACE_SECONDS, (bench.clock.limit - bench.clock.spent) / 2)
    return round(min(max(seconds / (turn * len(points)), LEAST_ROUNDS), _MOST_ROUNDS))


def _renamed(found: BenchmarkReport, names: dict[str, str]) -> BenchmarkReport:
    """A race with points in the place of files."""
    races = (
        replace(race, timings=tuple(replace(t, path=names[t.path]) for t in race.timings))
        for race in found.races
    )
    models = (replace(each, path=names[each.path]) for each in found.models)
    return replace(found, models=tuple(models), races=tuple(races))


def choose(attempts: Attempts, points: Sequence[PointReport]) -> tuple[PointReport, int]:
    """The fastest that holds the promise, also on images that chose nothing, where some were kept for that.

    A model counts as faster than the original if its speed-up does beyond the noise of the race; of those
    that are as fast as the fastest within 2 % the one that loses least is taken.

    Returns:
        The point, and on how many the further images were asked.
    """
    task = attempts.task
    allowed = [point for point in points[1:] if task.options.precision in ("best", point.precision)]
    left = [
        point
        for point in allowed
        if point.holds and point.speedup is not None and point.speedup.low > 1
    ]
    asked = 0
    while left:
        fastest = min(point.milliseconds or 0.0 for point in left)
        near = [point for point in left if (point.milliseconds or 0.0) <= _AS_FAST * fastest]
        best = min(near, key=lambda point: (loss(point), point.milliseconds))
        if task.images.state is None or task.promise.labelled:
            return best, asked
        asked += 1
        state = task.images.dataset(task.images.state)
        if attempts.measure(best.name, state, STATE):
            damage = damage_of(attempts.found(best.name, STATE))
            if task.promise.holds(damage):
                return best, asked
        left.remove(best)
    return points[0], asked


def stated(attempts: Attempts, chosen: PointReport, among: int, asked: int) -> list[StatedReport]:
    """What is stated of the chosen model, on data that chose nothing where there is some, that first.

    among: the models that it was chosen from. asked: those of them that the further images were asked on.
    """
    task = attempts.task
    made = []
    if task.val is not None and attempts.measure(chosen.name, task.val, VAL):
        found = attempts.found(chosen.name, VAL)
        ours = found.classifier
        accuracy = None
        if ours is not None and ours.original is not None and ours.candidate is not None:
            accuracy = ours.original.top1, ours.candidate.top1
        counted = among if task.promise.labelled else 1
        made.append(
            StatedReport(
                data=f"labelled images of {Path(found.data.source).name}",
                damage=damage_of(found),
                chosen_among=counted,
                accuracy=accuracy,
            )
        )
    if asked and chosen.name != ORIGINAL:
        damage = damage_of(attempts.found(chosen.name, STATE))
        made.append(StatedReport(data="further held-out images", damage=damage, chosen_among=asked))
    if not task.promise.labelled:
        made.append(StatedReport(data="held-out images", damage=chosen.damage, chosen_among=among))
    return made
