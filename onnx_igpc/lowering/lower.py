"""lower: a rewritten model written down for a runtime, its function unchanged."""

from __future__ import annotations

from dataclasses import replace

import onnx

from onnx_igpc.data.file_guard import FileGuard
from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import UsageError
from onnx_igpc.evaluation.equivalence import check_same_outputs
from onnx_igpc.graph.checks import check_graph, check_original, shape_doubt
from onnx_igpc.graph.cost import ModelCost, count
from onnx_igpc.graph.model import OpenModel, PathLike, snapshot
from onnx_igpc.graph.view import GraphView
from onnx_igpc.lowering.cache import RaceCache, cache_folder
from onnx_igpc.lowering.catalogue import (
    LOWERINGS,
    LoweredSite,
    applicable,
    lower,
    site_opset,
)
from onnx_igpc.lowering.options import AUTO, INT8, LITERAL, Lowering
from onnx_igpc.lowering.preparation import prepare
from onnx_igpc.lowering.quantization.float_model import refuse_unsuitable
from onnx_igpc.lowering.selection import describe_lowering, select
from onnx_igpc.lowering.site_races import Choices
from onnx_igpc.report.damage import ordered_warnings
from onnx_igpc.report.digest import read_digest, refuse_lowered, refuse_quantized, write_digest
from onnx_igpc.report.result import CompressResult, open_copy
from onnx_igpc.report.sections import LoweringReport, SiteLowering
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.sites.subgraph import find_subgraphs


def lower_model(
    model: onnx.ModelProto | PathLike,
    *,
    lowering: Lowering | None = None,
    progress: Progress | None = None,
) -> CompressResult:
    """Write a rewritten model down for a runtime; what it computes stays the same.

    BatchNormalization is folded, weights that the model lists as inputs become constants, and every
    site is written as its lowering says. The result is final: compress and finetune refuse it.

    Args:
        model: a ModelProto, which is not changed, or the path of a file that compress wrote.
        lowering: what is chosen and where it is measured; the fastest for each site if ``None``.
        progress: called with (done, in all or 0, what is being done).

    Raises:
        UsageError: the model was not rewritten by compress or is lowered already; an unknown
            lowering or provider.
        ModelError: the model cannot be read or run.
        CheckFailedError: the provider is missing or fell back, or the lowered model deviates.
    """
    lowering = lowering or Lowering()
    if lowering.kind != AUTO and lowering.kind not in LOWERINGS:
        known = ", ".join([AUTO, *LOWERINGS])
        raise UsageError(f"unknown lowering {lowering.kind!r}: choose from {known}")
    if lowering.kind == LITERAL:
        lowering.check_measured()
    opened = open_copy(model)
    guard = FileGuard()
    guard.reads_model(opened)
    check_original(opened)
    setting = (lowering.setting or Setting()).fitted(opened.proto)
    report = lowerable_digest(opened)
    if lowering.precision == INT8:
        refuse_unsuitable(opened)
    before = snapshot(opened)
    removed = prepare(opened).put_into(report)
    races = RaceCache(cache_folder(lowering.cache))
    if lowering.kind == AUTO:
        selection = select(
            opened,
            setting,
            races,
            allow_slower=lowering.allow_slower,
            precision=lowering.precision,
            progress=progress,
        )
        choices, said = selection.choices, selection.described(races)
    else:
        choices, said = fixed_choices(opened, lowering.kind, setting)
    return replace(finish(before, opened, report, removed, choices, said), guard=guard)


def lowerable_digest(opened: OpenModel) -> RewriteReport:
    """The report in the model.

    Raises:
        UsageError: there is none, or the model was lowered already.
        ModelError: it cannot be read.
    """
    digest = read_digest(opened.proto)
    refuse_quantized(digest, opened.name, "lower")
    if digest is None or not digest.rewritten:
        raise UsageError(
            f"{opened.name} holds no rewritten convolution: compress found none to rewrite, or has not "
            "seen it: give a model in which onnx-igpc compress rewrote some"
        )
    refuse_lowered(digest, opened.name, "lower")
    return digest


def fixed_choices(
    opened: OpenModel, lowering: str, setting: Setting
) -> tuple[Choices, LoweringReport]:
    """One lowering wherever it applies, and what the report says of it."""
    found, unknown = find_subgraphs(opened)
    choices: Choices = {}
    sites = {
        name: SiteLowering(lowering=LITERAL, reason=f"not recognised: {why}")
        for name, why in unknown
    }
    for site in found:
        reason = applicable(site, site_opset(opened, site))[lowering]
        choices[site.name] = LITERAL if reason else lowering
        sites[site.name] = SiteLowering(lowering=choices[site.name], reason=reason)
    return choices, describe_lowering(lowering, setting, sites)


def finish(
    before: OpenModel,
    opened: OpenModel,
    report: RewriteReport,
    removed: list[str],
    choices: Choices,
    said: LoweringReport,
) -> CompressResult:
    """Write the choices into ``opened``, check it against ``before`` and bring the report up to date.

    Raises:
        CheckFailedError: the lowered model is not valid or deviates.
    """
    doubt = shape_doubt(before)
    cost = count(opened)
    former = _parameters(opened, cost, report)
    sites = lower(opened, choices)
    _update_sites(report, sites)
    after = count(opened)
    count_sites(opened, after, report)
    totals = report.totals
    totals.parameters.after, totals.macs.after = after.parameters, after.macs
    if totals.pointwise_parameters.after is not None:
        totals.pointwise_parameters.after += _parameters(opened, after, report) - former
    report.inputs_removed += [name for name in removed if name not in report.inputs_removed]
    report.lowering = said
    report.warnings = ordered_warnings(report)
    report.checks = {
        **report.checks,
        **check_graph(before.proto, opened, doubt),
        "lowering": check_same_outputs(before, opened, "lowering", "please report this"),
    }
    write_digest(opened.proto, report)
    totals.file_bytes.after = opened.total_bytes()
    return CompressResult(opened, report, changed=True)


def _update_sites(report: RewriteReport, lowered: list[LoweredSite]) -> None:
    """The nodes of every site as they are now; stages of the paper's form share their site."""
    by_site: dict[str, list[LoweredSite]] = {}
    for each in lowered:
        by_site.setdefault(each.name, []).append(each)
        by_site.setdefault(each.name.rpartition("/")[0], []).append(each)
    for site in report.rewritten:
        done = by_site.get(site.name, [])
        if len(done) == 1:
            site.output = done[0].output
        changed = [each for each in done if each.lowering != LITERAL]
        if changed and len(changed) == len(done):
            site.nodes = [name for each in done for name in each.nodes]
        elif changed:
            site.nodes += [n for each in changed for n in each.nodes if n not in site.nodes]


def _made_by(opened: OpenModel) -> dict[str, tuple[str, str]]:
    """(scope, first output) of every node by its name, as costs are kept."""
    return {
        ref.proto.name: (ref.scope.path, ref.proto.output[0]) for ref in GraphView(opened).nodes
    }


def _parameters(opened: OpenModel, cost: ModelCost, report: RewriteReport) -> int:
    """The parameters of all rewritten sites, those that several share counted once."""
    made = _made_by(opened)
    names = [name for site in report.rewritten for name in site.nodes]
    return cost.parameters_of(made[name] for name in names if name in made)


def count_sites(opened: OpenModel, cost: ModelCost, report: RewriteReport) -> None:
    """Bring the counts of the sites in the report up to date with the model."""
    made = _made_by(opened)
    for site in report.rewritten:
        own = [made[name] for name in site.nodes if name in made]
        nodes = [node for path, name in own if (node := cost.node(path, name))]
        macs = [node.macs for node in nodes]
        site.parameters.after = cost.parameters_of(own)
        site.macs.after = None if None in macs else sum(each or 0 for each in macs)
