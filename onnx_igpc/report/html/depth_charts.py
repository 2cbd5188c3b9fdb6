"""Parameters, MACs and relative error of every site, along the depth of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx_igpc.report.html.charts import TOP, Legend, Place, figure, frame, path, stretched
from onnx_igpc.report.html.elements import Element, element
from onnx_igpc.report.html.scales import Scale, round_ticks, stems_path, steps_path, tick_text
from onnx_igpc.report.numbers import count_text
from onnx_igpc.report.tree import Change, RewriteReport, SiteReport

_HEIGHT = 150.0
_GAP = 0.2
_MANY = 120


def depth_charts(report: RewriteReport) -> list[Element]:
    """The charts for which there is something to draw."""
    made = [
        _counts(report.sites, "parameters", "Parameters", lambda site: site.parameters),
        _counts(report.sites, "macs", "Multiply-accumulates", lambda site: site.macs),
        _errors(report.sites),
    ]
    return [each for each in made if each is not None]


def _counts(
    sites: Sequence[SiteReport], name: str, what: str, of: Callable[[SiteReport], Change]
) -> Element | None:
    highest = max((max(of(site).before or 0, of(site).after or 0) for site in sites), default=0)
    if not highest:
        return None
    scale = Scale(0.0, highest, _HEIGHT)
    before = [scale.place(of(site).before or 0) for site in sites]
    after = [scale.place(of(site).after or 0) for site in sites]
    changed = [i for i, site in enumerate(sites) if site.status != "kept"]
    kept = [i for i, site in enumerate(sites) if site.status == "kept"]

    def bars(style: str, values: Sequence[float], chosen: Sequence[int]) -> Element | None:
        return path(style, steps_path([values[i] for i in chosen], chosen, _HEIGHT, _GAP))

    total = Change(
        sum(of(site).before or 0 for site in sites), sum(of(site).after or 0 for site in sites)
    )
    summary = (
        f"{len(sites)} pointwise convolutions from the first to the last; together "
        f"{count_text(total.before)} before and {count_text(total.after)} after. The table of sites "
        "has the values."
    )
    return figure(
        f"chart-{name}",
        f"{what} of each pointwise convolution",
        "From the input of the network on the left to its output on the right.",
        frame(
            f"chart-{name}",
            f"{what} of each pointwise convolution",
            summary,
            _HEIGHT,
            stretched(
                len(sites),
                _HEIGHT,
                bars("bar-before", before, changed),
                bars("bar-after", after, changed),
                bars("bar-kept", after, kept),
                [
                    _hit(i, f"{site.name}: {_counted(site, of(site))}")
                    for i, site in enumerate(sites)
                ],
            ),
            lines=[(scale.place(tick), tick_text(tick)) for tick in round_ticks(highest)],
            places=_ends(len(sites)),
        ),
        [
            Legend("bar-before", "before"),
            Legend("bar-after", "after"),
            *([Legend("bar-kept", "kept as it was")] if kept else []),
        ],
    )


def _counted(site: SiteReport, change: Change) -> str:
    if site.status == "kept":
        return f"{count_text(change.before)}, kept"
    return f"{count_text(change.before)} before, {count_text(change.after)} after"


def _errors(sites: Sequence[SiteReport]) -> Element | None:
    errors = [(i, site.error) for i, site in enumerate(sites) if site.error is not None]
    if not errors:
        return None
    highest = max(error for _, error in errors) or 1.0
    scale = Scale(0.0, highest, _HEIGHT)
    count = len(sites)
    worst = max(errors, key=lambda each: each[1])[0]
    stems = stems_path(
        [scale.place(error) for _, error in errors], [i + 0.5 for i, _ in errors], _HEIGHT
    )
    return figure(
        "chart-error",
        "Relative error of each rewritten site",
        [
            "The part of the layer's output that the grouped form does not reproduce, ",
            element("span", {"class": "unbroken"}, "E|(W − M)x|² / E|Wx|²"),
            ", as fitted and before any training: 0 is exact, 1 is all of it.",
        ],
        frame(
            "chart-error",
            "Relative error of each rewritten site",
            f"{len(errors)} rewritten sites; the largest error is {highest:.3f}, of site {worst + 1}. "
            "The table of sites has the values.",
            _HEIGHT,
            stretched(count, _HEIGHT, path("stem", stems)),
            [_dot(i, error, scale, count) for i, error in errors],
            stretched(
                count, _HEIGHT, [_hit(i, f"{sites[i].name}: {error:.4f}") for i, error in errors]
            ),
            lines=[(scale.place(tick), f"{tick:g}") for tick in round_ticks(highest)],
            places=_ends(count),
        ),
    )


def _dot(index: int, error: float, scale: Scale, count: int) -> Element:
    return element(
        "circle",
        {
            "class": "dot",
            "cx": f"{100 * (index + 0.5) / count:.2f}%",
            "cy": f"{TOP + scale.length - scale.place(error):.1f}",
            "r": 2 if count > _MANY else 3.5,
        },
    )


def _hit(index: int, text: str) -> Element:
    """An area over a site's whole height that tells its name and values to the pointer."""
    return element(
        "rect",
        {"class": "hit", "x": index, "y": 0, "width": 1, "height": f"{_HEIGHT:g}"},
        element("title", None, text),
    )


def _ends(count: int) -> list[Place]:
    if count == 1:
        return [Place(50.0, "site 1")]
    return [Place(0.0, "site 1", "start"), Place(100.0, f"site {count}", "end")]
