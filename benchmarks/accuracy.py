"""Accuracy before any training: every method at equal pointwise parameters, on the same images.

``python benchmarks/accuracy.py MODEL --calibration IMAGES --validation LABELLED`` compresses MODEL
under each target with the product's budget, then with other methods at the same numbers of weights
per layer (SVD) or in total (published layouts), fits all on the same calibration images and compares
them on the validation images. Preprocessing options are those of ``onnx-igpc verify``.

Methods: ``budget`` (extended family, sizes chosen by measured damage); ``extended`` (the same family,
the same share in every layer); ``svd`` and ``svd-plain``
(activation-weighted low rank with the budget's weights in every layer, fitted in sequence and not);
``v2``, ``v2-plain``, ``v2-learned`` (published V2 at one number of channels per group: in sequence,
not in sequence, with learned groups), whose weights come as near to the target as they can from above;
``channels-...`` (whole channels pruned by onnxsim, see :mod:`benchmarks.channel_pruning`), run only where
they are asked for.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

import onnx_igpc
from benchmarks import channel_pruning
from onnx_igpc import Published
from onnx_igpc.calibration.collect import collect_moments
from onnx_igpc.calibration.options import Calibration, Fit
from onnx_igpc.calibration.site_fitter import SiteCalibrator
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.cli.preprocessing import PreprocessingOptions, preprocessing_options
from onnx_igpc.compression.rewrite import Rewriter
from onnx_igpc.compression.summary import Original, describe
from onnx_igpc.data.batches import Data
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.evaluation.verify import verify
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import open_model, save_model
from onnx_igpc.graph.view import GraphView
from onnx_igpc.layout.extended import dense_layout, low_rank_layout
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.planning.candidates import best_fitted, candidate_layouts
from onnx_igpc.report.digest import write_digest
from onnx_igpc.report.sections import OptionsReport
from onnx_igpc.sites.batch_norm import following_batch_norm
from onnx_igpc.sites.find import Rewritable, SiteFilter, find_sites

METHODS = ("budget", "extended", "svd", "svd-plain", "v2", "v2-plain", "v2-learned")
_CHANNELS = tuple(range(2, 257, 2))


@dataclass(frozen=True)
class Row:
    """One method at one target; shares and accuracies from 0 to 1."""

    target: float
    method: str
    share: float
    parameters: int
    macs: int
    top1: float | None
    agreement: float
    seconds: float
    note: str = ""


class Bench:
    """Runs methods on one model with one set of images."""

    def __init__(
        self,
        model: Path,
        calibration: Path,
        validation: Path,
        preprocessing: Preprocessing | None,
        samples: int,
        folder: Path,
    ) -> None:
        self.model = model
        self.calibration = calibration
        self.validation = validation
        self.preprocessing = preprocessing
        self.samples = samples
        self.folder = folder
        sites = find_sites(GraphView(open_model(model))).rewritable
        self.shapes = {s.name: (s.in_channels, s.out_channels) for s in sites}
        self.dense = sum(c * f for c, f in self.shapes.values())

    def data(self) -> Data:
        """The calibration data as batches."""
        given = Calibration(self.calibration, self.preprocessing, self.samples)
        return given.open(open_model(self.model))

    def compressed(
        self, plan: Published | onnx_igpc.Budget, *, sequential: bool | None = None
    ) -> tuple[Path, dict[str, int]]:
        """What the product's own compress writes, and the weights it leaves in every site."""
        result = onnx_igpc.compress(
            self.model,
            plan,
            calibration=Calibration(self.calibration, self.preprocessing, self.samples, sequential),
        )
        path = self.folder / "model.onnx"
        result.save(path)
        weights = {name: c * f for name, (c, f) in self.shapes.items()}
        for site in result.report.rewritten:
            weights[site.name] = sum(stage.weights for stage in (site.k, site.l) if stage)
        return path, weights

    def planned(
        self, plan: Callable[[Rewritable], GroupLayout], sequential: bool
    ) -> tuple[Path, dict[str, int]]:
        """As :meth:`compressed` with a layout of our own for every site.

        The digest in the model names the sites, so that ``finetune`` can match them.
        """
        opened = open_model(self.model)
        original, rewriter = Original.of(opened), Rewriter(opened)
        found = rewriter.find(SiteFilter())
        layouts = {site.name: plan(site) for site in found.rewritable}
        wanted = [site for site in found.rewritable if layouts[site.name].kept_reason is None]
        fit = Fit(sequential=sequential, blend=0.0)
        with SiteCalibrator(opened, wanted, self.data(), fit=fit) as fitter:
            rewriter.rewrite(found, layouts, fitter)
        rewriter.settle()
        report = describe(original, rewriter.changes, opened, OptionsReport(init="fitted"))
        write_digest(opened.proto, report)
        path = self.folder / "model.onnx"
        save_model(opened, path)
        weights = {name: c * f for name, (c, f) in self.shapes.items()}
        for rewrite in rewriter.changes.rewritten:
            weights[rewrite.site.name] = rewrite.layout.weights
        return path, weights

    def row(self, target: float, method: str, run: Callable[[], Any], note: str = "") -> Row:
        """Run a method and measure what it wrote."""
        started = time.perf_counter()
        path, weights = run()
        seconds = time.perf_counter() - started
        found = verify(self.model, path, Dataset(self.validation, self.preprocessing)).classifier
        if found is None:
            raise click.ClickException("the model has no class scores to compare by")
        cost = count(open_model(path))
        top1 = found.candidate.top1 if found.candidate else None
        share = sum(weights.values()) / self.dense
        self.weights = weights
        return Row(
            target, method, share, cost.parameters, cost.macs, top1, found.agreement, seconds, note
        )

    def svd(self, weights: dict[str, int], site: Rewritable) -> GroupLayout:
        """Low rank with no more weights than the budget left in this site."""
        C, F = self.shapes[site.name]
        rank = weights[site.name] // (C + F)
        if weights[site.name] >= C * F or rank < 1:
            return dense_layout(C, F, "dense in the budget")
        return low_rank_layout(C, F, rank)

    def extended(self, share: float) -> dict[str, GroupLayout]:
        """For every site the member of the extended family that fits best within the share."""
        opened = open_model(self.model)
        view = GraphView(opened)
        sites = find_sites(view).rewritable
        moments = collect_moments(opened, [Tap.of(site) for site in sites], self.data())
        layouts = {}
        for site in sites:
            C, F = self.shapes[site.name]
            norm = following_batch_norm(view, site.ref)
            found = candidate_layouts(
                site.weight_matrix().astype(np.float64),
                moments[Tap.of(site)].second,
                norm.factor if norm else None,
                (share,),
            )
            best = best_fitted(found, int(share * C * F))
            layouts[site.name] = best.layout if best else dense_layout(C, F, "nothing as small")
        return layouts

    def pruned(self, method: str, share: float) -> tuple[Path, dict[str, int]]:
        """What onnxsim writes when it prunes channels down to the share."""
        path = self.folder / "model.onnx"
        wanted = int(share * self.dense)
        found = channel_pruning.prune(self.model, method, wanted, self.data(), path)
        return path, found.weights

    def channels_for(self, share: float) -> int:
        """The least channels per group of V2 whose weights are no fewer than the share."""
        for ch in _CHANNELS:
            total = sum(_published_weights(c, f, ch) for c, f in self.shapes.values())
            if total >= share * self.dense:
                return ch
        return _CHANNELS[-1]


def _published_weights(C: int, F: int, ch: int) -> int:
    layout = plan_layout(C, F, ch)
    return min(layout.weights, C * F)


def run_target(bench: Bench, target: float, methods: Sequence[str]) -> list[Row]:
    """All methods at one target; the budget first, since SVD takes its weights per layer."""
    spec = f"pointwise-parameters={100 * target:g}%"
    rows = []
    budget: dict[str, int] = {}
    if not set(methods) <= set(channel_pruning.METHODS):
        rows.append(bench.row(target, "budget", lambda: bench.compressed(onnx_igpc.Budget(spec))))
        budget = dict(bench.weights)
    ch = bench.channels_for(target)
    note = f"ch {ch}"

    def uniform() -> tuple[Path, dict[str, int]]:
        layouts = bench.extended(target)
        return bench.planned(lambda site: layouts[site.name], True)

    runs: dict[str, tuple[Callable[[], Any], str]] = {
        "extended": (uniform, ""),
        "svd": (lambda: bench.planned(lambda s: bench.svd(budget, s), True), ""),
        "svd-plain": (lambda: bench.planned(lambda s: bench.svd(budget, s), False), ""),
        "v2": (lambda: bench.compressed(Published(ch)), note),
        "v2-plain": (lambda: bench.compressed(Published(ch), sequential=False), note),
        "v2-learned": (lambda: bench.compressed(Published(ch, grouping="learned")), note),
    }
    for method in channel_pruning.METHODS:
        runs[method] = (partial(bench.pruned, method, target), "")
    for method in methods:
        if method != "budget":
            run, text = runs[method]
            rows.append(bench.row(target, method, run, text))
            click.echo(_line(rows[-1]), err=True)
    return rows


def _line(row: Row) -> str:
    top1 = "" if row.top1 is None else f"{100 * row.top1:.1f}"
    return (
        f"| {100 * row.target:g} % | {row.method} {row.note} | {100 * row.share:.1f} % | "
        f"{row.parameters:,} | {row.macs:,} | {top1} | {100 * row.agreement:.1f} | "
        f"{row.seconds:.0f} |"
    )


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--calibration", type=click.Path(path_type=Path), required=True)
@click.option("--validation", type=click.Path(path_type=Path), required=True)
@click.option("--samples", type=int, default=512, show_default=True)
@click.option(
    "--share",
    "shares",
    type=float,
    multiple=True,
    default=(60.0, 40.0, 25.0),
    help="Of the pointwise parameters, in per cent. Repeatable  [60, 40, 25].",
)
@click.option(
    "--method",
    "methods",
    type=click.Choice(METHODS + channel_pruning.METHODS),
    multiple=True,
    default=METHODS,
)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
@preprocessing_options
def main(
    model: Path,
    calibration: Path,
    validation: Path,
    samples: int,
    shares: tuple[float, ...],
    methods: tuple[str, ...],
    json_file: Path | None,
    preprocessing: PreprocessingOptions,
) -> None:
    """Compare methods at equal pointwise parameters, before any training."""
    preprocessed = preprocessing.read()
    original = verify(model, model, Dataset(validation, preprocessed)).classifier
    before = original.original.top1 if original and original.original else float(np.nan)
    click.echo(f"original: top-1 {100 * before:.1f}\n")
    click.echo("| target | method | left | parameters | MACs | top-1 | agreement | seconds |")
    click.echo("|---|---|--:|--:|--:|--:|--:|--:|")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(model, calibration, validation, preprocessed, samples, Path(folder))
        for share in shares:
            rows += run_target(bench, share / 100.0, methods)
    for row in rows:
        click.echo(_line(row))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
