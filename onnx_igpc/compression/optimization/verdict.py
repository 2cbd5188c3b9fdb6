"""The verdict in five lines: what was chosen, how fast, how true, how large, and what would help next."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_igpc.compression.optimization.exploration import INT8_INSIDE, loss
from onnx_igpc.compression.optimization.images import FROM_WHERE_STATED_APART
from onnx_igpc.compression.optimization.promises import AGREEMENTS, best_agreement, images_for
from onnx_igpc.compression.optimization.task import Task
from onnx_igpc.compression.optimization.training import torch_is_there
from onnx_igpc.compression.optimization.workbench import is_late
from onnx_igpc.errors import with_flags
from onnx_igpc.report.damage import figure_text
from onnx_igpc.report.numbers import exact
from onnx_igpc.report.optimization import (
    ORIGINAL,
    PointReport,
    StatedReport,
    StepReport,
)

# Faster by less is nothing to look into.
_WORTH_TELLING = 1.05


def verdict(
    task: Task,
    points: Sequence[PointReport],
    steps: Sequence[StepReport],
    chosen: PointReport,
    said: Sequence[StatedReport],
) -> list[str]:
    """Five lines, each of which begins with what it is about."""
    return [
        f"chosen: {_chosen(task, points, chosen)}",
        f"latency: {_latency(task, points[0], chosen)}",
        _answers(said, chosen),
        f"size: {_size(points[0], chosen)}",
        with_flags(f"next: {_next(task, points, steps, chosen)}"),
    ]


def _chosen(task: Task, points: Sequence[PointReport], chosen: PointReport) -> str:
    promise = task.promise
    if chosen.name == ORIGINAL:
        tried = len(points) - 1
        return (
            f"the original as it is: {_none_of(tried)} is faster beyond noise and holds {promise}"
            if tried
            else "the original as it is: nothing else could be made"
        )
    if not chosen.cut and chosen.precision == "int8":
        alone = "int8 alone is the better answer for this model on this machine"
        ends = " with its first and last layers in float" if chosen.name == INT8_INSIDE else ""
        trained = ", the model trained for that," if chosen.trained else ","
        return f"int8{ends}{trained} which holds {promise}: {alone}"
    if not chosen.cut:
        return (
            f"{chosen.name}: it does what the original does, and nothing that is faster beyond noise holds "
            f"{promise}"
        )
    return f"the {chosen.name}: of {len(points)} models the fastest that holds {promise}"


def _latency(task: Task, original: PointReport, chosen: PointReport) -> str:
    before, speed = original.milliseconds or 0.0, chosen.speedup
    if speed is None:
        return f"{before:.3g} ms, {task.setting.label}"
    return (
        f"{before:.3g} ms -> {chosen.milliseconds or 0.0:.3g} ms, {speed.value:.2f} x as fast "
        f"(95 %: {speed.low:.2f} to {speed.high:.2f}), {task.setting.label}"
    )


def _answers(said: Sequence[StatedReport], chosen: PointReport) -> str:
    """A figure of data that chose nothing, where there is one; the accuracy, where there are labels."""
    best = min(said, key=lambda each: each.chosen_among)
    if chosen.name == ORIGINAL:
        answers = "answers: those of the original, which it is"
        if best.accuracy is None:
            return answers
        return f"{answers}, accuracy {best.accuracy[0]:.1%} on {exact(best.damage.samples)} {best.data}"
    on = f"on {exact(best.damage.samples)} {best.data}"
    on += (
        ", which chose nothing"
        if best.chosen_among <= 1
        else f", by which it was chosen among {best.chosen_among}: that flatters"
    )
    figure = figure_text(best.damage)
    if best.accuracy is not None and best.damage.accuracy_change is not None:
        before, after = best.accuracy
        _, low, high = best.damage.accuracy_change
        points = f"{100 * low:+.1f} to {100 * high:+.1f} points"
        return f"accuracy: {before:.1%} -> {after:.1%} (95 %: {points}), {figure}, {on}"
    kind, _, rest = figure.partition(" ")
    return f"{kind}: {rest}, {on}"


def _size(original: PointReport, chosen: PointReport) -> str:
    before, after = original.file_bytes, chosen.file_bytes
    if before == after:
        return bytes_text(before)
    return f"{bytes_text(before)} -> {bytes_text(after)} ({after / before:.0%})"


def bytes_text(count: int) -> str:
    """A size in three digits."""
    return f"{count / 1e6:.3g} MB" if count >= 1e5 else f"{count / 1e3:.3g} kB"


def _next(
    task: Task, points: Sequence[PointReport], steps: Sequence[StepReport], chosen: PointReport
) -> str:
    """What would help most: time that was lacking, torch, more images, or a looser promise."""
    advice = []
    if (unclear := _unclear(points, chosen)) is not None:
        advice.append(f"a quieter machine: {unclear}")
    late = [repr(step.name) for step in steps if is_late(step)]
    if late:
        advice.append(f"more `seconds`: there was none for {', '.join(late)}")
    if not torch_is_there() and any(step.kind == "finetune" for step in steps):
        advice.append("pip install 'onnx-igpc[torch]': cuts were not trained back")
    images = task.images.counts
    if task.promise.kind == "agreement" and images.total < 1000:
        better = best_agreement(images.choose)
        above = [p for p in AGREEMENTS if better is None or p > better.bound]
        wanted = max(images_for(above[-1]) if above else 0, FROM_WHERE_STATED_APART, 1000)
        shown = f"could show agreement={100 * above[-1]:g}%, " if above else ""
        advice.append(
            f"{images.total} images limit this: {wanted:,} {shown}train a cut better, and state the figure "
            "on some that chose nothing"
        )
    if (missed := _missed(points, chosen)) is not None:
        advice.append(f"a looser `keep`: {missed}")
    return "; ".join(advice) or "nothing that this tool has: a smaller network, or another machine"


def _none_of(others: int) -> str:
    return f"none of {others} others" if others > 1 else "nothing else that was tried"


def _unclear(points: Sequence[PointReport], chosen: PointReport) -> str | None:
    """The model that holds and would have been chosen, had the race been able to tell that it is faster."""
    speed = chosen.speedup.value if chosen.speedup is not None else 1.0
    holding = [
        (p.speedup.value, p.name, p.speedup)
        for p in points[1:]
        if p.holds and p.speedup is not None and p.speedup.low <= 1
        if p.speedup.value > _WORTH_TELLING * speed
    ]
    if not holding:
        return None
    value, name, interval = max(holding, key=lambda each: each[0])
    return f"{name} may be faster ({value:.2f} x, {interval.low:.2f} to {interval.high:.2f}), the race cannot tell"


def _missed(points: Sequence[PointReport], chosen: PointReport) -> str | None:
    """The model that would be had next for a looser promise: the one that loses least of the faster ones."""
    speed = chosen.speedup.value if chosen.speedup is not None else 1.0
    faster = [
        p
        for p in points
        if not p.holds and p.speedup is not None and p.speedup.low > 1 and p.speedup.value > speed
    ]
    if not faster:
        return None
    best = min(faster, key=loss)
    assert best.speedup is not None
    return f"{best.name} is {best.speedup.value:.2f} x as fast, with {figure_text(best.damage)}"
