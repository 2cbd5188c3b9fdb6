"""Speed in onnxruntime: dense, IGPC written literally and as measured best, low rank, and int8.

``python -m benchmarks.speed build`` writes the models, ``race`` measures one network at one batch size
and number of threads (all variants in turns in one process, against the dense one) and appends a row of
JSON for each variant to a file; rows that are there already are not measured again. ``table`` prints the
rows as Markdown. Give a machine that does nothing else.

Variants: ``dense``; ``literal-CH`` (published V2 at CH channels per group, one node for each part,
BatchNorm folded) and ``auto-CH`` (the same function as ``onnx-igpc lower`` writes it for this machine);
``svd-CH`` (low rank with as many weights in every site); ``int8``, ``literal-CH-int8`` (static quantization
by onnxruntime). All weights are random, which does not matter for time.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.speed_models import DENSE, ModelFolder, Variant
from benchmarks.speed_rows import NETWORKS, VARIANTS, Row, gap_table, overview, read_rows, table
from onnx_igpc.errors import IgpcError
from onnx_igpc.evaluation.benchmark import benchmark
from onnx_igpc.graph.model import file_bytes
from onnx_igpc.report.benchmark import BenchmarkReport, ModelFacts, Race
from onnx_igpc.runtime.setting import Settings

_FORMS = {"rows": table, "overview": overview, "gaps": gap_table}


def race_network(
    models: ModelFolder,
    network: str,
    variants: Sequence[Variant],
    batch: int,
    threads: int,
    rounds: int,
) -> list[Row]:
    """Race the variants of a network against the dense one."""
    raced = [Variant(DENSE), *(v for v in variants if v != Variant(DENSE))]
    # What was measured best is read against the literal form of the same race.
    literal = [Variant("literal", v.ch) for v in raced if v.method == "auto"]
    raced += [variant for variant in dict.fromkeys(literal) if variant not in raced]
    paths = [models.path(network, variant, batch, threads) for variant in raced]
    report = benchmark(
        paths,
        settings=Settings(batches=batch, threads=threads),
        rounds=rounds,
        footprint=False,
        per_operator=True,
    )
    [race] = report.races
    return [
        _row(report, network, variant, race, index, paths[index])
        for index, variant in enumerate(raced)
    ]


def _row(
    report: BenchmarkReport, network: str, variant: Variant, race: Race, index: int, path: Path
) -> Row:
    timing = race.timings[index]
    ratio, limit = timing.speedup, timing.limit
    assert race.threads is not None
    return Row(
        network=network,
        variant=variant.name,
        batch=race.batch,
        threads=race.threads,
        median_ms=round(timing.median_ms, 4),
        quartiles_ms=(round(timing.quartiles_ms[0], 4), round(timing.quartiles_ms[1], 4)),
        samples_per_second=round(timing.samples_per_second, 2),
        speedup=ratio.value if ratio else 1.0,
        speedup_low=ratio.low if ratio else 1.0,
        speedup_high=ratio.high if ratio else 1.0,
        limit=limit.speedup if limit else None,
        reached=limit.reached if limit else None,
        memory_bound=limit.memory_bound if limit else None,
        sites=len(limit.sites) if limit else None,
        file_bytes=file_bytes(path),
        operators=_by_operator(report.models[index], timing.median_ms),
        rounds=report.rounds,
        onnxruntime=report.onnxruntime,
        machine=report.machine,
    )


def _by_operator(facts: ModelFacts, median_ms: float) -> dict[str, float]:
    """Milliseconds of a run by operator, the largest first."""
    time: dict[str, float] = defaultdict(float)
    for run in facts.operators or ():
        time[run.op_type] += run.typical_microseconds
    scale = median_ms / (sum(time.values()) or 1.0)
    return {name: round(scale * time[name], 4) for name in sorted(time, key=lambda n: -time[n])}


def _variants(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[Variant, ...]:
    return tuple(Variant.parse(value) for value in values)


_FOLDER = click.option("--folder", type=click.Path(path_type=Path), required=True)
_NETWORK = click.option("--network", "networks", multiple=True, default=NETWORKS)
_VARIANT = click.option(
    "--variant", "variants", multiple=True, default=VARIANTS, callback=_variants
)
_BATCH = click.option("--batch", "batches", type=int, multiple=True, default=(1, 8))
_THREADS = click.option("--threads", "counts", type=int, multiple=True, default=(1, 2))


@click.group(help=__doc__)
def main() -> None:
    """Commands below."""


@main.command("build")
@_FOLDER
@_NETWORK
@_VARIANT
@_BATCH
@_THREADS
def build_models(
    folder: Path,
    networks: tuple[str, ...],
    variants: tuple[Variant, ...],
    batches: tuple[int, ...],
    counts: tuple[int, ...],
) -> None:
    """Write the models that are not there yet; those of auto measure while they are written."""
    models = ModelFolder(folder)
    for network in networks:
        for variant in variants:
            measured = variant.method == "auto"
            for batch in batches if measured else batches[:1]:
                for threads in counts if measured else counts[:1]:
                    click.echo(models.path(network, variant, batch, threads))


@main.command("race")
@_FOLDER
@click.option("--rows", "file", type=click.Path(path_type=Path), required=True)
@_NETWORK
@_VARIANT
@_BATCH
@_THREADS
@click.option("--rounds", type=int, default=20, show_default=True)
@click.option("--again", is_flag=True, help="Measure rows that are there, too.")
def race_models(
    folder: Path,
    file: Path,
    networks: tuple[str, ...],
    variants: tuple[Variant, ...],
    batches: tuple[int, ...],
    counts: tuple[int, ...],
    rounds: int,
    again: bool,
) -> None:
    """Race what is missing in the file of rows, and append it."""
    models = ModelFolder(folder)
    for network in networks:
        for batch in batches:
            for threads in counts:
                there = set() if again else {row.key for row in read_rows(file)}
                missing = [v for v in variants if (network, v.name, batch, threads) not in there]
                if not missing:
                    continue
                made = race_network(models, network, missing, batch, threads, rounds)
                with file.open("a") as stream:
                    stream.writelines(f"{json.dumps(asdict(row))}\n" for row in made)
                click.echo(table(made))


@main.command("table")
@click.option("--rows", "file", type=click.Path(path_type=Path), required=True)
@click.option(
    "--form",
    type=click.Choice(list(_FORMS)),
    default="rows",
    help="rows: all there is; overview: speed-ups and shares reached; gaps: what stands between.",
)
def print_table(file: Path, form: str) -> None:
    """Print the rows of a file as Markdown."""
    click.echo(_FORMS[form](read_rows(file)))


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except IgpcError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
