"""The top of the page: what the rewrite cost and what it brought, each before and after."""

from __future__ import annotations

from pathlib import PurePath

from onnx_igpc.report.benchmark import Race, Timing
from onnx_igpc.report.html.answers import Entry, answers
from onnx_igpc.report.html.elements import Element, element
from onnx_igpc.report.html.latency_charts import race_title, threads_text
from onnx_igpc.report.html.texts import GAP, command, milliseconds, percent, short_names
from onnx_igpc.report.numbers import count_text
from onnx_igpc.report.tree import Change, RewriteReport


def ledger(report: RewriteReport, title: str) -> Element:
    """The table of all entries: what was lost before what was saved."""
    entries = [*answers(report, title), *_counts(report), _latency(report, title)]
    return element(
        "table",
        {"class": "ledger", "role": "table"},
        element("caption", {"class": "unseen"}, "What the rewrite brought, before and after"),
        element(
            "thead",
            {"role": "rowgroup"},
            element(
                "tr",
                {"role": "row"},
                element(
                    "th",
                    {"scope": "col", "role": "columnheader"},
                    element("span", {"class": "unseen"}, "Quantity"),
                ),
                [
                    element("th", {"scope": "col", "role": "columnheader", "class": "num"}, each)
                    for each in ("before", "after", "change")
                ],
            ),
        ),
        element("tbody", {"role": "rowgroup"}, [_row(entry) for entry in entries]),
    )


def percent_left(change: Change) -> str | None:
    """What is left of a count, in words; ``None`` where it is not known."""
    return None if change.ratio is None else percent(change.ratio)


def candidate_timing(race: Race, title: str) -> tuple[Timing, Timing]:
    """The baseline of a race and the model that the page is about: by its name, or else the last."""
    first, *others = race.timings
    named = [each for each in others if PurePath(each.path).name == title]
    return first, (named or others or [first])[-1]


def _counts(report: RewriteReport) -> list[Entry]:
    totals = report.totals
    shapes = "; ".join(
        f"{name} {f'{GAP}×{GAP}'.join(map(str, shape))}"
        for name, shape in report.input_shapes.items()
    )
    rows = (
        ("Parameters", "", totals.parameters),
        ("Parameters in pointwise convolutions", "", totals.pointwise_parameters),
        ("Multiply-accumulates", f"for {shapes}" if shapes else "", totals.macs),
        ("File size", "bytes", totals.file_bytes),
    )
    return [
        _count(label, detail, change)
        for label, detail, change in rows
        if change.before is not None or change.after is not None
    ]


def _count(label: str, detail: str, change: Change) -> Entry:
    highest = max(change.before or 0, change.after or 0) or 1
    ratio = change.ratio
    return Entry(
        label,
        detail,
        count_text(change.before) if change.before is not None else "–",
        count_text(change.after) if change.after is not None else "–",
        "" if ratio is None else f"{percent(ratio)} left",
        (
            None if change.before is None else change.before / highest,
            None if change.after is None else change.after / highest,
        ),
        worse=ratio is not None and ratio > 1,
    )


def _latency(report: RewriteReport, title: str) -> Entry:
    races = report.benchmark.races if report.benchmark is not None else ()
    if not races:
        line = f"onnx-igpc benchmark ORIGINAL.onnx {title} --report FILE.html"
        return _raced_before(report) or Entry("Latency", missing=("not measured:", line))
    first, ours = candidate_timing(races[0], title)
    names = short_names([each.path for each in races[0].timings])
    detail = f"{race_title(races[0])}, before: {names[first.path]}"
    if first is ours:
        after = milliseconds(ours.median_ms)
        return Entry("Latency", race_title(races[0]), after=after, bars=(None, 1.0))
    speed = ours.speedup.value if ours.speedup is not None else None
    return _times(detail, first.median_ms, ours.median_ms, speed)


def _raced_before(report: RewriteReport) -> Entry | None:
    """The times that a lowering or a budget of time was chosen by."""
    lowered = report.lowering
    times = lowered.model.seconds if lowered is not None and lowered.model is not None else {}
    if lowered is not None and lowered.model is not None and {"dense", "chosen"} <= set(times):
        where = f"batch {lowered.batch}, {threads_text(lowered.threads)}, {lowered.provider}"
        where += _forms(lowered.precision)
        detail = f"{where}; raced when it was lowered, before: all sites dense"
        speed, low, high = lowered.model.speedup.get("dense", (None, 0.0, 0.0))
        if speed is not None:
            detail += f"; 95{GAP}% interval {low:.2f} to {high:.2f} × as fast"
        return _times(detail, 1e3 * times["dense"], 1e3 * times["chosen"], speed)
    budget = report.selection.latency if report.selection is not None else None
    if budget is None:
        return None
    dense, taken = 1e3 * budget.dense_seconds, 1e3 * budget.dense_seconds * budget.measured
    detail = "raced when the budget was spent, with random weights; before: the dense model"
    detail += _forms(budget.precision)
    return _times(detail, dense, taken, dense / taken if taken else None)


def _forms(precision: str | None) -> str:
    """What was raced, where that is not what was written."""
    return f", both in {precision}" if precision is not None else ""


def _times(detail: str, before: float, after: float, speed: float | None) -> Entry:
    """Milliseconds of both models."""
    highest = max(before, after) or 1.0
    return Entry(
        "Latency",
        detail,
        milliseconds(before),
        milliseconds(after),
        f"{speed:.2f} × as fast" if speed is not None else "",
        (before / highest, after / highest),
        worse=after > before,
    )


def _row(entry: Entry) -> Element:
    name = element(
        "th",
        {"scope": "row", "role": "rowheader"},
        element("span", {"class": "label"}, entry.label),
        element("span", {"class": "detail-text"}, entry.detail) if entry.detail else None,
        _bars(entry),
    )
    if entry.missing is not None:
        text, line = entry.missing
        cell = element(
            "td",
            {"colspan": 3, "role": "cell", "class": "missing"},
            text,
            [" ", element("code", None, command(line))] if line else None,
        )
        return element("tr", {"role": "row"}, name, cell)
    return element(
        "tr",
        {"class": "worse" if entry.worse else None, "role": "row"},
        name,
        element("td", {"class": "num", "role": "cell"}, entry.before),
        element("td", {"class": "num after", "role": "cell"}, entry.after),
        element("td", {"class": "num change", "role": "cell"}, entry.change),
    )


def _bars(entry: Entry) -> Element | None:
    before, after = entry.bars
    if before is None and after is None:
        return None
    parts = (("track", 1.0, 0, 12), ("before", before, 0, 5), (entry.style, after, 7, 5))
    return element(
        "svg",
        {"class": "bars", "width": "100%", "height": 12, "aria-hidden": "true"},
        [
            element(
                "rect",
                {"class": f"bar-{style}", "y": y, "height": height, "width": f"{100 * share:.2f}%"},
            )
            for style, share, y, height in parts
            if share is not None
        ],
        _whisker(*entry.between) if entry.between is not None else None,
    )


def _whisker(low: float, high: float) -> Element:
    """An interval around the end of the bar after."""
    ends = {"x": f"{100 * low:.2f}%", "width": f"{100 * (high - low):.2f}%"}
    return element("rect", {"class": "bar-interval", "y": 8.5, "height": 2, **ends})
