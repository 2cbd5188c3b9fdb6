"""The table of the arms, and beside it what the papers have for the same question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.from_scratch.runs import Row

PAPER_ROWS = Path(__file__).parents[1] / "paper_rows.json"
PUBLISHED = (("37", "42", "41"), ("11", "13", "12"))
"""Rows of the papers on CIFAR-10, a dense network first, then what it was made into."""

HEADER = (
    "| network | seed | parameters | of dense | pointwise | MACs | epochs | seconds | accuracy |"
)
_RULE = "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
_PAPER_HEADER = "| network | input | parameters | of dense | MACs | accuracy | to dense |"
_PAPER_RULE = "|---|---|--:|--:|--:|--:|--:|"


def markdown(rows: Sequence[Row], epochs: int) -> str:
    """Both tables; accuracies in per cent. ``epochs`` are those that every arm is to have."""
    dense = next((row.parameters for row in rows if row.arm.scheme is None), None)
    lines = [HEADER, _RULE, *(_line(row, dense, epochs) for row in rows)]
    lines += ["", "As published (50 epochs):", "", _PAPER_HEADER, _PAPER_RULE, *_published()]
    return "\n".join(lines)


def _line(row: Row, dense: int | None, epochs: int) -> str:
    share = f"{100 * row.parameters / dense:.1f} %" if dense else ""
    done = f"{row.epochs}" if row.accuracy is not None else f"{row.epochs} of {epochs}"
    seconds = f"{row.seconds:,.0f}" if row.epochs else ""
    cells = [row.arm.label, str(row.arm.seed), f"{row.parameters:,}", share]
    cells += [f"{row.pointwise_parameters:,}", f"{row.macs:,}", done, seconds, _accuracy(row)]
    return f"| {' | '.join(cells)} |"


def _accuracy(row: Row) -> str:
    if row.accuracy is not None:
        return f"**{100 * row.accuracy:.2f}**"
    if row.so_far is not None:
        return f"not finished ({100 * row.so_far:.2f} so far)"
    return "not finished"


def _published() -> list[str]:
    found: dict[str, dict[str, Any]] = {
        row["id"]: row for row in json.loads(PAPER_ROWS.read_text())["rows"]
    }
    lines = []
    for group in PUBLISHED:
        dense = found[group[0]]
        for number in group:
            row = found[number]
            accuracy, base = row["published"]["accuracy"], dense["published"]["accuracy"]
            share = f"{100 * row['params_trainable'] / dense['params_trainable']:.1f} %"
            name = row["model"] if row is dense else _full_name(row)
            change = "" if row is dense else f"{accuracy - base:+.2f}"
            size = "x".join(str(side) for side in row["input_size"])
            lines.append(
                f"| {name} | {size} | {row['params_trainable']:,} | {share} | {row['macs']:,} | "
                f"{accuracy:.2f} | {change} |"
            )
    return lines


def _full_name(row: dict[str, Any]) -> str:
    return f"{row['model'].split()[0]}, {row['scheme']}, {row['ch']} channels per group"
