"""The races of a benchmark: every round's time of every model."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_igpc.report.benchmark import BenchmarkReport, Race, Timing
from onnx_igpc.report.html.charts import BOTTOM, opened_by, value_table
from onnx_igpc.report.html.elements import Element, element
from onnx_igpc.report.html.scales import round_ticks
from onnx_igpc.report.html.texts import GAP, milliseconds, percent

_ROW = 34
# Times further out than so many times the slowest median are counted, not drawn.
_FAR = 2.0


def latency_charts(benchmark: BenchmarkReport | None) -> list[Element]:
    """One chart for each batch size and number of threads."""
    races = benchmark.races if benchmark is not None else ()
    return [_race(index, race) for index, race in enumerate(races)]


def race_title(race: Race) -> str:
    """Batch size and threads of a race, in words."""
    return f"batch {race.batch}, {threads_text(race.threads)}"


def threads_text(count: int | None) -> str:
    """A number of threads, in words."""
    return "all threads" if count is None else f"{count} thread" + ("s" if count != 1 else "")


def speed_text(timing: Timing) -> str | None:
    """The speed-up over the baseline with its interval; ``None`` for the baseline."""
    speed = timing.speedup
    if speed is None:
        return None
    return f"{speed.value:.2f} × as fast (95{GAP}%: {speed.low:.2f} to {speed.high:.2f})"


def _race(index: int, race: Race) -> Element:
    timings = race.timings
    limit = _FAR * max(timing.median_ms for timing in timings)
    rounds = [each for timing in timings for each in timing.rounds_ms]
    ends = [timing.quartiles_ms[1] for timing in timings]
    highest = 1.02 * min(max([*rounds, *ends]), limit) or 1.0
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


def _row(timing: Timing, highest: float, limit: float) -> list[Element]:
    low, high = timing.quartiles_ms
    median, rounds = timing.median_ms, timing.rounds_ms
    drawn = [each for each in rounds if each <= limit]
    speed = speed_text(timing)
    beyond = (
        f"; {len(rounds) - len(drawn)} rounds beyond {milliseconds(limit)}"
        if len(drawn) < len(rounds)
        else ""
    )

    def at(value: float) -> str:
        return f"{100 * value / highest:.2f}%"

    return [
        element(
            "p",
            {"class": "runner"},
            element("bdi", {"class": "name"}, timing.path),
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


def _limit_text(timing: Timing) -> str:
    """How fast the model could at best be, where the benchmark worked that out."""
    limit = timing.limit
    if limit is None:
        return ""
    return f"; at best {limit.speedup:.2f} ×, of which {percent(limit.reached, 0)} is reached"


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


def _table(title: str, timings: Sequence[Timing]) -> list[Element]:
    return value_table(
        title,
        ("model", "median, ms", "first quartile", "third quartile", "samples a second", "speed-up"),
        [
            (
                timing.path,
                f"{timing.median_ms:.4g}",
                f"{timing.quartiles_ms[0]:.4g}",
                f"{timing.quartiles_ms[1]:.4g}",
                f"{timing.samples_per_second:.4g}",
                speed_text(timing) or "baseline",
            )
            for timing in timings
        ],
    )
