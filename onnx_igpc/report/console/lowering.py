"""The console view of a lowering: what each site became, and what the whole model gained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnx_igpc.report.tree import RewriteReport, lowered_sites


def show_lowering(console: Console, report: RewriteReport, verbose: bool = False) -> None:
    """Sites by lowering, the sites' times if ``verbose``, and the times of whole models."""
    said = report.lowering
    if said is None:
        return
    count = said.get("threads")
    threads = "onnxruntime's threads" if count is None else f"threads {count}"
    where = f"lowered for {said.get('provider', '?')}, {threads}, batch {said.get('batch', 1)}"
    if "onnxruntime" in said:
        where += f", onnxruntime {said['onnxruntime']}, {said['device']}"
    console.print(escape(where), style="dim")
    sites = lowered_sites(said)
    counts = Counter(label for _, label, _ in sites)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    console.print(f"{len(sites)} sites: {escape(listed)}")
    if verbose:
        console.print(_sites(said))
    if "model" in said:
        console.print(_whole(said["model"]))
    if "races" in said:
        races = said["races"]
        console.print(
            f"races of sites: {races['measured']} measured, {races['reused']} known", style="dim"
        )
    for note in said.get("notes", []):
        console.print(f"note: {escape(note)}", style="dim")


def _sites(lowering: Mapping[str, Any]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("site", overflow="fold")
    table.add_column("lowering", no_wrap=True)
    table.add_column("microseconds in its surroundings", overflow="fold")
    table.add_column("reason", overflow="fold")
    for name, label, reason in lowered_sites(lowering):
        seconds = lowering["sites"][name].get("seconds") or {}
        ordered = sorted(seconds, key=lambda each: float(seconds[each]))
        times = ", ".join(f"{each} {1e6 * seconds[each]:.0f}" for each in ordered)
        table.add_row(escape(name), escape(label), escape(times), escape(reason))
    return table


def _whole(model: Mapping[str, Any]) -> Table:
    """Milliseconds of the variants, and how many times faster the chosen one is."""
    table = Table(box=None, header_style="bold")
    table.add_column("whole model", no_wrap=True)
    table.add_column("median ms", justify="right", no_wrap=True)
    table.add_column("chosen is faster by (95 %)", justify="right", no_wrap=True)
    for name, seconds in model["seconds"].items():
        ratio = model["speedup"].get(name)
        faster = "" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f}-{ratio[2]:.2f})"
        table.add_row(escape(name), f"{1e3 * seconds:.3f}", faster)
    if model.get("predicted") is not None:
        table.add_row("predicted from sites", f"{1e3 * model['predicted']:.3f}", "")
    return table
