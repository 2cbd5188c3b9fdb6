"""Console view of a benchmark: races, limits, what each model is, and where its time goes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnx_igpc.report.numbers import exact

if TYPE_CHECKING:
    from onnx_igpc.report.benchmark import BenchmarkReport, ModelFacts, Race, Timing
    from onnx_igpc.runtime.bandwidth import Bandwidth

_SLOWEST = 10


def show_benchmark(console: Console, report: BenchmarkReport) -> None:
    """Every race: medians, ratios with their interval, limits; then the models' facts."""
    console.print(
        f"onnxruntime {escape(report.onnxruntime)}, {escape(report.provider)}, "
        f"{escape(report.machine)}; {report.rounds} interleaved rounds; {escape(report.inputs)}",
        style="dim",
    )
    for race in report.races:
        console.print(_race_table(race))
        for timing in race.timings:
            _show_limit(console, timing)
        if race.bandwidth is not None:
            console.print(_bandwidth_text(race.bandwidth), style="dim")
    for facts in report.models:
        _show_facts(console, facts)
    for failure in report.failures:
        console.print(f"[red]failed:[/] {escape(failure)}")


def _race_table(race: Race) -> Table:
    threads = "all" if race.threads is None else race.threads
    table = Table(
        title=f"batch {race.batch}, threads {threads}",
        box=None,
        header_style="bold",
        title_justify="left",
    )
    table.add_column("model", overflow="fold")
    for title in ("median ms", "quartiles", "samples/s", "speed-up (95 %)"):
        table.add_column(title, justify="right", no_wrap=True)
    for timing in race.timings:
        low, high = timing.quartiles_ms
        speed = timing.speedup
        table.add_row(
            escape(timing.path),
            f"{timing.median_ms:.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{timing.samples_per_second:.1f}",
            "" if speed is None else f"{speed.value:.2f} ({speed.low:.2f}-{speed.high:.2f})",
        )
    return table


def _show_limit(console: Console, timing: Timing) -> None:
    """As in ``small.onnx: limit 4.3x, reached 3.6x: 84 %``."""
    name = escape(timing.path)
    if timing.no_limit is not None:
        console.print(f"{name}: no limit: {escape(timing.no_limit)}", style="dim")
    if timing.limit is None or timing.speedup is None:
        return
    limit = timing.limit
    bound = f"{limit.memory_bound} of {len(limit.sites)} sites bound by memory"
    console.print(
        f"{name}: limit {limit.speedup:.2f}x, reached {timing.speedup.value:.2f}x: "
        f"{limit.reached:.0%} ({bound}, {limit.outside_ms:.3g} ms outside the sites)"
    )


def _bandwidth_text(bandwidth: Bandwidth) -> str:
    """The rates that limits were computed with, with the sizes they were measured at."""
    rates = ", ".join(
        f"{rate / 1e9:.3g} at {_size_text(size)}"
        for size, rate in zip(bandwidth.sizes, bandwidth.bytes_per_second, strict=True)
    )
    return f"memory read and written, GB/s: {rates}"


def _size_text(size: int) -> str:
    return f"{size / 2**20:g} MiB" if size >= 2**20 else f"{size / 2**10:g} KiB"


def _show_facts(console: Console, facts: ModelFacts) -> None:
    memory = ""
    if facts.footprint is not None:
        memory = f", loads in {facts.footprint.load_seconds * 1000:.0f} ms"
        if facts.footprint.peak_bytes is not None:
            memory += f", peak {facts.footprint.peak_bytes / 2**20:.0f} MiB"
    console.print(f"{escape(facts.path)}: {exact(facts.file_bytes)} bytes{memory}")
    console.print(f"  {escape(facts.executed)}", style="dim")
    for note in facts.notes:
        console.print(f"  note: {escape(note)}", style="dim")
    if facts.operators is not None:
        console.print(_operators_table(facts))
        console.print(_slowest_table(facts))


def _operators_table(facts: ModelFacts) -> Table:
    """Time and number of nodes by operator, under the names that onnxruntime gives them."""
    time: dict[tuple[str, str], float] = defaultdict(float)
    nodes: dict[tuple[str, str], int] = defaultdict(int)
    for run in facts.operators or ():
        key = run.op_type, run.provider.removesuffix("ExecutionProvider")
        time[key] += run.typical_microseconds
        nodes[key] += 1
    total = sum(time.values()) or 1.0
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("  operator")
    table.add_column("ran on")
    for title in ("nodes", "ms a run", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    for key in sorted(time, key=lambda key: -time[key]):
        table.add_row(
            f"  {escape(key[0])}",
            key[1],
            str(nodes[key]),
            f"{time[key] / 1000 / facts.profiled_runs:.3f}",
            f"{time[key] / total:.1%}",
        )
    return table


def _slowest_table(facts: ModelFacts) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("  slowest nodes", overflow="fold")
    table.add_column("operator")
    table.add_column("output")
    table.add_column("ms a run", justify="right", no_wrap=True)
    slowest = sorted(facts.operators or (), key=lambda run: -run.typical_microseconds)[:_SLOWEST]
    for run in slowest:
        shape = run.output_shapes[0] if run.output_shapes else ()
        table.add_row(
            f"  {escape(run.node or run.name)}",
            escape(run.op_type),
            "x".join(map(str, shape)),
            f"{run.typical_microseconds / 1000 / facts.profiled_runs:.3f}",
        )
    return table
