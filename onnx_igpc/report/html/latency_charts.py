"""The races of a benchmark: every round's time of every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx_igpc.report.html.charts import BOTTOM, opened_by, value_table
from onnx_igpc.report.html.elements import Element, element
from onnx_igpc.report.html.scales import round_ticks
from onnx_igpc.report.html.texts import GAP, milliseconds, percent

_ROW = 34
# Times further out than so many times the slowest median are counted, not drawn.
_FAR = 2.0


def latency_charts(benchmark: Mapping[str, Any] | None) -> list[Element]:
    """One chart for each batch size and number of threads."""
    return [_race(index, race) for index, race in enumerate((benchmark or {}).get("races") or ())]


def race_title(race: Mapping[str, Any]) -> str:
    """Batch size and threads of a race, in words."""
    threads = race.get("threads")
    return f"batch {race['batch']}, " + ("all threads" if threads is None else _threads(threads))


def speed_text(timing: Mapping[str, Any]) -> str | None:
    """The speed-up over the baseline with its interval; ``None`` for the baseline."""
    speed = timing.get("speedup")
    if not speed:
        return None
    return f"{speed['value']:.2f} × as fast (95{GAP}%: {speed['low']:.2f} to {speed['high']:.2f})"


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count != 1 else "")


def _race(index: int, race: Mapping[str, Any]) -> Element:
    timings: Sequence[Mapping[str, Any]] = race["timings"]
    limit = _FAR * max(float(timing["median_ms"]) for timing in timings)
    rounds = [each for timing in timings for each in _rounds(timing)]
    ends = [float(timing["quartiles_ms"][1]) for timing in timings]
    highest = 1.02 * min(max([*rounds, *ends]), limit)
    name = f"chart-latency-{index}"
    title = f"Latency with {race_title(race)}"
    return element(
        "figure",
        {"id": name, "class": "race"},
        element(
            "figcaption",
            None,
            element("h3", None, title),
            element(
                "p",
                None,
                "A dot for each round, a box from the first to the third quartile, a line at the median.",
            ),
        ),
        [_row(timing, highest, limit) for timing in timings],
        _axis(highest),
        opened_by("The values as a table", _table(title, timings)),
    )


def _row(timing: Mapping[str, Any], highest: float, limit: float) -> list[Element]:
    low, high = (float(each) for each in timing["quartiles_ms"])
    median = float(timing["median_ms"])
    rounds = _rounds(timing)
    drawn = [each for each in rounds if each <= limit]
    speed = speed_text(timing)
    beyond = (
        f"; {len(rounds) - len(drawn)} rounds beyond {milliseconds(limit)}"
        if drawn != rounds
        else ""
    )

    def at(value: float) -> str:
        return f"{100 * value / highest:.2f}%"

    return [
        element(
            "p",
            {"class": "runner"},
            element("bdi", {"class": "name"}, str(timing["path"])),
            " ",
            element("strong", None, milliseconds(median)),
            f", {speed}" if speed else ", the baseline",
            _limit_text(timing),
            beyond,
        ),
        element(
            "svg",
            {
                "class": "strip",
                "width": "100%",
                "height": _ROW,
                "role": "img",
                "aria-label": f"median {milliseconds(median)}, quartiles {low:.3g} and {high:.3g} ms, "
                f"{len(rounds)} rounds",
            },
            element(
                "rect",
                {
                    "class": "box",
                    "x": at(low),
                    "width": at(min(high, highest) - low),
                    "y": 5,
                    "height": 24,
                },
            ),
            # Dots that would hide each other lie at five heights, in turns.
            [
                element(
                    "circle", {"class": "round", "cx": at(each), "cy": 9 + 4 * (i % 5), "r": 2.5}
                )
                for i, each in enumerate(drawn)
            ],
            element(
                "line", {"class": "median", "x1": at(median), "x2": at(median), "y1": 2, "y2": 32}
            ),
        ),
    ]


def _limit_text(timing: Mapping[str, Any]) -> str:
    """How fast the model could at best be, where the benchmark worked that out."""
    limit = timing.get("limit")
    if not limit:
        return ""
    return f"; at best {limit['speedup']:.2f} ×, of which {percent(limit['reached'], 0)} is reached"


def _rounds(timing: Mapping[str, Any]) -> list[float]:
    return [float(each) for each in timing.get("rounds_ms") or ()]


def _axis(highest: float) -> Element:
    ticks = round_ticks(highest, about=4)
    return element(
        "svg",
        {"class": "strip", "width": "100%", "height": BOTTOM + 4, "aria-hidden": "true"},
        element("line", {"class": "base", "x1": 0, "x2": "100%", "y1": 0.5, "y2": 0.5}),
        element("text", {"x": 0, "y": 18}, "0"),
        [
            element(
                "text",
                {
                    "x": f"{100 * tick / highest:.2f}%",
                    "y": 18,
                    "text-anchor": "end" if tick > 0.94 * highest else "middle",
                },
                f"{tick:g}{GAP}ms" if tick == ticks[-1] else f"{tick:g}",
            )
            for tick in ticks
        ],
    )


def _table(title: str, timings: Sequence[Mapping[str, Any]]) -> list[Element]:
    return value_table(
        title,
        ("model", "median, ms", "first quartile", "third quartile", "samples a second", "speed-up"),
        [
            (
                str(timing["path"]),
                f"{timing['median_ms']:.4g}",
                f"{timing['quartiles_ms'][0]:.4g}",
                f"{timing['quartiles_ms'][1]:.4g}",
                f"{timing['samples_per_second']:.4g}",
                speed_text(timing) or "baseline",
            )
            for timing in timings
        ],
    )
