"""The report of a rewrite: every site, the totals, and what the user must be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx

from onnx_igpc.compression.rewrite import GraphChanges
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.graph.checks import shape_doubt
from onnx_igpc.graph.cost import ModelCost, NodeCost, count
from onnx_igpc.graph.model import OpenModel, file_bytes
from onnx_igpc.passes.collapse_blocks import Collapsed
from onnx_igpc.passes.narrow_channels import Narrowed
from onnx_igpc.report.damage import large_damage_warning
from onnx_igpc.report.digest import read_digest, refuse_lowered
from onnx_igpc.report.sections import CalibrationReport, DamageReport, MeasuredOn, OptionsReport
from onnx_igpc.report.tree import (
    NO_DATA_WARNING,
    RANDOM_WARNING,
    BlockReport,
    Change,
    NarrowReport,
    RewriteReport,
    SiteReport,
    StageReport,
    describe_interleave,
)
from onnx_igpc.sites.find import Kept
from onnx_igpc.sites.rewrite import Outcome, Rewritten

NOTHING_WARNING = "nothing to rewrite: the output is the input, byte for byte"


@dataclass(frozen=True)
class Original:
    """What a report says of the model before: counted, and what an earlier run said of it.

    ``interface`` has its inputs, outputs and names of initializers, ``size`` the bytes of its file,
    ``doubt`` why onnx would not infer its shapes.
    """

    cost: ModelCost
    interface: onnx.ModelProto
    size: int
    doubt: str | None
    digest: RewriteReport | None

    @classmethod
    def of(cls, model: OpenModel, checked: bool = True) -> Original:
        """Of a model that is not edited yet.

        Raises:
            UsageError: the model was lowered, which is final.
            ModelError: its digest cannot be read.
        """
        digest = read_digest(model.proto)
        refuse_lowered(digest, model.name, "compress")
        size = file_bytes(model.path, model.proto) if model.path else model.proto.ByteSize()
        doubt = shape_doubt(model) if checked else None
        return cls(count(model), _interface(model.proto), size, doubt, digest)


def _interface(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model with the inputs, outputs and names of initializers of ``proto``, without its data."""
    kept = onnx.ModelProto()
    kept.graph.input.extend(proto.graph.input)
    kept.graph.output.extend(proto.graph.output)
    kept.graph.initializer.extend(
        onnx.TensorProto(name=tensor.name) for tensor in proto.graph.initializer
    )
    return kept


@dataclass(frozen=True)
class Measured:
    """What a rewrite on data has to say: how the data was used, and the damage measured on it."""

    calibration: CalibrationReport
    preprocessing: Preprocessing | None
    damage: DamageReport
    doubts: Sequence[str] = ()
    notes: Sequence[str] = ()

    def put_into(self, report: RewriteReport) -> None:
        """Into the sections of a report."""
        report.calibration = self.calibration
        report.preprocessing = self.preprocessing
        fitted = self.damage.fitted and replace(self.damage.fitted, left_out=None)
        report.damage = replace(self.damage, left_out=None, fitted=fitted)
        report.warnings += [f"calibration data: {doubt}" for doubt in self.doubts]
        report.notes += [f"calibration data: {note}" for note in self.notes]
        measured = self.damage if self.damage.unknown is None else self.damage.fitted
        report.notes += (measured.left_out if measured else None) or []
        if self.damage.unknown is None:
            report.notes.append(MeasuredOn.LEFT_OUT.note)
        if large := large_damage_warning(report.damage):
            report.warnings.insert(0, large)
        if without := self.calibration.without_data:
            names = ", ".join(without)
            report.warnings.append(f"{len(without)} sites were fitted without data: {names}")


def describe(
    original: Original,
    changes: GraphChanges,
    written: OpenModel,
    options: OptionsReport,
    measure: Callable[[RewriteReport], Measured | None] | None = None,
) -> RewriteReport:
    """The report of what was done, counted on the graph that was written.

    Args:
        original: the model before.
        changes: what was done to it.
        written: the model now.
        options: what was asked for.
        measure: what is measured on calibration data, given the report so far.
    """
    before, after, digest = original.cost, count(written), original.digest
    report = RewriteReport(options=options, notes=list(before.notes))
    report.input_shapes = {name: list(shape) for name, shape in before.input_shapes.items()}
    report.checks = dict(changes.checks)
    for name in ("folded", "merged", "removed", "inputs_removed", "permuted", "permutations"):
        setattr(report, name, list(getattr(changes, name)))
    report.passes = dict(changes.passes)
    report.sites = _site_reports(original, changes, after)
    report.blocks = [_block_report(each, before, after) for each in changes.collapsed]
    report.narrowed = [_narrow_report(each) for each in changes.narrowed]
    totals = report.totals
    totals.parameters = Change(before.parameters, after.parameters)
    totals.macs = Change(before.macs, after.macs)
    totals.pointwise_parameters = _pointwise_parameters(original, changes, after)
    totals.file_bytes.before = original.size
    if before.unknown:
        report.notes.append(
            f"MACs do not include {len(before.unknown)} nodes whose shapes are not known"
        )
    if measure is not None and (measured := measure(report)) is not None:
        measured.put_into(report)
    _add_warnings(report, changes.any, digest)
    if digest is not None:
        report.inherit(digest)
    return report


def _site_reports(original: Original, changes: GraphChanges, after: ModelCost) -> list[SiteReport]:
    """The sites of this run, and those that an earlier run rewrote in the place of their parts."""
    earlier = {site.name: site for site in original.digest.rewritten} if original.digest else {}
    for site in earlier.values():
        site.input = changes.renamed.get(("", site.input), site.input)
        site.output = changes.renamed.get(("", site.output), site.output)
    names = {name for site in earlier.values() for name in site.nodes}
    blocks = {each.block.output: each for each in changes.collapsed}
    reports: list[SiteReport] = []
    for outcome in changes.outcomes:
        if isinstance(outcome, Kept) and outcome.output in blocks:
            reports += _collapsed_sites(blocks[outcome.output], original.cost)
        elif not _is_part(outcome):
            reports.append(_site_report(outcome, original.cost, after, changes))
    return [*earlier.values(), *(site for site in reports if site.name not in names)]


def _collapsed_sites(collapsed: Collapsed, before: ModelCost) -> list[SiteReport]:
    """The sites that are gone with a block, which is named."""
    reports = []
    for site in collapsed.block.sites:
        report = SiteReport(site.name, site.in_channels, site.out_channels, "collapsed")
        report.reason = f"went with the residual block of {collapsed.block.name}"
        dense = before.node("", str(site.ref.proto.output[0]))
        report.parameters = Change(dense.weights if dense else None, 0)
        report.macs = Change(dense.macs if dense else None, 0)
        reports.append(report)
    return reports


def _fewer_channels(name: str, narrowed: Sequence[Narrowed]) -> str:
    """What a convolution reads and makes of the channels that there were, in words; nothing where that is all."""
    said = []
    for verb, whose in (("reads", "name"), ("makes", "maker")):
        for each in narrowed:
            if getattr(each, whose) == name:
                said.append(f"{verb} {len(each.weights.kept)} of {each.channels} channels")
    return ", ".join(said)


def _narrow_report(narrowed: Narrowed) -> NarrowReport:
    return NarrowReport(
        name=narrowed.name,
        maker=narrowed.maker,
        output=narrowed.output,
        channels=Change(narrowed.channels, len(narrowed.weights.kept)),
        error=narrowed.weights.error,
    )


def _block_report(collapsed: Collapsed, before: ModelCost, after: ModelCost) -> BlockReport:
    block = collapsed.block
    made = [str(name) for ref in block.inner for name in ref.proto.output]
    costs = [cost for name in made if (cost := before.node("", name)) is not None]
    macs = [cost.macs for cost in costs]
    written = after.node("", block.output)
    return BlockReport(
        name=block.name,
        node=collapsed.node,
        input=block.input,
        output=block.output,
        channels=block.channels,
        sites=[site.name for site in block.sites],
        error=collapsed.weights.error,
        parameters=Change(
            before.parameters_of([("", name) for name in made]),
            written.weights if written else None,
        ),
        macs=Change(
            None if None in macs else sum(each or 0 for each in macs),
            written.macs if written else None,
        ),
    )


def _is_part(outcome: Outcome) -> bool:
    """Whether this convolution is the K or L of a site that an earlier run rewrote."""
    return isinstance(outcome, Kept) and outcome.part_of is not None


def _dense_output(outcome: Outcome, changes: GraphChanges) -> tuple[str, str]:
    """(scope, output) of the dense convolution in the model before."""
    ref = (outcome if isinstance(outcome, Kept) else outcome.site).ref
    path, output = ref.scope.path, str(ref.proto.output[0])
    return path, changes.folded_outputs.get((path, output), output)


def _site_report(
    outcome: Outcome, before: ModelCost, after: ModelCost, changes: GraphChanges
) -> SiteReport:
    path, dense_output = _dense_output(outcome, changes)
    dense = before.node(path, dense_output)
    site = outcome if isinstance(outcome, Kept) else outcome.site
    report = SiteReport(site.name, site.in_channels, site.out_channels, "kept")
    report.output = outcome.output
    if dense is not None:
        report.parameters = Change(dense.weights, dense.weights)
        report.macs = Change(dense.macs, dense.macs)
    if isinstance(outcome, Kept):
        report.reason = outcome.reason
        if said := _fewer_channels(outcome.name, changes.narrowed):
            report.status, report.reason = "narrowed", said
            if (now := after.node(path, outcome.output)) is not None:
                report.parameters.after, report.macs.after = now.weights, now.macs
        return report
    _describe_rewritten(report, outcome, [after.node(path, each) for each in outcome.convolutions])
    return report


def _describe_rewritten(
    report: SiteReport, rewrite: Rewritten, costs: Sequence[NodeCost | None]
) -> None:
    layout = rewrite.layout
    parts = [part for part in costs if part is not None]
    macs = [part.macs for part in parts]
    report.status = "rewritten"
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


def _pointwise_parameters(original: Original, changes: GraphChanges, after: ModelCost) -> Change:
    """Parameters of all pointwise convolutions, those that several of them share counted once."""
    dense, written = [], []
    for collapsed in changes.collapsed:
        dense += [("", str(site.ref.proto.output[0])) for site in collapsed.block.sites]
    for outcome in changes.outcomes:
        path, dense_output = _dense_output(outcome, changes)
        made = (outcome.output,) if isinstance(outcome, Kept) else outcome.convolutions
        written += [(path, name) for name in made]
        if not _is_part(outcome):
            dense.append((path, dense_output))
    earlier = original.digest.rewritten if original.digest else []
    known = sum(site.parameters.before or 0 for site in earlier if not site.shares_weight_with)
    return Change(original.cost.parameters_of(dense) + known, after.parameters_of(written))


def _add_warnings(report: RewriteReport, changed: bool, digest: RewriteReport | None) -> None:
    """What the user must know before using the model, and what else was noticed."""
    if not changed:
        report.warnings.append(NOTHING_WARNING)
    elif report.options.init == "random":
        report.warnings.append(RANDOM_WARNING)
    elif report.calibration is None and report.rewritten:
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
