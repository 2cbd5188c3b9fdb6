"""Console views of reports: tables a person can read. No numbers are made here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnx_igpc.report.damage import held_out_text, ordered_warnings
from onnx_igpc.report.sections import DamageReport
from onnx_igpc.report.tree import (
    BlockReport,
    Change,
    NarrowReport,
    RewriteReport,
    SiteReport,
    StageReport,
)

if TYPE_CHECKING:
    from onnx_igpc.report.verification import VerifyReport
from onnx_igpc.report.numbers import count_text, exact, losses_text, percent, shorten

# The least that is left for a site's name beside the other columns.
_MIN_NAME = 12
_COLUMN_GAP = 2
_BLOCKS = "▁▂▃▄▅▆▇█"


def show_rewrite(
    console: Console, report: RewriteReport, *, planned: bool = False, verbose: bool = False
) -> None:
    """Warnings first, then the sites with the longest gains on top, what was kept, and totals."""
    for warning in ordered_warnings(report):
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    show_damage(console, report)
    show_fit(console, report)
    show_training(console, report)
    if report.rewritten:
        console.print(_sites_table(report.rewritten, verbose, console.width))
    if report.blocks:
        console.print(_blocks_table(report.blocks, verbose))
    if report.narrowed:
        console.print(_narrowed_table(report.narrowed, verbose))
    _show_kept(console, report.kept, verbose)
    console.print(_totals_table(report, planned))
    if report.rewritten and not verbose:
        console.print(
            "K, L: groups x input channels per group; error, as fitted: E|(W-M)x|^2 / E|Wx|^2",
            style="dim",
        )
    shapes = "; ".join(
        f"{name} {'x'.join(map(str, shape))}" for name, shape in report.input_shapes.items()
    )
    if shapes:
        console.print(f"MACs are for {escape(shapes)}", style="dim")
    show_checks(console, report)
    for name, nodes in report.passes.items():
        console.print(f"pass {escape(name)}: {len(nodes)} nodes changed", style="dim")
    for note in report.notes:
        console.print(f"note: {escape(note)}", style="dim")
    if verbose:
        for label, names in (
            *((f"changed by {name}", nodes) for name, nodes in report.passes.items()),
            ("folded", report.folded),
            ("merged", report.merged),
            ("permuted", report.permuted),
            ("removed", report.removed),
            ("no longer inputs", report.inputs_removed),
        ):
            if names:
                console.print(f"{label}: {escape(', '.join(names))}", style="dim")


def show_summary(console: Console, report: RewriteReport) -> None:
    """Warnings, totals, checks and notes without the sites, for a step that rewrites none."""
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    console.print(_totals_table(report, planned=False))
    show_checks(console, report)
    for note in report.notes:
        console.print(f"note: {escape(note)}", style="dim")


def show_checks(console: Console, report: RewriteReport) -> None:
    """What was checked, and what came of it."""
    for name, result in report.checks.items():
        console.print(f"check {name}: {escape(result)}", style="dim")


def show_damage(console: Console, report: RewriteReport) -> None:
    """What the rewrite did to the outputs on calibration data, or why that is not known."""
    damage = report.damage
    if damage is None:
        return
    fitted = _figures(damage.fitted) if damage.fitted is not None else ""
    if damage.unknown is not None:
        flatters = f"; on the fitted data, which flatters, {fitted}" if fitted else ""
        console.print(f"damage: {escape(damage.unknown)}{flatters}")
        return
    on = f"on {damage.samples} samples"
    if damage.fitted is not None:
        on += " left out of their fits and choices"
    if figures := _figures(damage, whole=True):
        also = f"; on the fitted data {fitted}" if fitted else ""
        console.print(f"damage: {figures} {on}{also}")
    if damage.not_finite:
        console.print(f"damage: {damage.not_finite} values that are not finite {on}")


def _figures(damage: DamageReport, whole: bool = False) -> str:
    """The figures of a damage; ``whole``: with what they are, and how sure."""
    if damage.agreement is not None:
        if not whole:
            return f"{damage.agreement:.1%}"
        text = f"top-1 agreement with the original {damage.agreement:.1%}"
        if damage.interval is not None:
            low, high = damage.interval
            text += f" (95% interval {low:.1%} to {high:.1%})"
        return text if damage.kl is None else f"{text}, KL {damage.kl:.3g},"
    if damage.relative_error is None:
        return ""
    error = f"{damage.relative_error:.3g}"
    return f"relative error {error} of output {escape(damage.output or '')}" if whole else error


def show_fit(console: Console, report: RewriteReport) -> None:
    """How the weights were fitted, and how much of the data was held out."""
    said = report.calibration
    if said is None:
        return
    parts = []
    if said.fit is not None:
        tried = f" (best of {len(said.chosen_by)} that were tried)" if said.chosen_by else ""
        parts.append(f"{escape(said.fit)}{tried}")
    if held_out := held_out_text(said):
        parts.append(held_out)
    if parts:
        console.print(f"fit: {'; '.join(parts)}", style="dim")


def show_training(console: Console, report: RewriteReport) -> None:
    """The rates that a fine-tuning run tried first, and its curves, an epoch a column."""
    run = report.finetune
    epochs = run.epochs if run is not None else []
    if run is not None and run.rates:
        tried = losses_text(run.rates)
        console.print(f"learning rate {run.recipe['lr']}, by losses when tried: {tried}")
    curves: dict[str, list[float | None]] = {
        "loss": [row.loss for row in epochs],
        "accuracy": [row.accuracy for row in epochs],
        "agreement": [row.agreement for row in epochs],
        "val loss": [row.val_loss for row in epochs],
        "val accuracy": [row.val_accuracy for row in epochs],
        "val agreement": [row.val_agreement for row in epochs],
    }
    for label, measured in curves.items():
        if values := [value for value in measured if value is not None]:
            console.print(f"{label:>13} {sparkline(values)} {values[0]:.4g} -> {values[-1]:.4g}")


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The values as a line of blocks of eight heights, the least lowest; at most ``width`` of them."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1))] for value in values)


def _sites_table(sites: list[SiteReport], verbose: bool, width: int) -> Table:
    """Of at most ``width`` columns; names are shortened to what the others leave."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rewritten", overflow="fold")
    titles = ("channels", "K", "L", "params", "left", "MACs", "left", "error")
    for place, title in enumerate(titles):
        table.add_column(title, justify="left" if place < 3 else "right", no_wrap=True)
    ordered = sorted(sites, key=lambda each: -_gain(each))
    rows = [_site_cells(site) for site in ordered]
    beside = sum(_COLUMN_GAP + max(map(len, column)) for column in zip(titles, *rows, strict=True))
    room = max(width - beside, _MIN_NAME)
    for site, row in zip(ordered, rows, strict=True):
        table.add_row(escape(site.name if verbose else shorten(site.name, room)), *row)
    return table


def _site_cells(site: SiteReport) -> tuple[str, ...]:
    return (
        f"{site.in_channels}>{site.out_channels}",
        _stage(site.k),
        _stage(site.l),
        count_text(site.parameters.after),
        percent(site.parameters),
        count_text(site.macs.after),
        percent(site.macs),
        "" if site.error is None else f"{site.error:.3f}",
    )


def _blocks_table(blocks: list[BlockReport], verbose: bool) -> Table:
    """The residual blocks in whose place one convolution is, and what they and it count."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("collapsed to one convolution", overflow="fold")
    titles = ("channels", "sites gone", "params", "now", "MACs", "now", "error")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for block in blocks:
        table.add_row(
            escape(block.name if verbose else shorten(block.name, 32)),
            str(block.channels),
            str(len(block.sites)),
            count_text(block.parameters.before),
            count_text(block.parameters.after),
            count_text(block.macs.before),
            count_text(block.macs.after),
            "" if block.error is None else f"{block.error:.3f}",
        )
    return table


def _narrowed_table(narrowed: list[NarrowReport], verbose: bool) -> Table:
    """The convolutions that read fewer channels."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("reads fewer channels", overflow="fold")
    for title in ("channels", "now", "error"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in narrowed:
        table.add_row(
            escape(each.name if verbose else shorten(each.name, 32)),
            exact(each.channels.before),
            exact(each.channels.after),
            "" if each.error is None else f"{each.error:.3f}",
        )
    return table


def _gain(site: SiteReport) -> int:
    return (site.parameters.before or 0) - (site.parameters.after or 0)


def _stage(stage: StageReport | None) -> str:
    return f"{stage.groups}x{stage.channels_per_group}" if stage else "-"


def _show_kept(console: Console, kept: list[SiteReport], verbose: bool) -> None:
    by_reason: dict[str, list[SiteReport]] = {}
    for site in kept:
        by_reason.setdefault(site.reason or "", []).append(site)
    for reason, sites in by_reason.items():
        names = [site.name if verbose else shorten(site.name, 32) for site in sites]
        shown = names if verbose or len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
        console.print(f"kept {len(sites)}: {escape(reason)} ({escape(', '.join(shown))})")


def _totals_table(report: RewriteReport, planned: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    sites = report.sites
    verb = "to rewrite" if planned else "rewritten"
    done = f"{len(report.rewritten)} of {len(sites)} pointwise {verb}" if sites else "the model"
    if gone := sum(site.status == "collapsed" for site in sites):
        done += f", {gone} gone with blocks"
    if narrow := sum(site.status == "narrowed" for site in sites):
        done += f", {narrow} narrower"
    table.add_column(done, no_wrap=True)
    for title in ("before", "after", "left"):
        table.add_column(title, justify="right", no_wrap=True)
    totals = report.totals
    rows: Iterable[tuple[str, Change]] = (
        ("parameters", totals.parameters),
        ("  in pointwise convolutions", totals.pointwise_parameters),
        ("MACs", totals.macs),
        ("file, bytes", totals.file_bytes),
    )
    for label, change in rows:
        if change.before is None and change.after is None:
            continue
        table.add_row(label, exact(change.before), exact(change.after), percent(change))
    return table


def show_verify(console: Console, report: VerifyReport) -> None:
    """Each output's difference, agreement and accuracy, where the nodes ran, and what failed."""
    if report.random:
        console.print(
            "[yellow]warning:[/] compared on random inputs: give --data for figures that mean "
            "something for your use"
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("output", overflow="fold")
    for title in ("max |a-b|", "mean |a-b|", "relative", "cosine"):
        table.add_column(title, justify="right", no_wrap=True)
    for output in report.outputs:
        table.add_row(
            escape(output.name),
            f"{output.max_abs:.3g}",
            f"{output.mean_abs:.3g}",
            "-" if output.relative is None else f"{output.relative:.3g}",
            "-" if output.cosine is None else f"{output.cosine:.6f}",
        )
    console.print(table)
    if report.classifier is not None:
        result = report.classifier
        console.print(
            f"top-1 agreement {result.agreement:.1%} on {result.samples} samples "
            f"({result.classes} classes in {escape(result.scores)})"
            + ("" if result.kl is None else f", KL {result.kl:.3g}")
        )
        if result.original is not None and result.candidate is not None:
            before, after = result.original, result.candidate
            console.print(f"top-1 accuracy {before.top1:.1%} -> {after.top1:.1%}")
            if before.top5 is not None and after.top5 is not None:
                console.print(f"top-5 accuracy {before.top5:.1%} -> {after.top5:.1%}")
    for output in report.outputs:
        if output.agreement is not None:
            equal = f"{output.agreement:.2%} of the class numbers are equal"
            console.print(f"{escape(output.name)}: {equal}")
    if report.metric:
        for name, value in report.metric.items():
            console.print(f"{escape(name)}: {value:.6g}")
    for role, text in report.executed.items():
        console.print(f"{role}: {escape(text)}", style="dim")
    for note in report.notes:
        console.print(f"note: {escape(note)}")
    for failure in report.failures:
        console.print(f"[red]failed:[/] {escape(failure)}")
