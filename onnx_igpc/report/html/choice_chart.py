"""What a budget chose between: predicted damage against what is left, and the chosen point."""

from __future__ import annotations

import math

from onnx_igpc.report.html.charts import (
    TOP,
    Legend,
    Place,
    figure,
    frame,
    opened_by,
    path,
    stretched,
    value_table,
)
from onnx_igpc.report.html.elements import Child, Element, element
from onnx_igpc.report.html.scales import Scale, decades, line_path
from onnx_igpc.report.html.texts import command, percent
from onnx_igpc.report.selection import SelectionReport

_HEIGHT = 220.0
_WIDTH = 1000.0


def choice_chart(selection: SelectionReport | None) -> Element | None:
    """The trade-off that a budget was chosen from; ``None`` where there was no budget."""
    curve = selection.curve if selection is not None else []
    drawn = [(x, y) for x, y in curve if 0 < y < math.inf]
    if selection is None or len(drawn) < 2:
        return None
    share, damage = selection.chosen
    tried = selection.tried or []
    measured = [(each.share, each.measured) for each in tried if 0 < each.measured < math.inf]
    shown = [*drawn, *measured, *([(share, damage)] if 0 < damage < math.inf else [])]
    across = Scale(0.0, 1.0, 100.0)
    up = Scale(min(y for _, y in shown), max(y for _, y in shown) * 1.15, _HEIGHT, logarithmic=True)
    chosen = f"{percent(share)} left, damage {damage:.3g}"
    if selection.measured_damage is not None:
        chosen += f" predicted, {selection.measured_damage:.3g} measured"
    legend = [Legend("chosen", f"chosen: {chosen}")]
    if measured:
        legend.append(Legend("measured", "whole plans, fitted and measured on data left out"))

    def point(style: str, at: tuple[float, float], radius: float) -> Element:
        x, y = across.place(at[0]), TOP + _HEIGHT - up.place(max(at[1], up.low))
        return element("circle", {"class": style, "cx": f"{x:.2f}%", "cy": f"{y:.1f}", "r": radius})

    x, y = across.place(share), TOP + _HEIGHT - up.place(max(damage, up.low))
    return figure(
        "chart-choice",
        "What the budget was chosen from",
        _explanation(selection),
        frame(
            "chart-choice",
            "Predicted damage against what is left",
            f"The damage falls from {drawn[0][1]:.3g} with {percent(drawn[0][0], 0)} left to "
            f"{drawn[-1][1]:.3g} with {percent(drawn[-1][0], 0)} left. Chosen: {chosen}.",
            _HEIGHT,
            element(
                "line",
                {
                    "class": "mark",
                    "x1": f"{x:.2f}%",
                    "x2": f"{x:.2f}%",
                    "y1": f"{y:.1f}",
                    "y2": TOP + _HEIGHT,
                },
            ),
            stretched(
                _WIDTH,
                _HEIGHT,
                path(
                    "line",
                    line_path([(10 * across.place(a), _HEIGHT - up.place(b)) for a, b in drawn]),
                ),
            ),
            point("chosen", (share, damage), 5.5),
            [point("measured", each, 4) for each in measured],
            lines=[(up.place(tick), f"{tick:g}") for tick in decades(up.low, up.high)],
            places=[
                Place(0.0, percent(0, 0), "start"),
                Place(50.0, percent(0.5, 0)),
                Place(100.0, percent(1, 0), "end"),
            ],
        ),
        legend=legend,
        table=opened_by("The values as a table", _tables(selection)),
    )


def _explanation(selection: SelectionReport) -> list[Child]:
    quantity = selection.target.partition("=")[0].replace("-", " ") or "cost"
    if selection.unit is not None:
        done = {"blocks": "residual blocks are collapsed", "channels": "channels are left out"}
        return [
            (
                f"The least predicted damage ({selection.measure}) with each share that is left of the {quantity} as "
                f"{done[selection.unit]}, from left to right. The mark is what "
            ),
            element("code", None, command(f"--target {selection.target}")),
            " chose.",
        ]
    return [
        (
            f"The least predicted damage ({selection.measure}) with each share that is left of the {quantity} of "
            "the sites that may be rewritten, from left to right. The mark is what "
        ),
        element("code", None, command(f"--target {selection.target}")),
        " chose.",
    ]


def _tables(selection: SelectionReport) -> list[Element]:
    """The curve, and the plans that were measured as a whole."""
    made = value_table(
        "Least predicted damage with each share left",
        ("left", "damage"),
        [(percent(a), f"{b:.3g}") for a, b in selection.curve],
    )
    if not selection.tried:
        return made
    rows = [
        (
            percent(each.share),
            f"{each.predicted:.3g}",
            f"{each.measured:.3g}",
            "–" if each.agreement is None else percent(each.agreement),
        )
        for each in selection.tried
    ]
    head = ("left", "predicted damage", "measured damage", "same top-1 answer")
    return [*made, *value_table("Whole plans that were measured, the last was taken", head, rows)]
