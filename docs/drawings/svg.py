"""A little SVG writer: shapes with classes, and one style sheet that knows light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Point = tuple[float, float]

GROUP_COLORS = ("#3b78d8", "#d9772b", "#2f9e5f", "#9a5fc4", "#c94f6d", "#7a8b1f", "#1c98a6")
"""Colours of groups, readable on white and on near-black."""

_STYLE = """
text { font-family: -apple-system, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif; fill: #1f2328 }
.card { fill: #ffffff; stroke: #d0d7de }
.muted { fill: #59636e }
.box { fill: #f6f8fa; stroke: #8c959f }
.wire { stroke: #8c959f; fill: none }
.strong { stroke: #59636e; fill: none }
.empty { fill: #eaeef2 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .card { fill: #0d1117; stroke: #3d444d }
  .muted { fill: #9198a1 }
  .box { fill: #151b23; stroke: #6e7681 }
  .wire { stroke: #6e7681 }
  .strong { stroke: #9198a1 }
  .empty { fill: #212830 }
}
"""


class Drawing:
    """Shapes on a card that has its own background, so that it can be read on any page."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="{escape(title)}">'
        )
        self._parts = [f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>"]
        self._parts.append(
            f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>'
        )

    def text(
        self, at: Point, words: str, *, size: float = 13, anchor: str = "middle", kind: str = ""
    ) -> None:
        """Words whose baseline is at ``at``; ``kind`` is a class of the style sheet."""
        self._parts.append(
            f'<text x="{_n(at[0])}" y="{_n(at[1])}" font-size="{_n(size)}" text-anchor="{anchor}"'
            f"{_class(kind)}>{escape(words)}</text>"
        )

    def line(
        self, points: Sequence[Point], *, color: str = "", width: float = 1, dashed: bool = False
    ) -> None:
        """A line through the points, in a colour or in that of a wire."""
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self._parts.append(
            f'<polyline points="{path}" stroke-width="{_n(width)}"{_stroke(color)}{dash}/>'
        )

    def curve(self, start: Point, end: Point, *, color: str = "", width: float = 1) -> None:
        """From left to right, level at both ends."""
        middle = (start[0] + end[0]) / 2
        self._parts.append(
            f'<path d="M{_n(start[0])},{_n(start[1])} C{_n(middle)},{_n(start[1])} {_n(middle)},'
            f'{_n(end[1])} {_n(end[0])},{_n(end[1])}" stroke-width="{_n(width)}"{_stroke(color)}/>'
        )

    def dot(self, at: Point, radius: float, *, color: str = "", hollow: bool = False) -> None:
        look = f' fill="{color}"' if color and not hollow else _class("box")
        edge = f' stroke="{color}" stroke-dasharray="2 2"' if hollow and color else ""
        self._parts.append(
            f'<circle cx="{_n(at[0])}" cy="{_n(at[1])}" r="{_n(radius)}"{look}{edge}/>'
        )

    def rect(
        self, at: Point, size: Point, *, color: str = "", kind: str = "box", round_by: float = 0
    ) -> None:
        look = f' fill="{color}"' if color else _class(kind)
        self._parts.append(
            f'<rect x="{_n(at[0])}" y="{_n(at[1])}" width="{_n(size[0])}" height="{_n(size[1])}"'
            f' rx="{_n(round_by)}"{look}/>'
        )

    def arrow(self, start: Point, end: Point) -> None:
        """A level arrow to the right."""
        x, y = end
        self.line([start, end], width=1.5)
        self.line([(x - 6, y - 4), end, (x - 6, y + 4)], width=1.5)

    def render(self) -> str:
        """The whole file."""
        return "\n".join([self._head, *self._parts, "</svg>", ""])


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _stroke(color: str) -> str:
    return f' stroke="{color}" fill="none"' if color else _class("wire")
