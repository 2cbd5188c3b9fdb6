"""The page of an optimization: its verdict, what was tried, and then the report of the chosen model."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_igpc.report.damage import figure_text
from onnx_igpc.report.html.charts import TOP, Legend, Place, figure, frame, value_table
from onnx_igpc.report.html.elements import Child, Element, element
from onnx_igpc.report.html.layout_drawing import Drawings
from onnx_igpc.report.html.page import document, report_sections, section
from onnx_igpc.report.html.scales import Scale, round_ticks
from onnx_igpc.report.html.texts import GAP, command, milliseconds, percent
from onnx_igpc.report.numbers import exact
from onnx_igpc.report.optimization import OptimizationReport, PictureReport, PointReport, StepReport

_HEIGHT = 260.0
_NAMED = 8.0
"""Pixels between a point and its number."""


def render_optimization(report: OptimizationReport, title: str) -> str:
    """The page; as :func:`~onnx_igpc.report.html.page.render_html` in all else."""
    drawings = Drawings()
    own = [
        section("tried", "What was tried", _points(report)),
        section("images", "The images, as the model gets them", _images(report)),
        section("steps", "Step by step", _steps(report.steps)),
    ]
    sections = [each for each in own if each is not None]
    sections += report_sections(report.report, title, drawings)
    return document(title, _header(report, title), sections, drawings, report.tool)


def _header(report: OptimizationReport, title: str) -> list[Child]:
    warnings = [*report.warnings, *report.report.warnings]
    return [
        element("p", {"class": "kicker"}, "onnx-igpc optimize"),
        element("h1", None, element("bdi", None, title)),
        element(
            "dl",
            {"class": "verdict"},
            [
                [element("dt", None, head), element("dd", None, rest)]
                for head, _, rest in (line.partition(": ") for line in report.verdict)
            ],
        ),
        element("ul", {"class": "warnings"}, [element("li", None, each) for each in warnings])
        if warnings
        else None,
    ]


def _points(report: OptimizationReport) -> list[Child]:
    raced = [point for point in report.points if point.milliseconds is not None]
    return [_chart(report, raced) if len(raced) > 1 else None, *_table(report)]


def _kept(point: PointReport) -> float | None:
    """What is drawn upwards: the agreement, or the relative error turned round."""
    if point.damage.agreement is not None:
        return point.damage.agreement
    error = point.damage.relative_error
    return None if error is None else 1.0 - min(error, 1.0)


def _chart(report: OptimizationReport, points: Sequence[PointReport]) -> Element:
    """Time to the right, what is kept of the answers upwards: the best corner is at the top on the left."""
    shown = [(p, kept) for p in points if (kept := _kept(p)) is not None]
    times = [p.milliseconds or 0.0 for p in points]
    lows = [p.damage.interval[0] if p.damage.interval else kept for p, kept in shown]
    across = Scale(0.0, 1.08 * max(times), 100.0)
    up = Scale(min([*lows, 0.9]) - 0.02, 1.0, _HEIGHT)
    agreement = points[0].damage.agreement is not None
    what = "answers that are the original's" if agreement else "1 − relative error"
    ticks = round_ticks(1.0 - up.low, about=4)
    bound = float(report.promise.rpartition("=")[2].rstrip("%")) if "=" in report.promise else 0.0
    held = None
    if report.promise.startswith("agreement"):
        held = bound / 100
    elif report.promise.startswith("output"):
        held = 1.0 - bound
    return figure(
        "chart-tried",
        "Every model that was tried",
        f"To the left is faster, upwards is truer ({what}, with the 95 % interval). The dashed line is the "
        f"promise, {report.promise}: the lower end of an interval has to lie above it.",
        frame(
            "chart-tried",
            "Latency against what is kept of the answers",
            "; ".join(
                f"{p.name}: {milliseconds(p.milliseconds or 0)}, {percent(k)}" for p, k in shown
            ),
            _HEIGHT,
            _level(up, held),
            [
                _point(number, point, (across.place(point.milliseconds or 0.0), up, kept), report)
                for number, (point, kept) in enumerate(shown, 1)
            ],
            lines=[(up.place(1.0 - t), percent(1.0 - t, 0)) for t in (0.0, *ticks)],
            places=[
                Place(across.place(t), milliseconds(t)) for t in round_ticks(across.high, about=5)
            ],
        ),
        legend=[
            Legend("chosen", "chosen"),
            Legend("measured", "holds the promise"),
            Legend("measured-not", "does not"),
        ],
    )


def _level(up: Scale, held: float | None) -> Element | None:
    if held is None or not up.low <= held <= up.high:
        return None
    y = f"{TOP + _HEIGHT - up.place(held):.1f}"
    return element("line", {"class": "mark", "x1": 0, "x2": "100%", "y1": y, "y2": y})


def _point(
    number: int, point: PointReport, at: tuple[float, Scale, float], report: OptimizationReport
) -> list[Element]:
    across, up, kept = at
    x, y = f"{across:.2f}%", TOP + _HEIGHT - up.place(kept)
    chosen = point.name == report.chosen
    style = "chosen" if chosen else "measured" if point.holds else "measured-not"
    drawn = []
    if point.damage.interval is not None:
        low, high = (TOP + _HEIGHT - up.place(end) for end in point.damage.interval)
        ends = {"x1": x, "x2": x, "y1": f"{low:.1f}", "y2": f"{high:.1f}"}
        drawn.append(element("line", {"class": "interval", **ends}))
    radius = 6 if chosen else 4.5
    drawn.append(element("circle", {"class": style, "cx": x, "cy": f"{y:.1f}", "r": radius}))
    text = {"x": x, "y": f"{y + 4:.1f}", "dx": _NAMED}
    drawn.append(element("text", text, str(number)))
    return drawn


def _table(report: OptimizationReport) -> list[Element]:
    rows = []
    for number, point in enumerate(report.points, 1):
        speed = point.speedup
        marks = "chosen" if point.name == report.chosen else "holds" if point.holds else "does not"
        rows.append(
            (
                f"{number} {point.name}",
                "–" if point.milliseconds is None else f"{point.milliseconds:.4g}",
                "–"
                if speed is None
                else f"{speed.value:.2f} ({speed.low:.2f} to {speed.high:.2f})",
                figure_text(point.damage).partition(" ")[2],
                f"{point.file_bytes / 1e6:.3g}",
                marks,
            )
        )
    kept = "agreement, %" if report.original.damage.agreement is not None else "relative error"
    head = ("model", "median, ms", "times as fast", kept, "MB", report.promise)
    return value_table(f"Raced in one process, {report.where}", head, rows)


def _images(report: OptimizationReport) -> list[Child]:
    images = report.images
    parts = f"{exact(images.fit)} are fitted to and {exact(images.choose)} held out to choose by"
    if images.state:
        parts += f", {exact(images.state)} more to state what the chosen one does"
    return [
        element(
            "p", None, f"{exact(images.total)} samples of {images.source}: {parts}, evenly spaced."
        ),
        element("div", {"class": "inputs"}, [_picture(each) for each in report.pictures])
        if report.pictures
        else None,
        element(
            "p",
            {"class": "note"},
            "The least value of each is drawn black and the largest white. Where these are cut off, squeezed, or "
            "in another range or order of colours than the model was trained with, the preprocessing is wrong, "
            "and everything on this page with it.",
        )
        if report.pictures
        else None,
    ]


def _picture(picture: PictureReport) -> Element:
    return element(
        "figure",
        {"class": "input"},
        element("img", {"src": picture.picture, "alt": "a sample as the model gets it"}),
        element("figcaption", None, picture.text),
    )


def _steps(steps: Sequence[StepReport]) -> list[Child]:
    return [
        element(
            "p",
            {"class": "explanation"},
            "The commands run in the folder of this page; commands.sh has all of them.",
        ),
        element(
            "ol",
            {"class": "steps"},
            [
                element(
                    "li",
                    {"class": None if each.status == "done" else "left-out"},
                    element("b", None, each.name),
                    f", {each.seconds:.0f}{GAP}s" if each.status == "done" else f", {each.status}",
                    f": {each.note}" if each.note else None,
                    element("code", None, command(each.command))
                    if each.command is not None and each.status == "done"
                    else None,
                )
                for each in steps
            ],
        ),
    ]
