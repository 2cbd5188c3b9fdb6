"""The layout of a rewritten site, drawn: blocks of K, the interleave, blocks of L.

Each drawing is made once for all sites that share it, and has no text, so that it can take any size; what
it shows is said beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.report.html.charts import path
from onnx_igpc.report.html.elements import Element, element

# Up to so many blocks are drawn one by one; of more, what part of a cell of a coarse grid they fill.
_MOST_BLOCKS = 1500
_GRID = 64
_MOST_LINES = 72

Block = tuple[int, int, int, int]
"""First row, first column, rows, columns."""


class Drawings:
    """The drawings of a page, each kept once; :meth:`definitions` goes into the page."""

    def __init__(self) -> None:
        self._made: dict[object, tuple[str, Element]] = {}

    def of(self, layout: GroupLayout) -> list[Element]:
        """Figures of the parts of a layout, in the order in which they are computed."""
        figures = [self._stage("K", layout.k)]
        if layout.interleave is not None:
            figures.append(self._order("P", "interleave", layout.interleave, _first_rows(layout.k)))
        if layout.l is not None:
            figures.append(self._stage("L", layout.l))
        if layout.output_interleave is not None:
            rows = range(0) if layout.l is not None else _first_rows(layout.k)
            figures.append(self._order("", "order of the output", layout.output_interleave, rows))
        return figures

    def definitions(self) -> Element:
        """The symbols that the figures use."""
        return element(
            "svg",
            {"class": "defs", "width": 0, "height": 0, "aria-hidden": "true"},
            [symbol for _, symbol in self._made.values()],
        )

    def _stage(self, name: str, stage: GroupedStage) -> Element:
        key = (name, stage)
        if key not in self._made:
            self._made[key] = _symbol(
                len(self._made), _matrix(stage), stage.in_channels, stage.out_channels
            )
        return _figure(self._made[key][0], "matrix", name, stage_text(stage))

    def _order(self, name: str, what: str, order: tuple[int, ...], first: range) -> Element:
        key = (name, order, first)
        if key not in self._made:
            self._made[key] = _symbol(len(self._made), _crossing(order, first), 1, len(order))
        text = f"{what} of {len(order)} channels"
        return _figure(self._made[key][0], "order", name, text)


def formula(layout: GroupLayout) -> str:
    """What the layout computes, in the notation of the papers."""
    if layout.l is None:
        return "y = P K x" if layout.output_interleave is not None else "y = K x"
    through = "L P K x" if layout.interleave is not None else "L K x"
    return f"y = K x + {through}" if layout.has_sum else f"y = {through}"


def stage_text(stage: GroupedStage) -> str:
    """The groups of K or L in words."""
    sizes = sorted({path.channels_per_group for path in stage.paths})
    channels = f"{sizes[0]} channels" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} channels"
    groups = "1 group" if stage.groups == 1 else f"{stage.groups} groups"
    copied = len(stage.replicated)
    return (
        f"{stage.out_channels} × {stage.in_channels}: {groups} of {channels}"
        + (f", {copied} of them copied" if copied else "")
        + (", read in another order" if _reorders(stage) else "")
    )


def blocks_of(stage: GroupedStage) -> list[Block]:
    """The blocks of the stage's matrix, its columns in the order in which they are first read."""
    column = {channel: index for index, channel in enumerate(stage.input_order)}
    blocks: list[Block] = []
    row = 0
    for path_ in stage.paths:
        for group in range(path_.groups):
            places = sorted({column[channel] for channel in path_.group_inputs(group)})
            blocks += [
                (row, first, path_.filters_per_group, count) for first, count in _runs(places)
            ]
            row += path_.filters_per_group
    return blocks


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive places as (first, how many)."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and place == runs[-1][0] + runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((place, 1))
    return runs


def _reorders(stage: GroupedStage) -> bool:
    return list(stage.input_order) != sorted(stage.input_order)


def _first_rows(stage: GroupedStage) -> range:
    """The rows that the first group of K makes; those of a second path are not followed."""
    return range(stage.paths[0].filters_per_group)


def _matrix(stage: GroupedStage) -> list[Element | None]:
    blocks = blocks_of(stage)
    if len(blocks) > _MOST_BLOCKS:
        return _coarse(blocks, stage)
    even = [block for index, block in enumerate(blocks) if index % 2 == 0]
    odd = [block for index, block in enumerate(blocks) if index % 2]
    return [path("block", _rectangles(even)), path("block second", _rectangles(odd))]


def _rectangles(blocks: Sequence[Block]) -> str:
    return "".join(
        f"M{column} {row}h{columns}v{rows}h-{columns}z" for row, column, rows, columns in blocks
    )


def _coarse(blocks: Sequence[Block], stage: GroupedStage) -> list[Element | None]:
    """The cells of a grid that hold a block, for layouts with too many blocks to draw."""
    filled = np.zeros((min(_GRID, stage.out_channels), min(_GRID, stage.in_channels)), bool)
    per_row = stage.out_channels / filled.shape[0]
    per_column = stage.in_channels / filled.shape[1]
    for row, column, rows, columns in blocks:
        filled[
            int(row / per_row) : int((row + rows - 1) / per_row) + 1,
            int(column / per_column) : int((column + columns - 1) / per_column) + 1,
        ] = True
    d = "".join(
        f"M{first * per_column:.1f} {index * per_row:.1f}h{count * per_column:.1f}"
        f"v{per_row:.1f}h-{count * per_column:.1f}z"
        for index, cells in enumerate(filled)
        for first, count in _runs(np.flatnonzero(cells).tolist())
    )
    return [path("block", d)]


def _crossing(order: Sequence[int], first: range) -> list[Element | None]:
    """A line from where a channel lies to where it goes; those of the first group stand out."""
    stride = max(1, -(-len(order) // _MOST_LINES))
    followed = [place for place, channel in enumerate(order) if channel in first]
    thinned = followed[:: max(1, -(-len(followed) // 24))]
    others = [place for place in range(0, len(order), stride) if order[place] not in first]

    def lines(places: Sequence[int]) -> str:
        return "".join(f"M0 {order[place] + 0.5:g}L1 {place + 0.5:g}" for place in places)

    return [path("thread", lines(others)), path("thread followed", lines(thinned))]


def _symbol(
    number: int, parts: Sequence[Element | None], width: int, height: int
) -> tuple[str, Element]:
    name = f"drawing-{number}"
    attributes = {"id": name, "viewBox": f"0 0 {width} {height}", "preserveAspectRatio": "none"}
    return name, element("symbol", attributes, parts)


def _figure(symbol: str, style: str, name: str, text: str) -> Element:
    label = f"{name}: {text}" if name else text
    return element(
        "figure",
        {"class": f"part {style}"},
        element(
            "svg",
            {"role": "img", "aria-label": label},
            element("use", {"href": f"#{symbol}", "width": "100%", "height": "100%"}),
        ),
        element(
            "figcaption",
            None,
            element("b", None, name) if name else None,
            " " if name else None,
            text,
        ),
    )
