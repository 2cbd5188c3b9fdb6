"""How long the tool itself takes: start-up, and inspect and compress against the size of the model.

``python -m benchmarks.own_speed`` makes models of 1 to 500 million parameters (pointwise layers of 1024
channels, weights in an external file), runs each command on each in a process of its own, on one thread,
and prints a table with CPU seconds, wall-clock seconds and peak memory. The growth exponent is the slope
of a line through the logarithms: 1 means twice the time for twice the parameters. CPU seconds hardly
depend on what else the machine does; start-up is measured in both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.large_model import write_external

CHANNELS = 1024
MILLIONS = (1, 3, 10, 30, 100, 250, 500)
COMMANDS = ("inspect", "compress")
STARTS = 15
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# What a measured process runs: peak memory is read inside it, as the parent's must not count.
_CHILD = """
import json, sys, time
import onnx_igpc
from onnx_igpc.runtime.footprint import peak_memory
command, source, target, init = sys.argv[1:]
wall, cpu = time.perf_counter(), time.process_time()
if command == "inspect":
    onnx_igpc.inspect(source)
else:
    onnx_igpc.compress(source, onnx_igpc.Published(init=init)).save(target)
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, peak_memory()]))
"""


@dataclass(frozen=True)
class Measurement:
    """One command on one model; seconds without the start of Python and its imports."""

    command: str
    parameters: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class StartUp:
    """``onnx-igpc --help`` from nothing: medians over several starts, after one that is not counted."""

    seconds: float
    cpu_seconds: float
    starts: int


def measure_start_up(starts: int = STARTS) -> StartUp:
    """Start ``python -m onnx_igpc --help`` that often."""
    wall, cpu = [], []
    for _ in range(starts + 1):
        before, start = os.times(), time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "onnx_igpc", "--help"], capture_output=True, check=True
        )
        wall.append(time.perf_counter() - start)
        after = os.times()
        children = after.children_user - before.children_user
        cpu.append(children + after.children_system - before.children_system)
    return StartUp(statistics.median(wall[1:]), statistics.median(cpu[1:]), starts)


def measure(command: str, source: Path, parameters: int, init: str) -> Measurement:
    """Run a command on a model file in a process of its own, on one thread."""
    target = source.with_name("compressed.onnx")
    result = subprocess.run(
        [sys.executable, "-c", _CHILD, command, str(source), str(target), init],
        capture_output=True,
        text=True,
        env=os.environ | _ONE_THREAD,
    )
    if result.returncode:
        raise click.ClickException(f"{command} failed: {result.stderr.strip().splitlines()[-1]}")
    seconds, cpu_seconds, peak = json.loads(result.stdout.splitlines()[-1])
    return Measurement(command, parameters, seconds, cpu_seconds, peak)


def exponent(rows: Sequence[Measurement], field: str) -> float:
    """The slope of log(field) over log(parameters)."""
    x = np.log([row.parameters for row in rows])
    y = np.log([getattr(row, field) for row in rows])
    return float(np.polyfit(x, y, 1)[0])


def table(rows: Sequence[Measurement]) -> str:
    """A row a model and command, and the growth exponents below them."""
    lines = [
        "| command | parameters | CPU seconds | seconds | peak memory, MiB |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.command} | {row.parameters / 1e6:.0f} M | {row.cpu_seconds:.2f} | "
            f"{row.seconds:.2f} | {row.peak_bytes / 2**20:.0f} |"
        )
    for command in dict.fromkeys(row.command for row in rows):
        own = [row for row in rows if row.command == command]
        large = [row for row in own if row.parameters >= 10e6]
        for label, chosen in (("all sizes", own), ("from 10 M", large)):
            if len(chosen) > 1:
                lines.append(
                    f"\n{command}, {label}: CPU time grows with the parameters to the power "
                    f"{exponent(chosen, 'cpu_seconds'):.2f}, peak memory "
                    f"{exponent(chosen, 'peak_bytes'):.2f}"
                )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--millions", type=float, multiple=True, default=MILLIONS, show_default=True)
@click.option("--command", "commands", type=click.Choice(COMMANDS), multiple=True, default=COMMANDS)
@click.option("--init", type=click.Choice(["fitted", "random"]), default="fitted")
@click.option("--start-up/--no-start-up", default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where models go for a while.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Append rows here.")
def main(
    millions: tuple[float, ...],
    commands: tuple[str, ...],
    init: str,
    start_up: bool,
    folder: Path | None,
    json_file: Path | None,
) -> None:
    """Measure and print."""
    if start_up:
        started = measure_start_up()
        click.echo(
            f"--help: {started.seconds:.3f} s, {started.cpu_seconds:.3f} s of CPU "
            f"(medians of {started.starts} starts)\n"
        )
    rows = []
    for million in millions:
        layers = max(1, round(million * 1e6 / CHANNELS**2))
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source = write_external(Path(scratch), layers, CHANNELS)
            for command in commands:
                rows.append(measure(command, source, layers * CHANNELS**2, init))
                click.echo(f"{rows[-1]}", err=True)
                if json_file is not None:
                    with json_file.open("a") as stream:
                        stream.write(f"{json.dumps(asdict(rows[-1]))}\n")
    click.echo(table(sorted(rows, key=lambda row: (-COMMANDS.index(row.command), row.parameters))))


if __name__ == "__main__":
    main()
