"""Our networks beside every row of the published result tables.

``python benchmarks/paper_tables.py ROWS.json [--markdown FILE]`` builds the network of each row
(for the rows of scheme V1 and V2 its k variant), compresses it in the paper's form and counts on
the graph that was written. Three numbers must come out: trainable parameters, multiply-accumulates,
and the "flops" as the papers count them. The exit code is 1 if one of them differs and no note of
the row explains it; a note explains a difference by naming the number that we count.

ROWS.json is ``{"rows": [...]}``; a row has ``id``, ``model``, ``net``, ``scheme`` (baseline, V1 or
V2), ``ch``, ``dataset``, ``classes``, ``input_size``, ``skip_stride``, ``params_trainable``,
``macs``, ``published`` (``params``, ``flops``) and ``notes``.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import onnx

# A script runs with its own folder on the path; sample_models lies beside that folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tensorflow_flops import tensorflow_flops
from onnx_igpc import compress
from onnx_igpc.errors import DataError, IgpcError, UsageError
from onnx_igpc.graph import cost
from onnx_igpc.planning.options import Published
from onnx_igpc.sites.find import SiteFilter
from sample_models import build, paper_excludes

NETWORK_NAMES = {
    "effb0": "efficientnet_b0",
    "densenet_l100": "densenet_bc_l100",
    "inception_v3": "inception_v3",
    "mobilenet": "mobilenet_v1",
    "mobilenet_v3_large": "mobilenet_v3_large",
}
_SCHEMES: dict[str, Literal["v1", "v2"]] = {"V1": "v1", "V2": "v2"}


@dataclass(frozen=True)
class Build:
    """What decides the numbers of a row; several rows share one."""

    network: str
    classes: int
    size: tuple[int, int]
    skip_stride: int | None
    scheme: Literal["v1", "v2"] | None
    channels_per_group: int


@dataclass(frozen=True)
class Counts:
    """Trainable parameters, and work for the passes of one image."""

    parameters: int
    macs: int
    flops: int


@dataclass(frozen=True)
class Row:
    """One published row: what to build, and what was printed or counted for it.

    ``expected.parameters`` and ``expected.macs`` are the exact counts of the published networks;
    ``printed_parameters`` and ``expected.flops`` are the numbers of the printed table.
    """

    identity: str
    model: str
    dataset: str
    build: Build
    expected: Counts
    printed_parameters: int
    notes: tuple[str, ...]

    @property
    def passes(self) -> int:
        """Forward passes per image: two where the class is the mean over an image and its flip."""
        return 2 if "H Flip" in self.model else 1


@dataclass(frozen=True)
class Verdict:
    """A row, our counts and every difference, each with whether a note explains it."""

    row: Row
    counts: Counts
    differences: tuple[tuple[str, bool], ...]

    @property
    def holds(self) -> bool:
        return all(explained for _, explained in self.differences)

    def __str__(self) -> str:
        if not self.differences:
            return "match"
        return "; ".join(
            f"{text} ({'explained' if explained else 'NOT EXPLAINED'})"
            for text, explained in self.differences
        )


def read_rows(path: Path) -> list[Row]:
    """The rows of ROWS.json.

    Raises:
        DataError: the file cannot be read or lacks a field.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return [_row(entry) for entry in entries]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a table of published rows: {error!r}") from error


def _row(entry: dict[str, Any]) -> Row:
    scheme = None if entry["scheme"] == "baseline" else _SCHEMES[entry["scheme"]]
    height, width = entry["input_size"]
    return Row(
        identity=entry["id"],
        model=entry["model"],
        dataset=entry["dataset"],
        build=Build(
            network=NETWORK_NAMES[entry["net"]],
            classes=entry["classes"],
            size=(height, width),
            skip_stride=entry["skip_stride"] if entry["skip_stride"] >= 0 else None,
            scheme=scheme,
            channels_per_group=entry["ch"] or 0,
        ),
        expected=Counts(entry["params_trainable"], entry["macs"], entry["published"]["flops"]),
        printed_parameters=entry["published"]["params"],
        notes=tuple(entry["notes"]),
    )


@functools.cache
def measure(build_: Build) -> Counts:
    """Builds, compresses where there is a scheme, and counts on the graph that was written."""
    model = build(
        build_.network,
        variant="plain" if build_.scheme is None else "k",
        classes=build_.classes,
        size=build_.size,
        skip_stride=build_.skip_stride,
    )
    if build_.scheme is not None:
        model = _compressed(model, build_.scheme, build_)
    counted = cost.count(model)
    return Counts(counted.parameters, counted.macs, tensorflow_flops(model, counted.macs))


def _compressed(
    model: onnx.ModelProto, scheme: Literal["v1", "v2"], build_: Build
) -> onnx.ModelProto:
    return compress(
        model,
        Published(build_.channels_per_group, scheme=scheme, form="paper"),
        sites=SiteFilter(exclude=paper_excludes(build_.network)),
    ).model


def judge(row: Row) -> Verdict:
    """Compares our counts with the row."""
    once = measure(row.build)
    counts = Counts(once.parameters, once.macs * row.passes, once.flops * row.passes)
    pairs = (
        ("parameters", counts.parameters, row.expected.parameters),
        ("MACs", counts.macs, row.expected.macs),
        ("printed parameters", counts.parameters, row.printed_parameters),
        ("printed flops", counts.flops, row.expected.flops),
    )
    differences = tuple(
        (f"{what}: {ours - theirs:+,}", any(str(ours) in note for note in row.notes))
        for what, ours, theirs in pairs
        if ours != theirs
    )
    return Verdict(row, counts, differences)


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The table as a Markdown page."""
    matching = sum(not verdict.differences for verdict in verdicts)
    lines = [
        "# The published tables, row by row",
        "",
        "Written by `python benchmarks/paper_tables.py benchmarks/paper_rows.json --markdown docs/paper-tables.md`.",
        "For each row of the result tables of Schwarz Schuler et al. (V1: CCIA 2021, Mendel 2022;",
        "V2: Entropy 2022) the network is built by `sample_models`, compressed by",
        "`onnx-igpc compress --form paper` and counted on the graph that was written. Parameters",
        "are the trainable ones; flops are counted as the papers do (the TensorFlow profiler's",
        "float operations, halved: multiply-accumulates plus biases, products and pooling).",
        "",
        f"{matching} of {len(verdicts)} rows equal the printed numbers to the last unit.",
        "",
        "| row | network | data | input | parameters | printed | MACs | flops | printed | |",
        "|---|---|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for verdict in verdicts:
        row, counts = verdict.row, verdict.counts
        cells = [
            row.identity,
            row.model,
            row.dataset,
            f"{row.build.size[0]}x{row.build.size[1]}",
            f"{counts.parameters:,}",
            f"{row.printed_parameters:,}",
            f"{counts.macs:,}",
            f"{counts.flops:,}",
            f"{row.expected.flops:,}",
            str(verdict),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    explained = [verdict.row for verdict in verdicts if verdict.differences]
    if explained:
        lines += ["", "## Notes on rows that differ", ""]
        lines += [f"* Row {row.identity}: {note}." for row in explained for note in row.notes]
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("rows_file", metavar="ROWS.json", type=click.Path(path_type=Path))
@click.option("--markdown", "markdown_file", type=click.Path(path_type=Path), help="Page to write.")
def main(rows_file: Path, markdown_file: Path | None) -> None:
    """Compare the networks we write with the published tables; exit code 1 on a difference."""
    try:
        verdicts = []
        for row in read_rows(rows_file):
            verdict = judge(row)
            verdicts.append(verdict)
            click.echo(
                f"{row.identity}  {row.model:<28} {row.dataset:<28}"
                f"{verdict.counts.parameters:>12,} of {row.printed_parameters:>12,} parameters"
                f"{verdict.counts.macs:>15,} MACs"
                f"{verdict.counts.flops:>15,} of {row.expected.flops:>13,} flops  {verdict}"
            )
        if markdown_file is not None:
            _write(markdown_file, markdown(verdicts))
    except IgpcError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    failed = [verdict.row.identity for verdict in verdicts if not verdict.holds]
    if failed:
        click.echo(f"error: rows differ without an explanation: {', '.join(failed)}", err=True)
        sys.exit(1)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


if __name__ == "__main__":
    main()
