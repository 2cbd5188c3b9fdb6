"""An optimization on the console: its verdict."""

from __future__ import annotations

from rich.console import Console

from onnx_igpc.report.optimization import OptimizationReport


def show_optimization(out: Console, report: OptimizationReport) -> None:
    """The verdict, and what is to be known besides."""
    for line in report.verdict:
        out.print(line, markup=False)
    for warning in report.warnings:
        out.print(f"warning: {warning}", markup=False)
