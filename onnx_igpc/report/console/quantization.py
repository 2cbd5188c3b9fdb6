"""The console view of a quantization: how it was made, what it did to the answers, and what runs it."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnx_igpc.report.quantization import TriedMethod, counts, damage_text, types_text
from onnx_igpc.report.tree import RewriteReport


def show_quantization(console: Console, report: RewriteReport, verbose: bool = False) -> None:
    """The damage first, then the methods that were tried, layers, kernels; all exclusions if ``verbose``."""
    said = report.quantization
    if said is None:
        return
    if (text := damage_text(said)) is not None:
        console.print(escape(text))
    console.print(escape(types_text(said)))
    used = said.samples
    console.print(
        f"ranges by {escape(said.method)} of {used.calibrated} samples of {escape(said.data.source)}"
        + (f", chosen on {used.chosen_by} others:" if said.tried else "")
    )
    if said.tried:
        console.print(_tried(said.tried))
    layers = f"quantized: {counts(said.integer)}"
    if said.floating:
        layers += f"; in float: {counts(said.floating)}"
    console.print(escape(layers))
    if said.excluded:
        console.print(escape(_excluded(said.excluded, verbose)))
    if said.kernels:
        console.print(escape(f"ran as {counts(said.kernels)}; {said.executed}"), style="dim")
    if said.opset is not None:
        console.print(
            f"note: opset {said.opset} has no scales for channels and was raised", style="dim"
        )


def _tried(tried: list[TriedMethod]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    table.add_column("agreement", justify="right", no_wrap=True)
    table.add_column("relative error", justify="right", no_wrap=True)
    for each in tried:
        agreement = "-" if each.agreement is None else f"{each.agreement:.1%}"
        error = "-" if each.relative_error is None else f"{each.relative_error:.3g}"
        table.add_row(escape(each.method), agreement, error)
    return table


def _excluded(excluded: Mapping[str, str], verbose: bool) -> str:
    if verbose:
        return "\n".join(f"in float: {name} ({reason})" for name, reason in excluded.items())
    reasons = dict.fromkeys(excluded.values())
    return f"{len(excluded)} nodes stay in float: {'; '.join(reasons)}"
