"""The curves of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

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
from onnx_igpc.report.sections import EpochReport, FinetuneReport

_HEIGHT = 150.0
_WIDTH = 1000.0
_DOTTED_UP_TO = 40

Points = list[tuple[float, float]]
Quantity = Literal["loss", "accuracy", "agreement"]


def training_charts(finetune: FinetuneReport | None) -> list[Element]:
    """Loss, accuracy and agreement over the epochs, as far as they were measured; and all values."""
    if finetune is None or not finetune.epochs:
        return []
    charts = [
        _curves(finetune, "loss", "Loss", lambda value: f"{value:.3g}"),
        _curves(finetune, "accuracy", "Top-1 accuracy", percent),
        _curves(finetune, "agreement", "Top-1 agreement with the teacher", percent),
    ]
    found = [each for each in charts if each is not None]
    return [element("div", {"class": "side-by-side"}, found), _values(finetune.epochs)]


def _curves(
    finetune: FinetuneReport, key: Quantity, title: str, text: Callable[[float], str]
) -> Element | None:
    rows, before = finetune.epochs, finetune.val_before
    training = _points(rows, key)
    validation = _points(rows, f"val_{key}")
    kind = finetune.val.kind if finetune.val is not None else None
    judged_by = f"{kind or 'validation'} data"
    at_start = getattr(before, key) if before is not None else None
    if validation and at_start is not None:
        validation.insert(0, (0.0, at_start))
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
        for name, points in (("training data", training), (judged_by, validation))
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
            *([Legend("line", judged_by)] if validation else []),
        ],
    )


def _points(rows: Sequence[EpochReport], key: str) -> Points:
    measured = ((float(row.epoch), getattr(row, key)) for row in rows)
    return [(epoch, value) for epoch, value in measured if value is not None]


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


def _values(rows: Sequence[EpochReport]) -> Element:
    shown = [each for each in _COLUMNS if any(getattr(row, each[0]) is not None for row in rows)]
    return opened_by(
        "The values as a table",
        value_table(
            "Every epoch",
            ("epoch", *(label for _, label, _ in shown)),
            [
                (
                    str(row.epoch),
                    *(
                        "–" if (value := getattr(row, key)) is None else text(value)
                        for key, _, text in shown
                    ),
                )
                for row in rows
            ],
        ),
    )
