"""What training brings back, by how much data there is: compress, measure, finetune, measure, in one table.

    python -m benchmarks.trained_back MODEL --data 200=IMAGES --data 1199=MORE --validation LABELLED --folder WORK

Each set of images is what ``compress`` and ``finetune`` are given, with no option but the data; the model is
compared with MODEL on the labelled images before and after. ``--method``: ``budget`` (the product's own),
``svd`` (low rank with the budget's weights in every layer, fitted in sequence), ``v2`` (published V2 of as many weights in all).
A budget of time is for one thread, written literally. What is made stays in WORK and is not made again; ``--table-only`` prints what there is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

import onnx_igpc
from benchmarks.accuracy import Bench
from benchmarks.cifar10.arms import left_per_site
from benchmarks.pareto import named_paths
from onnx_igpc import Budget, Calibration, Dataset, Lowering, Published, Recipe, Run, Setting
from onnx_igpc.cli.preprocessing import PreprocessingOptions, preprocessing_options
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.errors import IgpcError
from onnx_igpc.evaluation.verify import verify
from onnx_igpc.graph.model import open_model
from onnx_igpc.lowering.options import LITERAL
from onnx_igpc.report.digest import read_digest

METHODS = ("budget", "svd", "v2")
_SIZE = "pointwise-parameters="
_PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Judged:
    """A model beside the original on the validation images: nats, and shares from 0 to 1."""

    kl: float
    agreement: float
    top1: float


@dataclass(frozen=True)
class Row:
    """One run. ``left``: share of the pointwise parameters; minutes are CPU minutes, of children, too."""

    network: str
    data: str
    target: str
    method: str
    seed: int
    left: float
    before: Judged
    after: Judged
    gained: bool
    recipe: str
    steps: int
    compress_minutes: float
    minutes: float


@dataclass(frozen=True)
class Wanted:
    """One cell of the table, but for the seed."""

    data: str
    target: str
    method: str

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.data} {self.target} {self.method}".replace("%", "").replace("=", "-")


class Place:
    """The network, its images, and the folder in which all is kept that was made."""

    def __init__(
        self,
        model: Path,
        data: dict[str, Path],
        validation: Path,
        preprocessing: Preprocessing | None,
        folder: Path,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.model, self.data, self.folder = model, data, folder
        self._validation, self._preprocessing = validation, preprocessing

    def row(self, wanted: Wanted, seed: int) -> Row:
        """The row of a cell, made unless it is kept."""
        kept = self.folder / f"{self.model.stem} {wanted.name} {seed}.row.json"
        if kept.exists():
            return read_row(kept)
        compressed, compress_minutes = self._compressed(wanted)
        tuned = kept.with_suffix("").with_suffix(".onnx")
        start = _cpu_minutes()
        result = onnx_igpc.finetune(
            compressed,
            Dataset(self.data[wanted.data], self._preprocessing),
            teacher=self.model,
            recipe=Recipe(seed=seed),
            output=tuned,
            run=Run(workers=1, restart=True),
        )
        minutes = _cpu_minutes() - start
        run = result.report.finetune
        assert run is not None
        before = self._judged(compressed)
        row = Row(
            self.model.stem,
            wanted.data,
            wanted.target,
            wanted.method,
            seed,
            self._left(compressed),
            before,
            self._judged(tuned),
            result.gained,
            str(run.recipe["base"]),
            result.history[-1].step,
            compress_minutes,
            minutes,
        )
        kept.write_text(json.dumps(asdict(row), indent=1))
        return row

    def _compressed(self, wanted: Wanted) -> tuple[Path, float]:
        """The model of a cell, and the CPU minutes that it took."""
        path = self.folder / f"{self.model.stem} {wanted.name}.onnx"
        told = path.with_suffix(".minutes.json")
        if not told.exists():
            start = _cpu_minutes()
            self._compress(wanted, path)
            told.write_text(json.dumps(_cpu_minutes() - start))
        return path, json.loads(told.read_text())

    def _compress(self, wanted: Wanted, path: Path) -> None:
        images = self.data[wanted.data]
        calibration = Calibration(images, self._preprocessing)
        if wanted.method == "budget":
            timed = wanted.target.startswith("latency")
            literal = Lowering(kind=LITERAL, setting=Setting(threads=1)) if timed else None
            budget = Budget(wanted.target)
            onnx_igpc.compress(self.model, budget, calibration=calibration, lowering=literal).save(
                path
            )
            return
        work = path.with_suffix(".work")
        work.mkdir(exist_ok=True)
        bench = Bench(
            self.model, images, self._validation, self._preprocessing, calibration.samples, work
        )
        if wanted.method == "svd":
            left = left_per_site(self._compressed(replace(wanted, method="budget"))[0])
            made, _ = bench.planned(lambda site: bench.svd(left, site), True)
        else:
            share = float(wanted.target.removeprefix(_SIZE).rstrip("%")) / 100
            made, _ = bench.compressed(Published(bench.channels_for(share)))
        made.rename(path)
        work.rmdir()

    def _judged(self, path: Path) -> Judged:
        found = verify(self.model, path, Dataset(self._validation, self._preprocessing)).classifier
        if found is None or found.candidate is None or found.kl is None:
            raise click.ClickException(
                "it takes class scores, and labelled images to compare them on"
            )
        return Judged(found.kl, found.agreement, found.candidate.top1)

    def _left(self, path: Path) -> float:
        digest = read_digest(open_model(path).proto)
        assert digest is not None
        return digest.totals.pointwise_parameters.ratio or 0.0


def _cpu_minutes() -> float:
    return sum(os.times()[:4]) / 60


def read_row(path: Path) -> Row:
    """A row as it was kept."""
    said = json.loads(path.read_text())
    return Row(**said | {key: Judged(**said[key]) for key in ("before", "after")})


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown; shares in per cent."""
    lines = [
        "| network | images | target | method | seed | left | KL | agreement | top-1 | recipe | steps | CPU minutes |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    for row in rows:
        old, new = row.before, row.after
        lines.append(
            f"| {row.network} | {row.data} | {row.target} | {row.method} | {row.seed} | {row.left:.1%} "
            f"| {old.kl:.3f} to {new.kl:.3f} | {100 * old.agreement:.1f} to {100 * new.agreement:.1f} "
            f"| {100 * old.top1:.1f} to {100 * new.top1:.1f} "
            f"| {row.recipe}{'' if row.gained else ', as given'} | {row.steps:,} "
            f"| {row.compress_minutes:.0f} + {row.minutes:.0f} |"
        )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("model", type=_PATH)
@click.option("--data", multiple=True, required=True, callback=named_paths, metavar="NAME=IMAGES")
@click.option("--validation", type=_PATH, required=True, help="Labelled images.")
@click.option("--folder", type=_PATH, required=True, help="Where everything is kept.")
@click.option("--target", "targets", multiple=True, default=(f"{_SIZE}60%",), show_default=True)
@click.option("--method", "methods", type=click.Choice(METHODS), multiple=True, default=METHODS[:1])
@click.option("--seeds", type=int, default=1, show_default=True)
@click.option("--table-only", is_flag=True)
@preprocessing_options
def main(
    model: Path,
    data: dict[str, Path],
    validation: Path,
    folder: Path,
    targets: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: int,
    table_only: bool,
    preprocessing: PreprocessingOptions,
) -> None:
    """See above."""
    if not table_only:
        if set(methods) != {"budget"} and not all(each.startswith(_SIZE) for each in targets):
            raise click.UsageError(f"svd and v2 are for targets such as {_SIZE}60%")
        place = Place(model, data, validation, preprocessing.read(), folder)
        for wanted in (Wanted(d, t, m) for d in data for t in targets for m in methods):
            for seed in range(seeds):
                try:
                    click.echo(table([place.row(wanted, seed)]).splitlines()[-1], err=True)
                except IgpcError as error:
                    click.echo(f"{wanted.name}: {error}", err=True)
    click.echo(table([read_row(path) for path in sorted(folder.glob("*.row.json"))]))


if __name__ == "__main__":
    main()
