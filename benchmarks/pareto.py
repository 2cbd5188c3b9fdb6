"""Accuracy over latency: a network dense and compressed, in float and in int8, all raced in one process.

    python -m benchmarks.pareto MODEL --calibration IMAGES --validation LABELLED --folder WORK

makes the points in WORK (those that are there already are kept), compares the answers of each with
MODEL's on the labelled images, races all of them in turns, and prints a table; --json, --markdown and --svg
write it down. Points: MODEL; MODEL quantized by ``quantize``, and by ``quantize_static`` as it comes; what ``compress`` makes
of it for every --budget (of time: by float times, and by int8 times), lowered for float, and lowered for int8 and
quantized. ``--trained`` adds both after training, and int8 after training for int8, of MODEL, too; ``--rivals SHARE`` published V2, low rank and
pruned channels. ``--also NAME=FILE`` adds other models of the same inputs. Without --validation there are
times alone, for random weights.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.pareto_picture import picture
from benchmarks.pareto_points import DENSE, DENSE_INT8, Points, Wanted
from onnx_igpc import Calibration, Quantization, Setting
from onnx_igpc.cli.preprocessing import PreprocessingOptions, preprocessing_options
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.evaluation.verify import verify
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import file_bytes, open_model
from onnx_igpc.lowering.race import race_models
from onnx_igpc.report.quantization import wilson_interval
from onnx_igpc.runtime.racing import speedup

Interval = tuple[float, float, float]
"""A value, and the ends of its 95 % interval."""


@dataclass(frozen=True)
class Row:
    """One point. ``over_dense``, ``over_int8``: how many times as fast as MODEL, and as MODEL quantized, if it was.

    ``agreement`` with MODEL's answers and ``top1`` are from 0 to 1, ``None`` without labelled images.
    """

    name: str
    median_ms: float
    over_dense: Interval
    over_int8: Interval | None
    agreement: Interval | None
    top1: float | None
    parameters: int
    file_bytes: int


def measured(
    points: dict[str, Path],
    validation: Path | None,
    preprocessing: Preprocessing | None,
    setting: Setting,
    rounds: int,
) -> list[Row]:
    """Race all points against each other, and compare their answers with those of the first."""
    models = [open_model(path) for path in points.values()]
    seconds = race_models(models, setting, rounds)
    column = {name: seconds[:, index] for index, name in enumerate(points)}
    rows = []
    for index, (name, path) in enumerate(points.items()):
        agreement, top1 = None, None
        if validation is not None:
            agreement, top1 = _accuracy(points[DENSE], path, Dataset(validation, preprocessing))
        over_int8 = _over(column[DENSE_INT8], column[name]) if DENSE_INT8 in points else None
        rows.append(
            Row(
                name,
                1e3 * float(np.median(column[name])),
                _over(column[DENSE], column[name]),
                over_int8,
                agreement,
                top1,
                count(models[index]).parameters,
                file_bytes(path),
            )
        )
    return rows


def _over(base: np.ndarray, seconds: np.ndarray) -> Interval:
    found = speedup(base, seconds)
    return found.value, found.low, found.high


def _accuracy(model: Path, path: Path, data: Dataset) -> tuple[Interval, float | None]:
    """Agreement with the model's answers, and top-1.

    Raises:
        click.ClickException: the model has no class scores.
    """
    found = verify(model, path, data)
    if found.classifier is None:
        raise click.ClickException("the model has no class scores to compare by")
    share = found.classifier.agreement
    own = found.classifier.candidate
    return (share, *wilson_interval(share, found.samples)), own.top1 if own else None


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other is as fast and as much in agreement as, but one that equals them."""

    def place(row: Row) -> tuple[float, float]:
        return row.median_ms, -(row.agreement[0] if row.agreement else 0.0)

    return [
        row
        for row in rows
        if not any(
            place(other) != place(row) and np.less_equal(place(other), place(row)).all()
            for other in rows
        )
    ]


def table(rows: Sequence[Row], failed: dict[str, str]) -> str:
    """The rows as Markdown, the slowest first; those on the front in bold."""
    lines = [
        "| | model | ms | over dense | over dense int8 (95 %) | agreement (95 %) | top-1 | parameters | MB |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    best = front(rows)
    for number, row in enumerate(sorted(rows, key=lambda each: -each.median_ms), 1):
        name = f"**{row.name}**" if row in best else row.name
        agreement = _percent(row.agreement) if row.agreement else ""
        top1 = f"{row.top1:.1%}" if row.top1 is not None else ""
        ratio = "{:.2f} ({:.2f}-{:.2f})".format(*row.over_int8) if row.over_int8 else ""
        lines.append(
            f"| {number} | {name} | {row.median_ms:.2f} | {row.over_dense[0]:.2f} | {ratio} | {agreement} | {top1} "
            f"| {row.parameters:,} | {row.file_bytes / 1e6:.2f} |"
        )
    return "\n".join([*lines, *(f"\n{name}: {why}" for name, why in failed.items())])


def _percent(share: Interval) -> str:
    value, low, high = (100 * each for each in share)
    return f"{value:.1f} % ({low:.1f}-{high:.1f})"


def named_paths(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> Any:
    """Paths by the names that they were given, for an option that is repeated."""
    pairs = [each.partition("=") for each in given]
    if not all(name and file for name, _, file in pairs):
        raise click.BadParameter(f"give {option.metavar}")
    return {name: Path(file) for name, _, file in pairs}


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--calibration", type=click.Path(path_type=Path), required=True)
@click.option("--validation", type=click.Path(path_type=Path), help="Labelled; else times alone.")
@click.option("--samples", type=int, default=512, show_default=True)
@click.option("--budget", "budgets", multiple=True, default=("latency=80%", "latency=60%"))
@click.option("--trained", is_flag=True, help="Train what was cut, and MODEL for int8.")
@click.option("--epochs", type=int, help="Of that.")
@click.option("--rivals", type=click.FloatRange(0, 1, min_open=True), help="Share of the weights.")
@click.option("--method", default="auto", show_default=True, help="Of quantize.")
@click.option("--also", multiple=True, callback=named_paths, metavar="NAME=FILE")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--rounds", type=int, default=40, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where points are kept [nowhere].")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder for races [the user's].")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
@click.option("--markdown", type=click.Path(path_type=Path))
@click.option("--svg", type=click.Path(path_type=Path))
@preprocessing_options
def main(
    model: Path,
    calibration: Path,
    validation: Path | None,
    preprocessing: PreprocessingOptions,
    **options: Any,
) -> None:
    """See above."""
    preprocessed = preprocessing.read()
    data = Calibration(calibration, preprocessed, options["samples"])
    setting = Setting(threads=options["threads"])
    quantization = Quantization(options["method"], setting=setting)
    wanted = Wanted(options["budgets"], options["trained"], options["epochs"], options["rivals"])
    with tempfile.TemporaryDirectory(prefix="onnx-igpc-") as passing:
        folder = options["folder"] or Path(passing)
        made = Points(model, data, quantization, folder, options["cache"] or True)
        points = made.made(wanted) | options["also"]
        rows = measured(points, validation, preprocessed, setting, options["rounds"])
    text = table(rows, made.failed)
    click.echo(text)
    said = {
        "model": model.name,
        "environment": setting.environment(),
        "rounds": options["rounds"],
        "rows": [asdict(row) for row in rows],
        "failed": made.failed,
    }
    for option, written in (
        ("json_file", json.dumps(said, indent=1)),
        ("markdown", f"{text}\n"),
        ("svg", picture(model.stem, rows, front(rows))),
    ):
        if options[option] is not None:
            options[option].write_text(written)


if __name__ == "__main__":
    main()
