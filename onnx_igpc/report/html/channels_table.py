"""The convolutions that read fewer channels than they did."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_igpc.report.html.charts import value_table
from onnx_igpc.report.html.elements import Child, element
from onnx_igpc.report.numbers import count_text
from onnx_igpc.report.tree import NarrowReport

_HEAD = ("convolution", "reads what this one makes", "channels", "now", "error")


def channels_table(narrowed: Sequence[NarrowReport]) -> list[Child]:
    """How many channels each read and reads; nothing where there is none."""
    if not narrowed:
        return []
    rows = [
        (
            each.name,
            each.maker,
            count_text(each.channels.before),
            count_text(each.channels.after),
            "–" if each.error is None else f"{each.error:.3f}",
        )
        for each in narrowed
    ]
    said = (
        "Channels that one convolution makes and another reads, with what lies between, were left out; the one that "
        "reads them makes up for it as nearly as it can. The error is the part of what it made that it does not make "
        "any more, as fitted."
    )
    return [element("p", None, said), *value_table("Convolutions with fewer channels", _HEAD, rows)]
