"""The top of the page: what the rewrite brought and what it cost, each before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from onnx_igpc.report.benchmark import Race, Timing
from onnx_igpc.report.html.elements import Element, element
from onnx_igpc.report.html.latency_charts import race_title
from onnx_igpc.report.html.texts import GAP, command, milliseconds, percent, short_names
from onnx_igpc.report.numbers import count_text, exact
from onnx_igpc.report.sections import MeasuredOn
from onnx_igpc.report.tree import Change, RewriteReport
from onnx_igpc.report.verification import ClassifierResult, VerifyReport


@dataclass(frozen=True)
class Entry:
    """A line of the ledger: texts, and both bars as parts of the whole width, ``None`` for no bar.

    ``missing`` says how to get what is not known, in the place of everything else.
    """

    label: str
    detail: str = ""
    before: str = "–"
    after: str = "–"
    change: str = ""
    bars: tuple[float | None, float | None] = (None, None)
    missing: tuple[str, str] | None = None
    worse: bool = False


def ledger(report: RewriteReport, title: str) -> Element:
    """The table of all entries."""
    entries = [*_counts(report), _latency(report, title), *_accuracy(report, title)]
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
        return Entry("Latency", missing=("not measured:", line))
    first, ours = candidate_timing(races[0], title)
    before, after = first.median_ms, ours.median_ms
    highest = max(before, after) or 1.0
    names = short_names([each.path for each in races[0].timings])
    detail = f"{race_title(races[0])}, before: {names[first.path]}"
    if first is ours:
        return Entry("Latency", race_title(races[0]), after=milliseconds(after), bars=(None, 1.0))
    return Entry(
        "Latency",
        detail,
        milliseconds(before),
        milliseconds(after),
        f"{ours.speedup.value:.2f} × as fast" if ours.speedup is not None else "",
        (before / highest, after / highest),
        worse=after > before,
    )


def _accuracy(report: RewriteReport, title: str) -> list[Entry]:
    verified, damage = report.verify, report.damage
    if verified is not None:
        return _verified(verified)
    entries = []
    if damage is not None and damage.agreement is not None:
        on = MeasuredOn.said_in(report.notes)
        detail = f"on {exact(damage.samples)} samples" + (f" of {on}" if on else "")
        entries.append(_agreement(damage.agreement, detail))
    elif damage is not None and damage.relative_error is not None:
        text = f"of output {damage.output or ''}, {exact(damage.samples)} samples"
        entries.append(_relative(damage.relative_error, text))
    line = f"onnx-igpc verify ORIGINAL.onnx {title} --data DATA --report FILE.html"
    return [*entries, Entry("Accuracy", missing=("not measured:", line))]


def _verified(verified: VerifyReport) -> list[Entry]:
    entries = []
    if (classifier := verified.classifier) is not None:
        entries += _labelled(classifier)
        on = f"on {exact(classifier.samples)} samples"
        entries.append(_agreement(classifier.agreement, on))
    elif (worst := verified.worst_output) is not None:
        on = " on random inputs" if verified.random else f", {exact(verified.samples)} samples"
        entries.append(_relative(worst.relative_norm or 0.0, f"of output {worst.name}{on}"))
    for name, value in (verified.metric or {}).items():
        entries.append(Entry(name, "your metric", after=f"{value:.6g}"))
    return entries


def _labelled(classifier: ClassifierResult) -> list[Entry]:
    if classifier.original is None or classifier.candidate is None:
        return []
    entries = []
    for label, before, after in (
        ("Top-1 accuracy", classifier.original.top1, classifier.candidate.top1),
        ("Top-5 accuracy", classifier.original.top5, classifier.candidate.top5),
    ):
        if before is None or after is None:
            continue
        entries.append(
            Entry(
                label,
                f"on {exact(classifier.samples)} samples",
                percent(before),
                percent(after),
                f"{_signed(100 * (after - before))} points",
                (before, after),
                worse=after < before,
            )
        )
    return entries


def _agreement(value: float, detail: str) -> Entry:
    return Entry(
        "Same top-1 answer as the original",
        detail,
        after=percent(value),
        bars=(None, value),
    )


def _relative(error: float, detail: str) -> Entry:
    return Entry(
        "Relative difference from the original",
        detail,
        after=f"{100 * error:.3g}{GAP}%",
        bars=(None, min(error, 1.0)),
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−") if round(value, 1) else "0.0"


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
            f"{text} ",
            element("code", None, command(line)),
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
    parts = (("track", 1.0, 0, 12), ("before", before, 0, 5), ("after", after, 7, 5))
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
    )
