"""What all charts are made of: a frame whose text keeps its size while the drawing takes any width.

Heights are CSS pixels. Places from left to right are per cent in the frame, or units of a drawing that is
stretched to the frame's width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnx_igpc.report.html.elements import Child, Element, element

TOP = 14.0
"""Pixels above the drawing, for what stands on its highest line."""
GUTTER = 50
"""Pixels on the left, for the labels of the lines."""
BOTTOM = 22.0
"""Pixels below it, for labels of places."""


@dataclass(frozen=True)
class Legend:
    """A class of the style sheet and what is drawn in it."""

    style: str
    meaning: str


@dataclass(frozen=True)
class Place:
    """A label under the drawing: per cent from the left, and where the text lies to that."""

    percent: float
    text: str
    anchor: str = "middle"


def figure(
    name: str,
    title: str,
    explanation: Child,
    drawing: Child,
    legend: Sequence[Legend] = (),
    table: Child = None,
) -> Element:
    """A chart with its title, what it shows and, where given, its values as a table to open."""
    keys = [element("span", {"class": "key"}, swatch(each.style), each.meaning) for each in legend]
    return element(
        "figure",
        {"id": name},
        element(
            "figcaption",
            None,
            element("h3", None, title),
            element("p", None, explanation),
            element("p", {"class": "legend"}, keys) if keys else None,
        ),
        drawing,
        table,
    )


def swatch(style: str) -> Element:
    """A sample of a style for a legend."""
    shapes = {
        "line": element("line", {"x1": 0, "x2": 18, "y1": 5, "y2": 5, "class": style}),
        "measured": element("circle", {"cx": 9, "cy": 5, "r": 4, "class": style}),
        "chosen": element("circle", {"cx": 9, "cy": 5, "r": 4.5, "class": style}),
        "bar": element("rect", {"x": 2, "y": 0, "width": 10, "height": 10, "class": style}),
    }
    shape = shapes[style.partition("-")[0]]
    return element("svg", {"width": 18, "height": 10, "aria-hidden": "true"}, shape)


def frame(
    name: str,
    title: str,
    description: str,
    height: float,
    *contents: Child,
    lines: Iterable[tuple[float, str]] = (),
    places: Iterable[Place] = (),
) -> Element:
    """The drawing area of ``height``; lines: (height above the bottom, label) across the drawing."""
    bottom = TOP + height
    drawn = list(lines)
    labels = element(
        "svg",
        {"width": GUTTER, "height": round(bottom + BOTTOM), "aria-hidden": "true"},
        [_label(bottom - up, label) for up, label in drawn],
    )
    plot = element(
        "svg",
        {
            "width": "100%",
            "height": round(bottom + BOTTOM),
            "role": "img",
            "aria-labelledby": f"{name}-title {name}-desc",
        },
        element("title", {"id": f"{name}-title"}, title),
        element("desc", {"id": f"{name}-desc"}, description),
        [_line(bottom - up) for up, _ in drawn],
        contents,
        element("line", {"x1": 0, "x2": "100%", "y1": bottom, "y2": bottom, "class": "base"}),
        [_place(each, bottom + 16) for each in places],
    )
    return element("div", {"class": "chart"}, labels, plot)


def stretched(width: float, height: float, *contents: Child) -> Element:
    """A drawing of the given units that takes the whole width of its frame."""
    return element(
        "svg",
        {
            "x": 0,
            "y": TOP,
            "width": "100%",
            "height": height,
            "viewBox": f"0 0 {width:g} {height:g}",
            "preserveAspectRatio": "none",
        },
        contents,
    )


def path(style: str, d: str) -> Element | None:
    """A path in a style, nothing where it is empty."""
    return element("path", {"class": style, "d": d}) if d else None


def opened_by(summary: str, *contents: Child) -> Element:
    """What a reader may open."""
    return element("details", None, element("summary", None, summary), contents)


def definitions(facts: Iterable[tuple[str, Child]]) -> Element:
    """Facts by what they are called."""
    return element(
        "dl",
        {"class": "facts"},
        [
            element("div", None, element("dt", None, name), element("dd", None, fact))
            for name, fact in facts
        ],
    )


def value_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[Element]:
    """A table whose first column names the row; the rest are numbers. It scrolls where it is too wide."""
    heading = element("tr", None, [element("th", {"scope": "col"}, each) for each in head])
    body = [
        element(
            "tr",
            None,
            element("th", {"scope": "row"}, element("bdi", None, first)),
            [element("td", None, each) for each in rest],
        )
        for first, *rest in rows
    ]
    table = element(
        "table",
        {"class": "values", "aria-label": caption},
        element("thead", None, heading),
        element("tbody", None, body),
    )
    region = {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": caption}
    return [
        element("p", {"class": "note", "aria-hidden": "true"}, caption),
        element("div", region, table),
    ]


def _line(y: float) -> Element:
    return element("line", {"x1": 0, "x2": "100%", "y1": y, "y2": y, "class": "grid"})


def _label(y: float, text: str) -> Element:
    attributes = {"x": GUTTER - 8, "y": f"{y + 4:g}", "text-anchor": "end"}
    return element("text", attributes, text)


def _place(place: Place, y: float) -> Element:
    attributes = {"x": f"{place.percent:.2f}%", "y": f"{y:g}", "text-anchor": place.anchor}
    return element("text", attributes, place.text)
