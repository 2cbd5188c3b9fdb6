"""The curves of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from onnx_igpc.report.html.elements import Element, element
from onnx_igpc.report.html.scales import Scale, line_path
from onnx_igpc.report.html.texts import percent

_HEIGHT = 150.0
_WIDTH = 1000.0
_DOTTED_UP_TO = 40

Points = list[tuple[float, float]]


def training_charts(finetune: Mapping[str, Any] | None) -> list[Element]:
    """Loss, accuracy and agreement over the epochs, as far as they were measured; and all values."""
    rows = (finetune or {}).get("epochs") or []
    if not rows or finetune is None:
        return []
    before = finetune.get("val_before") or {}
    charts = [
        _curves(rows, before, "loss", "Loss", lambda value: f"{value:.3g}"),
        _curves(rows, before, "accuracy", "Top-1 accuracy", percent),
        _curves(rows, before, "agreement", "Top-1 agreement with the teacher", percent),
    ]
    found = [each for each in charts if each is not None]
    return [element("div", {"class": "side-by-side"}, found), _values(rows)]


def _curves(
    rows: Sequence[Mapping[str, Any]],
    before: Mapping[str, Any],
    key: str,
    title: str,
    text: Callable[[float], str],
) -> Element | None:
    training = _points(rows, key)
    validation = _points(rows, f"val_{key}")
    if validation and isinstance(before.get(key), (int, float)):
        validation.insert(0, (0.0, float(before[key])))
    values = [y for _, y in (*training, *validation)]
    if not values:
        return None
    first = 0.0 if validation and validation[0][0] == 0.0 else 1.0
    last = max(x for x, _ in (*training, *validation))
    across = Scale(first, last, _WIDTH)
    low, high = min(values), max(values)
    # Room above and below, so that no line lies on the edge.
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    up = Scale(low - margin, high + margin, _HEIGHT)
    spoken = [
        f"{name}: {text(points[0][1])} to {text(points[-1][1])}"
        for name, points in (("training data", training), ("validation data", validation))
        if points
    ]
    lines = {low: text(low), high: text(high)}
    return figure(
        f"chart-{key}",
        title,
        "; ".join(spoken) + ".",
        frame(
            f"chart-{key}",
            title,
            f"Over {len(rows)} epochs. {'; '.join(spoken)}.",
            _HEIGHT,
            _series("line-muted", "dot-muted", training, across, up),
            _series("line", "dot", validation, across, up),
            lines=[(up.place(value), label) for value, label in lines.items()],
            places=_epochs(first, last),
        ),
        [
            *([Legend("line-muted", "training data")] if training else []),
            *([Legend("line", "validation data")] if validation else []),
        ],
    )


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [
        (float(row.get("epoch") or index), float(row[key]))
        for index, row in enumerate(rows, start=1)
        if isinstance(row.get(key), (int, float))
    ]


def _series(style: str, dots: str, points: Points, across: Scale, up: Scale) -> list[Element]:
    placed = [(across.place(x) or 0.0, _HEIGHT - up.place(y)) for x, y in points]
    if across.high <= across.low:
        placed = [(_WIDTH / 2, y) for _, y in placed]
    made = [stretched(_WIDTH, _HEIGHT, path(style, line_path(placed)))] if len(placed) > 1 else []
    if len(placed) <= _DOTTED_UP_TO:
        made += [
            element(
                "circle", {"class": dots, "cx": f"{x / 10:.2f}%", "cy": f"{TOP + y:.1f}", "r": 2.5}
            )
            for x, y in placed
        ]
    return made


def _epochs(first: float, last: float) -> list[Place]:
    if last <= first:
        return [Place(50.0, f"epoch {last:g}")]
    start = "before" if first == 0.0 else f"epoch {first:g}"
    return [Place(0.0, start, "start"), Place(100.0, f"epoch {last:g}", "end")]


_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("loss", "loss", lambda value: f"{value:.4g}"),
    ("accuracy", "accuracy", percent),
    ("agreement", "agreement", percent),
    ("val_loss", "validation loss", lambda value: f"{value:.4g}"),
    ("val_accuracy", "validation accuracy", percent),
    ("val_agreement", "validation agreement", percent),
    ("learning_rate", "learning rate", lambda value: f"{value:.2g}"),
)


def _values(rows: Sequence[Mapping[str, Any]]) -> Element:
    shown = [each for each in _COLUMNS if any(row.get(each[0]) is not None for row in rows)]
    return opened_by(
        "The values as a table",
        value_table(
            "Every epoch",
            ("epoch", *(label for _, label, _ in shown)),
            [
                (
                    str(row.get("epoch") or index),
                    *(
                        text(row[key]) if row.get(key) is not None else "–"
                        for key, _, text in shown
                    ),
                )
                for index, row in enumerate(rows, start=1)
            ],
        ),
    )
