"""The table of all sites, each row opening to what became of it."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_igpc.report.html.elements import Child, Element, element
from onnx_igpc.report.html.site_detail import SiteDetails
from onnx_igpc.report.html.texts import percent
from onnx_igpc.report.numbers import count_text
from onnx_igpc.report.tree import Change, RewriteReport, SiteReport, StageReport

# Title, kind of the values (text sorts by letters), class of the column.
_COLUMNS = (
    ("#", "number", "num wide"),
    ("Site", "text", "name"),
    ("Channels", "number", "num wide"),
    ("K", "number", "num wide"),
    ("L", "number", "num wide"),
    ("Parameters", "number", "num wide"),
    ("left", "number", "num"),
    ("MACs", "number", "num wide"),
    ("left", "number", "num wide"),
    ("Error", "number", "num"),
)
_SPOKEN = {6: "parameters left", 8: "MACs left", 0: "number along the network"}


def sites_table(report: RewriteReport, details: SiteDetails) -> list[Child]:
    """Filter and table; nothing for a report without sites."""
    if not report.sites:
        return []
    damages = report.selection.damage_by_site if report.selection is not None else {}
    rows = [
        row
        for number, site in enumerate(report.sites, start=1)
        for row in _rows(number, site, details, damages)
    ]
    return [
        element(
            "p",
            {"class": "explanation"},
            "K and L are given as groups × input channels of a group. A heading sorts. A row opens to "
            "its layout: each block is a group, and the strong lines follow what the first group of K "
            "makes. W and M show how large the weights are, both on one scale.",
        ),
        _controls(len(report.sites)),
        element(
            "table",
            {"id": "site-table", "class": "sites", "role": "table"},
            element(
                "caption",
                {"class": "unseen"},
                "Every pointwise convolution of the model, rewritten or kept",
            ),
            element(
                "thead",
                {"role": "rowgroup"},
                element("tr", {"role": "row"}, [_heading(i) for i in range(len(_COLUMNS))]),
            ),
            element("tbody", {"role": "rowgroup"}, rows),
        ),
    ]


def _controls(count: int) -> Element:
    states = ("rewritten", "kept", "collapsed", "narrowed")
    options = (("", "all"), *((state, state) for state in states))
    return element(
        "div",
        {"class": "controls", "role": "search", "aria-label": "Sites"},
        element(
            "label",
            None,
            "Name or reason ",
            element(
                "input",
                {"id": "filter", "type": "search", "autocomplete": "off", "spellcheck": "false"},
            ),
        ),
        element(
            "label",
            None,
            "Show ",
            element(
                "select",
                {"id": "status"},
                [element("option", {"value": value}, text) for value, text in options],
            ),
        ),
        element("output", {"id": "shown", "for": "filter status"}, f"{count} of {count} sites"),
    )


def _heading(index: int) -> Element:
    title, kind, style = _COLUMNS[index]
    return element(
        "th",
        {
            "scope": "col",
            "role": "columnheader",
            "class": style,
            "data-kind": kind,
            "aria-sort": "none",
        },
        element(
            "button",
            {"type": "button", "aria-label": f"Sort by {_SPOKEN.get(index, title)}"},
            title,
        ),
    )


def _rows(
    number: int, site: SiteReport, details: SiteDetails, damages: Mapping[str, float]
) -> tuple[Element, Element]:
    key = f"site-{number}"
    cells = [
        _cell(0, number, str(number)),
        element(
            "th",
            {"scope": "row", "role": "rowheader", "class": "name"},
            element(
                "button",
                {
                    "type": "button",
                    "class": "opens",
                    "aria-expanded": "false",
                    "aria-controls": key,
                },
                element("bdi", None, site.name),
            ),
            None
            if site.rewritten
            else element("span", {"class": "reason"}, f"{site.status}: {site.reason}"),
        ),
        _cell(2, _product(site), f"{_known(site.in_channels)} → {_known(site.out_channels)}"),
        _cell(3, _groups(site.k), _stage(site.k)),
        _cell(4, _groups(site.l), _stage(site.l)),
        _cell(5, site.parameters.after, count_text(site.parameters.after)),
        _cell(6, _ratio(site.parameters), _left(site, site.parameters)),
        _cell(7, site.macs.after, count_text(site.macs.after)),
        _cell(8, _ratio(site.macs), _left(site, site.macs)),
        _cell(9, site.error, "" if site.error is None else f"{site.error:.3f}"),
    ]
    search = f"{site.name} {site.reason or ''}".lower()
    row = element("tr", {"class": f"site {site.status}", "role": "row", "data-text": search}, cells)
    detail = element(
        "tr",
        {"class": "detail", "role": "row", "id": key},
        element(
            "td",
            {"colspan": len(_COLUMNS), "role": "cell"},
            details.of(site, damages.get(site.name)),
        ),
    )
    return row, detail


def _cell(column: int, value: float | None, text: str) -> Element:
    """A cell; ``value`` is what it sorts by, last of all where there is none."""
    style = _COLUMNS[column][2]
    stored = None if value is None else f"{value:.10g}"
    return element("td", {"class": style, "role": "cell", "data-value": stored}, text)


def _product(site: SiteReport) -> int | None:
    if site.in_channels is None or site.out_channels is None:
        return None
    return site.in_channels * site.out_channels


def _groups(stage: StageReport | None) -> int | None:
    return stage.groups if stage else None


def _stage(stage: StageReport | None) -> str:
    return f"{stage.groups} × {stage.channels_per_group}" if stage else ""


def _ratio(change: Change) -> float | None:
    return change.ratio


def _left(site: SiteReport, change: Change) -> str:
    if change.ratio is None:
        return ""
    return percent(1, 0) if site.status == "kept" else percent(change.ratio)


def _known(value: int | None) -> str:
    return "?" if value is None else str(value)
