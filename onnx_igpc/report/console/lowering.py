"""The console view of a lowering: what each site became, and what the whole model gained."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnx_igpc.report.sections import LoweringReport, WholeModelReport
from onnx_igpc.report.tree import RewriteReport


def show_lowering(console: Console, report: RewriteReport, verbose: bool = False) -> None:
    """Sites by lowering, the sites' times if ``verbose``, and the times of whole models."""
    said = report.lowering
    if said is None:
        return
    threads = "onnxruntime's threads" if said.threads is None else f"threads {said.threads}"
    precision = f", {said.precision}" if said.precision is not None else ""
    where = f"lowered for {said.provider}{precision}, {threads}, batch {said.batch}"
    if said.onnxruntime is not None:
        where += f", onnxruntime {said.onnxruntime}, {said.device}"
    console.print(escape(where), style="dim")
    console.print(f"{len(said.sites)} sites: {escape(said.counts)}")
    if verbose:
        console.print(_sites(said))
    if said.model is not None:
        console.print(_whole(said.model))
    if said.races is not None:
        races = said.races
        console.print(
            f"races of sites: {races.measured} measured, {races.reused} known", style="dim"
        )
    if said.precision is not None and report.quantization is None:
        times = f"all times are of {said.precision} forms; " if said.model is not None else ""
        console.print(f"{times}what is written is float32: onnx-igpc quantize comes next")
    for note in said.notes or ():
        console.print(f"note: {escape(note)}", style="dim")


def _sites(lowering: LoweringReport) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("site", overflow="fold")
    table.add_column("lowering", no_wrap=True)
    table.add_column("microseconds in its surroundings", overflow="fold")
    table.add_column("reason", overflow="fold")
    for name, site in lowering.sites.items():
        ordered = sorted((site.seconds or {}).items(), key=lambda each: each[1])
        times = ", ".join(f"{label} {1e6 * seconds:.0f}" for label, seconds in ordered)
        table.add_row(escape(name), escape(site.lowering), escape(times), escape(site.reason or ""))
    return table


def _whole(model: WholeModelReport) -> Table:
    """Milliseconds of the variants, and how many times faster the chosen one is."""
    table = Table(box=None, header_style="bold")
    table.add_column("whole model", no_wrap=True)
    table.add_column("median ms", justify="right", no_wrap=True)
    table.add_column("chosen is faster by (95 %)", justify="right", no_wrap=True)
    for name, seconds in model.seconds.items():
        faster = ""
        if name in model.speedup:
            value, low, high = model.speedup[name]
            faster = f"{value:.2f} ({low:.2f}-{high:.2f})"
        table.add_row(escape(name), f"{1e3 * seconds:.3f}", faster)
    if model.predicted is not None:
        table.add_row("predicted from sites", f"{1e3 * model.predicted:.3f}", "")
    return table
