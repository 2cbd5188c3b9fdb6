"""What a row of the table opens to: the layout drawn, pictures of W and M, and where the site lies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnx_igpc.report.html.charts import definitions
from onnx_igpc.report.html.elements import Child, Element, element
from onnx_igpc.report.html.layout_drawing import Drawings, formula
from onnx_igpc.report.numbers import exact
from onnx_igpc.report.pictures import LEVELS, data_address, decoded, grey_png
from onnx_igpc.report.sections import Thumbnail
from onnx_igpc.report.tree import Change, SiteReport

_WITHOUT_FORM = {"kept": "Kept as it was", "collapsed": "Collapsed", "narrowed": "Narrowed"}


class SiteDetails:
    """Makes the details of sites; ``drawings`` collects what their figures use."""

    def __init__(self, drawings: Drawings) -> None:
        self._drawings = drawings

    def of(self, site: SiteReport, damage: float | None = None) -> list[Child]:
        """Why a site was kept, or what it became. ``damage``: the predicted one of a budget."""
        if not site.rewritten:
            return [
                element("p", None, f"{_WITHOUT_FORM[site.status]}: {site.reason}."),
                _facts({"Channels": _channels(site), "Parameters": _change(site.parameters)}),
            ]
        layout = site.layout
        return [
            element("p", {"class": "formula"}, formula(layout)) if layout else None,
            element(
                "div",
                {"class": "drawings"},
                self._drawings.of(layout) if layout else None,
                _pair(
                    _picture("W", "the original", site),
                    _picture("M", "what the written nodes compute", site),
                ),
            ),
            _missing(site),
            _facts(
                {
                    "Channels": _channels(site),
                    "Parameters": _change(site.parameters),
                    "Multiply-accumulates": _change(site.macs),
                    "Relative error": None if site.error is None else f"{site.error:.6f}",
                    "Predicted damage": None if damage is None else f"{damage:.3g}",
                    "Scheme": _scheme(site),
                    "Activation": site.activation,
                    "Shares its weight with": site.shares_weight_with,
                    "Reads": site.input,
                    "Makes": site.output,
                    "Nodes": ", ".join(site.nodes),
                    "In the place of": ", ".join(site.replaced),
                }
            ),
        ]


def _picture(name: str, meaning: str, site: SiteReport) -> Element | None:
    thumbnail = _thumbnail(site, name)
    if thumbnail is None:
        return None
    try:
        levels = decoded(thumbnail)
    except ValueError:
        return None
    # The eye tells small weights apart on the square root; black is the largest of both pictures.
    shades = np.rint((LEVELS - 1) * (1.0 - np.sqrt(levels / 255.0))).astype(np.uint8)
    return element(
        "figure",
        {"class": "part picture"},
        element(
            "img",
            {
                "src": data_address(grey_png(shades)),
                "alt": f"Sizes of the weights of {name}, {site.out_channels} rows by "
                f"{site.in_channels} columns",
                "width": 128,
                "height": 128,
                "decoding": "async",
            },
        ),
        element("figcaption", None, element("b", None, name), f" {meaning}"),
    )


def _pair(*pictures: Element | None) -> Element | None:
    """Pictures that stay side by side, to be compared."""
    return (
        element("div", {"class": "pair"}, pictures)
        if any(p is not None for p in pictures)
        else None
    )


def _missing(site: SiteReport) -> Element | None:
    """What to do for pictures that are not there."""
    if _thumbnail(site, "M") is None:
        if _thumbnail(site, "W") is None and site.thumbnails is None:
            return None
        return element(
            "p",
            {"class": "note"},
            "There is no picture of M: the site's nodes are no single matrix, since BatchNorm or an "
            "activation lies between K and L, or they were changed since.",
        )
    if _thumbnail(site, "W") is None:
        return element(
            "p",
            {"class": "note"},
            "W is only in the original model: give it with --original for its picture.",
        )
    return None


def _thumbnail(site: SiteReport, name: str) -> Thumbnail | None:
    return (site.thumbnails or {}).get(name)


def _facts(facts: Mapping[str, str | None]) -> Element:
    return definitions((name, element("bdi", None, each)) for name, each in facts.items() if each)


def _scheme(site: SiteReport) -> str | None:
    if site.scheme is None:
        return None
    return f"{site.scheme}, {site.channels_per_group} channels per group"


def _channels(site: SiteReport) -> str:
    return f"{exact(site.in_channels)} → {exact(site.out_channels)}"


def _change(change: Change) -> str | None:
    if change.before is None and change.after is None:
        return None
    if change.before == change.after:
        return exact(change.before)
    return f"{exact(change.before)} → {exact(change.after)}"
