"""The picture of benchmarks.pareto: time to the right, agreement upwards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parents[1] / "docs" / "drawings"))

from svg import GROUP_COLORS, Drawing  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from benchmarks.pareto import Row

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 24, 56, 52
_FLOAT, _INT8, _TRAINED = GROUP_COLORS[0], GROUP_COLORS[1], GROUP_COLORS[2]


def picture(title: str, rows: Sequence[Row], best: Sequence[Row]) -> str:
    """An SVG file: a dot a row, numbered as in the table, and a line through those that none beats."""
    drawing = Drawing(_WIDTH, _HEIGHT, f"{title}: agreement over latency")
    drawing.text((_LEFT, 24), title, size=14, anchor="start")
    for place, (name, color) in enumerate(
        (("float32", _FLOAT), ("int8", _INT8), ("int8, trained for it", _TRAINED))
    ):
        drawing.dot((_LEFT + 6 + 130 * place, 40), 5, color=color)
        drawing.text((_LEFT + 16 + 130 * place, 44), name, size=12, anchor="start", kind="muted")
    fastest = 0.95 * min(row.median_ms for row in rows)
    span = 1.02 * max(row.median_ms for row in rows) - fastest

    def at(row: Row) -> tuple[float, float]:
        share = row.agreement[0] if row.agreement else 0.0
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (row.median_ms - fastest) / span
        return x, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)

    for tenth in range(0, 11, 2):
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - tenth / 10)
        drawing.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], width=0.5)
        drawing.text((_LEFT - 8, y + 4), f"{10 * tenth} %", size=11, anchor="end", kind="muted")
    for part in range(5):
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * part / 4
        words = f"{fastest + span * part / 4:.2f} ms"
        drawing.text((x, _HEIGHT - _BOTTOM + 20), words, size=11, kind="muted")
    drawing.text((_WIDTH / 2, _HEIGHT - 12), "latency, median", size=12, kind="muted")
    drawing.line([at(row) for row in sorted(best, key=lambda each: each.median_ms)], dashed=True)
    for number, row in enumerate(sorted(rows, key=lambda each: -each.median_ms), 1):
        color = _FLOAT
        if "int8" in row.name:
            color = _TRAINED if "trained for int8" in row.name else _INT8
        x, y = at(row)
        drawing.dot((x, y), 5, color=color)
        drawing.text((x, y - 8), str(number), size=10)
    return str(drawing.render())
