"""compress and inspect: the phases in order.

Find the sites, plan a layout for each, keep dense what would be slower, rewrite, describe. Then the
written graph is checked, and the report goes into it as its digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import onnx
from threadpoolctl import threadpool_limits

from onnx_igpc.calibration.fitters import DataFreeFitter, RandomFitter, ZeroFitter
from onnx_igpc.calibration.options import Calibration
from onnx_igpc.compression.basis import Basis, HeldOutMeasure
from onnx_igpc.compression.job import Job
from onnx_igpc.compression.plan_choice import Planning, choose_plan
from onnx_igpc.compression.plugins import PluginPass, load_plugins
from onnx_igpc.compression.rewrite import Rewriter
from onnx_igpc.compression.summary import NOTHING_WARNING, Measured, Original, describe
from onnx_igpc.data.batches import Data, data_doubts, data_notes
from onnx_igpc.data.progress import Progress, portion
from onnx_igpc.data.sources import Arrays
from onnx_igpc.evaluation.damage import measure_damage
from onnx_igpc.graph.checks import check_graph, check_original
from onnx_igpc.graph.model import OpenModel, PathLike
from onnx_igpc.lowering.auto import LoweringRun
from onnx_igpc.lowering.options import Lowering
from onnx_igpc.passes import Pass
from onnx_igpc.planning.options import Budget, Keep, Published
from onnx_igpc.planning.planners import plan_published
from onnx_igpc.planning.search import Plan
from onnx_igpc.report.digest import write_digest
from onnx_igpc.report.result import CompressResult, open_copy
from onnx_igpc.report.sections import CalibrationReport
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.runtime.session_source import AnyModel
from onnx_igpc.sites.find import FoundSites, SiteFilter
from onnx_igpc.sites.rewrite import Fitter

# Where the last fit begins, and the rewrite with it.
_REWRITING = 0.94


def compress(
    model: onnx.ModelProto | PathLike,
    plan: Published | Budget | Keep | None = None,
    *,
    sites: SiteFilter | None = None,
    calibration: Calibration | PathLike | Arrays | Data | None = None,
    lowering: Lowering | None = None,
    fold_batch_norm: bool = False,
    passes: str | Pass | Sequence[str | Pass] = (),
    progress: Progress | None = None,
) -> CompressResult:
    """Rewrite the pointwise convolutions of a model into interleaved grouped ones.

    Args:
        model: a ModelProto, which is not changed, or the path of a model file.
        plan: a published scheme throughout (V2 with 16 channels per group if ``None``), or a budget
            from which every site gets its layout, or a promise to keep with as little as it takes.
        sites: which sites may be rewritten.
        calibration: data to fit the weights to, and to measure the damage on by fits that did not see
            it; of a plain source at most 1,024 samples are used.
        lowering: measures on this machine: sites that would be slower than dense stay dense, and the
            others are written for speed at the end, which is final. A budget of latency lowers as well.
        fold_batch_norm: fold BatchNormalization into the convolutions first.
        passes: names of passes (one, or several) that installed packages bring
            (:mod:`onnx_igpc.compression.plugins`), or passes; they run in this order behind the rewrite.
        progress: called with (done, in all, what is next): sites where only they count, otherwise
            thousandths of the time that is expected.

    Raises:
        DataError: calibration data that cannot be used, or activations that are not finite.
        UsageError: options that cannot be used together, or a glob that matches nothing.
        ModelError: the model cannot be read or is not valid ONNX.
        CheckFailedError: the budget cannot be reached, or only by a lowered model that is ruined; nothing keeps
            the promise; or the written graph does not do what it should, which is a defect of this tool or of
            one of the ``passes``.
    """
    plugins = load_plugins(passes)
    job = Job.of(plan, sites, calibration, lowering, fold_batch_norm)
    opened = open_copy(model)
    guard = job.guard(opened)
    check_original(opened)
    data = job.calibration.open(opened) if job.calibration else None
    if job.lowering is None:
        return replace(_compress(model, opened, job, data, plugins, progress), guard=guard)
    speed = LoweringRun.open(opened, job.lowering, progress)
    result = _compress(model, opened, job, data, plugins, progress, speed)
    return replace(speed.finish(result), guard=guard)


def inspect(
    model: onnx.ModelProto | PathLike,
    plan: Published | None = None,
    *,
    sites: SiteFilter | None = None,
) -> RewriteReport:
    """The report that :func:`compress` would give, without fitting or writing anything.

    The counts are those of a rewritten graph whose weights are all zero. Raises as compress does.
    """
    job = Job.of(plan, sites)
    opened = open_copy(model)
    check_original(opened)
    original = Original.of(opened, checked=False)
    rewriter = Rewriter(opened, original.digest)
    found = rewriter.find(job.sites)
    layouts = plan_published(found, job.published).layouts
    rewriter.rewrite(found, layouts, ZeroFitter(), job.published.form)
    rewriter.settle(checked=False)
    report = describe(original, rewriter.changes, opened, job.describe())
    report.totals.file_bytes.after = opened.total_bytes() if rewriter.changes.any else original.size
    report.warnings = [text for text in report.warnings if text == NOTHING_WARNING]
    report.notes.append("a plan: nothing was fitted or written")
    return report


def _compress(
    model: AnyModel,
    opened: OpenModel,
    job: Job,
    data: Data | None,
    plugins: Sequence[PluginPass],
    progress: Progress | None,
    speed: LoweringRun | None = None,
) -> CompressResult:
    """The phases; ``model`` is the original, ``opened`` the copy that is edited."""
    original = Original.of(opened)
    rewriter = Rewriter(opened, original.digest)
    if job.fold_batch_norm:
        rewriter.fold_batch_norms()
    found = rewriter.find(job.sites)
    options = job.describe(plugins)
    with ExitStack() as held:
        # Most matrices are small: two threads are no faster than one, and many times as slow beside other work.
        held.enter_context(threadpool_limits(1, "blas"))
        basis = _basis(found, opened, job, data)
        if basis is not None:
            held.callback(basis.close)
        rewriting = _REWRITING if basis is not None else 0.0
        telling = portion(progress, 0.0, rewriting)
        planning = Planning(found, opened, job, basis, original, telling, speed)
        measure = HeldOutMeasure(model, original, opened, job.sites, options, job.labelled)
        planned, damage = choose_plan(planning, measure)
        telling = portion(progress, rewriting, 1.0) if basis is not None else progress
        used = _rewrite(rewriter, found, planned, job, basis, telling)
        if job.plan.grouping == "learned":
            rewriter.absorb()
        rewriter.run_plugins(plugins)
        changes = rewriter.changes

        def measured(report: RewriteReport) -> Measured | None:
            if basis is None or used is None or damage is None or data is None or not changes.any:
                return None
            everything = basis.division.everything
            damage.fitted = measure_damage(model, opened, everything, report=report)
            used.held_out, used.confidence = damage.samples, damage.fitted.confidence
            notes = [*data_notes(data), *basis.notes]
            return Measured(used, data.preprocessing, damage, data_doubts(data), notes)

        report = describe(original, changes, opened, options, measured)
    report.selection = planned.summary
    if planned.summary is not None and planned.slower:
        report.notes.append(
            f"{planned.slower} sites that the budget had chosen to rewrite stay dense, since they would be "
            "slower: the damages of the selection are those of the plan before"
        )
    if changes.any:
        checks = check_graph(original.interface, opened, original.doubt)
        report.checks = {**checks, **report.checks}
        write_digest(opened.proto, report)
    report.totals.file_bytes.after = opened.total_bytes() if changes.any else original.size
    return CompressResult(opened, report, changes.any)


def _basis(found: FoundSites, opened: OpenModel, job: Job, data: Data | None) -> Basis | None:
    """The calibration data read and shared out; ``None`` where there is none, or nothing to fit."""
    if data is None or job.calibration is None:
        return None
    if isinstance(job.plan, Published) and job.plan.grouping == "contiguous":
        layouts = plan_published(found, job.plan).layouts
        if not any(each.replaced for each in layouts.values()):
            return None
    basis = Basis.of(opened, found, data, job.calibration)
    if isinstance(job.plan, Keep):
        basis.check_promise(job.plan.kept)
    return basis


def _rewrite(
    rewriter: Rewriter,
    found: FoundSites,
    planned: Plan,
    job: Job,
    basis: Basis | None,
    progress: Progress | None,
) -> CalibrationReport | None:
    """Rewrite with the weights that the job asks for; how the data was used, where there is any."""
    published, layouts = job.published, planned.layouts
    if basis is None:
        paper = published.form == "paper"
        fitter: Fitter = (
            RandomFitter(published.seed, paper) if published.random else DataFreeFitter()
        )
        rewriter.rewrite(found, layouts, fitter, published.form, progress)
        rewriter.settle()
        return None
    everything = basis.division.everything
    found = rewriter.restructure(found, planned, everything, job.sites)
    layouts = planned.for_sites(found)
    with basis.calibrator(rewriter.model, found, layouts, everything, planned.starts) as calibrator:
        rewriter.rewrite(found, layouts, calibrator, published.form, progress)
        used = basis.complete(calibrator.summary(), planned)
    rewriter.settle()
    return used
