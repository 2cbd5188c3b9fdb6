"""Filling a report: every site, the totals, and what the user must be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx_igpc.graph.cost import ModelCost
from onnx_igpc.planning.options import CompressOptions
from onnx_igpc.report.tree import (
    Change,
    RewriteReport,
    SiteReport,
    StageReport,
    describe_interleave,
)
from onnx_igpc.sites.rewrite import SiteRewrite

NO_DATA_WARNING = "the weights were fitted without data: expect to fine-tune before use"
RANDOM_WARNING = "the weights are random: train the model before use"
NOTHING_WARNING = "nothing to rewrite: the output is the input, byte for byte"


def site_reports(
    rewrites: Sequence[SiteRewrite],
    before: ModelCost,
    after: ModelCost,
    renamed: Mapping[tuple[str, str], str],
    digest: RewriteReport | None,
) -> list[SiteReport]:
    """The sites of this run, and those that an earlier run rewrote in the place of their parts."""
    reports: list[SiteReport] = []
    earlier = {site.name: site for site in digest.rewritten} if digest else {}
    for rewrite in rewrites:
        if rewrite.site.part_of is not None:
            continue
        reports.append(_site_report(rewrite, before, after, renamed))
    names = {name for site in earlier.values() for name in site.nodes}
    reports = [site for site in reports if site.name not in names]
    return [*earlier.values(), *reports]


def _site_report(
    rewrite: SiteRewrite,
    before: ModelCost,
    after: ModelCost,
    renamed: Mapping[tuple[str, str], str],
) -> SiteReport:
    site, layout = rewrite.site, rewrite.layout
    path, output = site.ref.scope.path, site.ref.proto.output[0]
    dense = before.node(path, renamed.get((path, output), output))
    report = SiteReport(site.name, site.in_channels, site.out_channels, "kept", rewrite.kept_reason)
    report.output = rewrite.output or output
    if dense is not None:
        report.parameters = Change(dense.weights, dense.weights)
        report.macs = Change(dense.macs, dense.macs)
    if layout is None:
        return report
    parts = [part for name in rewrite.convolutions if (part := after.node(path, name))]
    macs = [part.macs for part in parts]
    report.status, report.reason = "rewritten", None
    report.scheme = layout.scheme
    report.channels_per_group = layout.channels_per_group
    report.k, report.l = StageReport.of(layout.k), StageReport.of(layout.l)
    if parts:
        report.parameters.after = sum(part.weights for part in parts)
        report.macs.after = None if None in macs else sum(each or 0 for each in macs)
    report.error = rewrite.error
    report.interleave = describe_interleave(layout)
    report.activation = rewrite.activation
    report.shares_weight_with = rewrite.shares_weight_with
    report.input = rewrite.input
    report.nodes = list(rewrite.nodes)
    report.replaced = list(rewrite.replaced)
    report.layout = layout
    return report


def pointwise_parameters(
    rewrites: Sequence[SiteRewrite],
    before: ModelCost,
    after: ModelCost,
    renamed: Mapping[tuple[str, str], str],
    digest: RewriteReport | None,
) -> Change:
    """Parameters of all pointwise convolutions, those that several of them share counted once."""
    dense, written = [], []
    for rewrite in rewrites:
        path = rewrite.site.ref.scope.path
        output = str(rewrite.site.ref.proto.output[0])
        made = rewrite.convolutions or (rewrite.output or output,)
        written += [(path, name) for name in made]
        if rewrite.site.part_of is None:
            dense.append((path, renamed.get((path, output), output)))
    earlier = [site for site in digest.rewritten if not site.shares_weight_with] if digest else []
    return Change(
        before.parameters_of(dense) + sum(site.parameters.before or 0 for site in earlier),
        after.parameters_of(written),
    )


def fill_totals(report: RewriteReport, before: ModelCost, after: ModelCost, size: int) -> None:
    """The counts of both graphs, and the input's size in bytes."""
    totals = report.totals
    totals.parameters = Change(before.parameters, after.parameters)
    totals.macs = Change(before.macs, after.macs)
    totals.file_bytes.before = size
    if before.unknown:
        report.notes.append(
            f"MACs do not include {len(before.unknown)} nodes whose shapes are not known"
        )


def add_warnings(
    report: RewriteReport, options: CompressOptions, changed: bool, digest: RewriteReport | None
) -> None:
    """What the user must know before using the model, and what else was noticed."""
    if not changed:
        report.warnings.append(NOTHING_WARNING)
    elif options.init == "random":
        report.warnings.append(RANDOM_WARNING)
    elif report.calibration is None:
        report.warnings.append(NO_DATA_WARNING)
    if digest is not None:
        report.notes.append(
            f"{len(digest.rewritten)} sites were rewritten by an earlier run and are as it left them"
        )
    if report.inputs_removed:
        report.notes.append(
            f"{len(report.inputs_removed)} constants that were rewritten or folded were listed as graph "
            "inputs and are no longer"
        )
