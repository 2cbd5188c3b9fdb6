"""The rows that speed.py measures: kept as lines of JSON, shown as Markdown, and what they fall short of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed_models import DENSE

NETWORKS = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "resnet50",
    "densenet_bc_l100",
    "inception_v3",
)
VARIANTS = (
    "literal-16",
    "literal-32",
    "literal-64",
    "auto-16",
    "auto-32",
    "auto-64",
    "svd-16",
    "svd-32",
    "int8",
    "literal-16-int8",
    "literal-32-int8",
)
_ARITHMETIC, _REST = "convolutions", "rest"
_KINDS: dict[str, frozenset[str]] = {
    _ARITHMETIC: frozenset({"Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"}),
    "reorders": frozenset({"ReorderInput", "ReorderOutput"}),
    "moves": frozenset({"Gather", "Split", "Concat", "Slice", "Reshape", "Transpose", "Pad"}),
    _REST: frozenset(),
}


@dataclass(frozen=True)
class Row:
    """One variant in one race; times in milliseconds a run.

    limit and reached: the most that the speed-up could be, and the share of it that it is; None for int8
    and dense. operators: milliseconds by operator from a profile, scaled to sum to the median.
    """

    network: str
    variant: str
    batch: int
    threads: int
    median_ms: float
    quartiles_ms: tuple[float, float]
    samples_per_second: float
    speedup: float
    speedup_low: float
    speedup_high: float
    limit: float | None
    reached: float | None
    memory_bound: int | None
    sites: int | None
    file_bytes: int
    operators: dict[str, float]
    rounds: int
    onnxruntime: str
    machine: str

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.network, self.variant, self.batch, self.threads


def read_rows(file: Path) -> list[Row]:
    """The rows of a file, the last one of each variant and race; none if there is no file."""
    if not file.exists():
        return []
    rows = [Row(**json.loads(line)) for line in file.read_text().splitlines() if line]
    return list({row.key: row for row in rows}.values())


def gap(row: Row, dense: Row) -> dict[str, float]:
    """What stands between a row and its limit, in milliseconds, by kind; the sum is the whole gap.

    Kinds: convolutions (and matrix products) beyond what the limit leaves them, reorders between
    blocked and plain layout, moving channels (Gather, Split, Concat, Transpose, ...), and the rest
    (sums and activations that were not fused). All but the first are read against the dense model's.
    """
    assert row.limit is not None
    own, before = _by_kind(row.operators), _by_kind(dense.operators)
    gaps = {kind: own[kind] - before[kind] for kind in _KINDS}
    limit_ms = dense.median_ms / row.limit
    arithmetic = limit_ms - sum(before[kind] for kind in _KINDS if kind != _ARITHMETIC)
    gaps[_ARITHMETIC] = own[_ARITHMETIC] - arithmetic
    return gaps


def _by_kind(operators: dict[str, float]) -> dict[str, float]:
    time = dict.fromkeys(_KINDS, 0.0)
    for name, milliseconds in operators.items():
        time[next((kind for kind, names in _KINDS.items() if name in names), _REST)] += milliseconds
    return time


def gap_table(rows: Sequence[Row]) -> str:
    """Where the rows that have a limit lose it, as Markdown; ms."""
    dense = {(row.network, row.batch, row.threads): row for row in rows if row.variant == DENSE}
    titles = " | ".join(_KINDS)
    lines = [
        f"| network | batch | threads | variant | limit ms | ms | {titles} |",
        f"|---|--:|--:|---|--:|--:|{'--:|' * len(_KINDS)}",
    ]
    for row in _sorted(rows):
        first = dense.get((row.network, row.batch, row.threads))
        if row.limit is None or first is None:
            continue
        parts = " | ".join(f"{value:+.2f}" for value in gap(row, first).values())
        lines.append(
            f"| {row.network} | {row.batch} | {row.threads} | {row.variant} | "
            f"{first.median_ms / row.limit:.2f} | {row.median_ms:.2f} | {parts} |"
        )
    return "\n".join(lines)


def overview(rows: Sequence[Row]) -> str:
    """A Markdown table for each batch size and number of threads: speed-ups, and the shares reached."""
    found = {row.key: row for row in rows}
    tables = []
    for batch, threads in sorted({(row.batch, row.threads) for row in rows}, key=lambda s: s[::-1]):
        own = [row for row in _sorted(rows) if (row.batch, row.threads) == (batch, threads)]
        networks = list(dict.fromkeys(row.network for row in own))
        names = [name for name in VARIANTS if any(row.variant == name for row in own)]
        lines = [
            f"Batch {batch}, {threads} {'thread' if threads == 1 else 'threads'}:\n",
            f"| network | dense ms | {' | '.join(names)} |",
            f"|---|--:|{'--:|' * len(names)}",
        ]
        for network in networks:
            dense = found[network, DENSE, batch, threads]
            cells = [_cell(found.get((network, name, batch, threads))) for name in names]
            lines.append(f"| {network} | {dense.median_ms:.2f} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    reached = "" if row.reached is None else f" ({row.reached:.0%})"
    return f"{row.speedup:.2f}{reached}"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, in the order of NETWORKS, batch, threads and VARIANTS."""
    lines = [
        "| network | batch | threads | variant | ms | samples/s | MB | speed-up (95 %) | limit | reached |",
        "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]

    for row in _sorted(rows):
        ratio = f"{row.speedup:.2f} ({row.speedup_low:.2f}-{row.speedup_high:.2f})"
        limit = "" if row.limit is None else f"{row.limit:.2f}"
        reached = "" if row.reached is None else f"{row.reached:.0%}"
        lines.append(
            f"| {row.network} | {row.batch} | {row.threads} | {row.variant} | {row.median_ms:.2f} "
            f"| {row.samples_per_second:.0f} | {row.file_bytes / 1e6:.1f} "
            f"| {'' if row.variant == DENSE else ratio} | {limit} | {reached} |"
        )
    return "\n".join(lines)


def _sorted(rows: Sequence[Row]) -> list[Row]:
    order = {name: i for i, name in enumerate((DENSE, *VARIANTS))}
    networks = {name: i for i, name in enumerate(NETWORKS)}

    def place(row: Row) -> tuple[int, int, int, int]:
        # Networks that are not raced by default, such as EfficientNet-B1, come last.
        first = networks.get(row.network, len(networks))
        return first, row.batch, row.threads, order.get(row.variant, len(order))

    return sorted(rows, key=place)
