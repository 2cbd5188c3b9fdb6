"""The residual blocks in whose place one convolution is."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_igpc.report.html.charts import value_table
from onnx_igpc.report.html.elements import Child, element
from onnx_igpc.report.numbers import count_text
from onnx_igpc.report.tree import BlockReport

_HEAD = (
    "block",
    "channels",
    "pointwise convolutions gone",
    "parameters",
    "now",
    "multiply-accumulates",
    "now",
    "error",
)


def blocks_table(blocks: Sequence[BlockReport]) -> list[Child]:
    """What each block counted, and what the convolution in its place counts; nothing where there is none."""
    if not blocks:
        return []
    rows = [
        (
            block.name,
            str(block.channels),
            str(len(block.sites)),
            count_text(block.parameters.before),
            count_text(block.parameters.after),
            count_text(block.macs.before),
            count_text(block.macs.after),
            "–" if block.error is None else f"{block.error:.3f}",
        )
        for block in blocks
    ]
    said = (
        "Of each block y = x + f(x) one pointwise convolution is left that makes y of x as nearly as it can. "
        "The error is the part of f(x) that it does not make, as fitted: 1 is all of it, which is not much "
        "where f(x) is little beside x."
    )
    return [element("p", None, said), *value_table("Collapsed residual blocks", _HEAD, rows)]
