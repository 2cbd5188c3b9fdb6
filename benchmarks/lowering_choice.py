"""Is ``--lowering auto`` ever slower than the literal form or the dense model? On models of any kind.

    python benchmarks/lowering_choice.py MODEL... [--ch 16 --ch 32] [--threads 1] [--batch 1] [--precision int8]

Every model is rewritten with random weights, lowered by measurement, and the result raced against the
literal form and the dense model, all of them quantized with --precision int8. One line a model and a size of group; with --json all figures.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

import onnx_igpc
from onnx_igpc.errors import IgpcError
from onnx_igpc.lowering.options import Precision
from onnx_igpc.report.typed_json import to_values
from onnx_igpc.runtime.setting import Setting


def measured(model: Path, ch: int, lowering: onnx_igpc.Lowering) -> dict[str, Any]:
    """What was chosen for a model, and the times of the whole; ``choosing`` is the processor time it took, in seconds."""
    row: dict[str, Any] = {"model": model.stem, "ch": ch, "precision": lowering.precision}
    start = time.process_time()
    try:
        report = onnx_igpc.compress(
            model,
            onnx_igpc.Published(ch, init="random"),
            lowering=lowering,
        ).report
    except IgpcError as error:
        return row | {"error": str(error)}
    row["choosing"] = time.process_time() - start
    said = report.lowering
    if said is None:
        reasons = Counter(str(site.reason) for site in report.sites)
        return row | {"kept": dict(reasons)}
    row["lowerings"] = dict(Counter(site.lowering for site in said.sites.values()))
    return row | to_values(said.model) | {"notes": said.notes, "check": report.checks["lowering"]}


def line(row: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    head = f"| {row['model']} | {row['ch']} "
    if "error" in row:
        return f"{head}| {row['error']} |"
    if "speedup" not in row:
        reasons = "; ".join(f"{count} {reason}" for reason, count in row["kept"].items())
        return f"{head}| stays dense: {reasons} |"
    times = " | ".join(
        f"{1e3 * row['seconds'][name]:.3f}" for name in ("dense", "literal", "chosen")
    )
    ratios = " | ".join(
        "{:.2f} ({:.2f}-{:.2f})".format(*row["speedup"][name]) for name in ("dense", "literal")
    )
    chosen = ", ".join(f"{count} {name}" for name, count in row["lowerings"].items())
    return f"{head}| {times} | {ratios} | {chosen} |"


@click.command()
@click.argument("models", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--ch", "sizes", type=int, multiple=True, default=(16, 32), show_default=True)
@click.option("--provider", default="cpu", show_default=True)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--batch", type=int, default=1, show_default=True)
@click.option("--precision", type=click.Choice(["float32", "int8"]), default="float32")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder for races [none].")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="One line a row.")
def main(
    models: tuple[Path, ...],
    sizes: tuple[int, ...],
    provider: str,
    threads: int,
    batch: int,
    precision: Precision,
    cache: Path | None,
    json_file: Path | None,
) -> None:
    """Race --lowering auto against the literal form and the dense model."""
    setting = Setting(provider, threads, batch)
    lowering = onnx_igpc.Lowering(setting=setting, cache=cache or False, precision=precision)
    click.echo("| model | ch | dense ms | literal ms | auto ms | to dense | to literal | chosen |")
    click.echo("|---|--:|--:|--:|--:|--:|--:|---|")
    for ch in sizes:
        for model in models:
            row = measured(model, ch, lowering)
            click.echo(line(row))
            if json_file is not None:
                with json_file.open("a") as file:
                    file.write(f"{json.dumps(row)}\n")


if __name__ == "__main__":
    main()
