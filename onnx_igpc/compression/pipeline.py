"""compress and inspect: the phases in order.

Find the sites, plan a layout for each, keep dense what would be slower, rewrite, describe. Then the
written graph is checked, and the report goes into it as its digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from onnx_igpc.calibration.fitters import DataFreeFitter, RandomFitter, ZeroFitter
from onnx_igpc.calibration.options import Calibration
from onnx_igpc.compression.basis import Basis, HeldOutMeasure
from onnx_igpc.compression.plugins import PluginPass, load_plugins
from onnx_igpc.compression.rewrite import Rewriter
from onnx_igpc.compression.summary import NOTHING_WARNING, Measured, Original, describe
from onnx_igpc.data.batches import Data, data_doubts, data_notes
from onnx_igpc.data.file_guard import FileGuard
from onnx_igpc.data.progress import Progress
from onnx_igpc.data.sources import Arrays
from onnx_igpc.errors import UsageError
from onnx_igpc.evaluation.damage import measure_damage
from onnx_igpc.graph.checks import check_graph, check_original
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel, PathLike, snapshot
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.lowering.auto import LoweringRun
from onnx_igpc.lowering.options import Lowering
from onnx_igpc.passes import Pass
from onnx_igpc.planning.budget import Plan
from onnx_igpc.planning.options import Budget, Published
from onnx_igpc.planning.planners import plan_published, plan_sites
from onnx_igpc.report.digest import write_digest
from onnx_igpc.report.result import CompressResult, open_copy
from onnx_igpc.report.sections import CalibrationReport, OptionsReport
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.runtime.session_source import AnyModel
from onnx_igpc.sites.find import FoundSites, SiteFilter
from onnx_igpc.sites.rewrite import Fitter
from onnx_igpc.sites.subgraph import RewrittenModel


def compress(
    model: onnx.ModelProto | PathLike,
    plan: Published | Budget | None = None,
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
            from which every site gets its layout.
        sites: which sites may be rewritten.
        calibration: data to fit the weights to, and to measure the damage on; a plain source is
            calibrated on in sequence, with at most 512 samples.
        lowering: measures on this machine: sites that would be slower than dense stay dense, and the
            others are written for speed at the end, which is final. A budget of latency lowers as well.
        fold_batch_norm: fold BatchNormalization into the convolutions first.
        passes: names of passes (one, or several) that installed packages bring
            (:mod:`onnx_igpc.compression.plugins`), or passes; they run in this order behind the rewrite.
        progress: called with (sites done, sites in all, name of the next).

    Raises:
        DataError: calibration data that cannot be used, or activations that are not finite.
        UsageError: options that cannot be used together, or a glob that matches nothing.
        ModelError: the model cannot be read or is not valid ONNX.
        CheckFailedError: the budget cannot be reached, or the written graph does not do what it
            should, which is a defect of this tool or of one of the ``passes``.
    """
    plugins = load_plugins(passes)
    job = _Job.of(plan, sites, calibration, lowering, fold_batch_norm)
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
    job = _Job.of(plan, sites)
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


@dataclass(frozen=True)
class _Job:
    """What compress is asked for, checked before any work is done."""

    plan: Published | Budget
    sites: SiteFilter
    calibration: Calibration | None = None
    lowering: Lowering | None = None
    fold_batch_norm: bool = False

    @classmethod
    def of(
        cls,
        plan: Published | Budget | None,
        sites: SiteFilter | None,
        calibration: Calibration | PathLike | Arrays | Data | None = None,
        lowering: Lowering | None = None,
        fold_batch_norm: bool = False,
    ) -> _Job:
        plan = plan or Published()
        if calibration is not None and not isinstance(calibration, Calibration):
            calibration = Calibration(calibration)
        if isinstance(plan, Budget) and plan.quantity.is_latency:
            lowering = lowering or Lowering()
        job = cls(plan, sites or SiteFilter(), calibration, lowering, fold_batch_norm)
        job._check()
        return job

    def _check(self) -> None:
        if isinstance(self.plan, Published):
            if self.plan.form == "paper" and self.lowering is not None:
                raise UsageError(
                    "the paper's form is for training: train it, then use onnx-igpc lower"
                )
            if self.calibration is not None and self.plan.random:
                raise UsageError("random weights are not fitted to data: leave out `calibration`")
        needs_data = {
            "`target`": isinstance(self.plan, Budget),
            "`grouping` learned": self.plan.grouping == "learned",
        }
        for option, given in needs_data.items():
            if given and self.calibration is None:
                raise UsageError(f"{option} needs data to choose by: give `calibration`")

    def guard(self, model: OpenModel) -> FileGuard:
        """What the run reads; UsageError where it would write its measurements over some of it."""
        guard = FileGuard()
        guard.reads_model(model)
        if self.calibration is not None:
            guard.reads_data(self.calibration.data, "calibration")
        if isinstance(self.plan, Budget):
            guard.reads(self.plan.sensitivity, "sensitivity")
            guard.writes(self.plan.save_sensitivity, "save_sensitivity")
        guard.check()
        return guard

    @property
    def plans_with_data(self) -> bool:
        """Whether layouts are chosen by calibration data."""
        return isinstance(self.plan, Budget) or self.plan.grouping == "learned"

    @property
    def published(self) -> Published:
        """The form and the weights that the plan asks for; a budget's are linear and fitted."""
        return self.plan if isinstance(self.plan, Published) else Published()

    def describe(self, plugins: Sequence[PluginPass] = ()) -> OptionsReport:
        """For the report: everything that decides what is written."""
        published, plan = self.published, self.plan
        options = OptionsReport(
            form=published.form,
            init="random" if published.random else "fitted",
            fold_batch_norm=self.fold_batch_norm,
            include=list(self.sites.include),
            exclude=list(self.sites.exclude),
            include_heads=self.sites.include_heads,
            grouping=plan.grouping,
            seed=published.seed if published.random else None,
            lowering=self.lowering.kind if self.lowering is not None else None,
            passes=[plugin.label for plugin in plugins] or None,
        )
        if isinstance(plan, Budget):
            return replace(options, target=str(plan.quantity), family=plan.family)
        return replace(options, ch=plan.channels_per_group, scheme=plan.scheme)


def _compress(
    model: AnyModel,
    opened: OpenModel,
    job: _Job,
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
    basis = planned = None
    if not job.plans_with_data:
        planned = _plan(found, opened, job, None, original, progress, speed)
    if data is not None and job.calibration is not None:
        if planned is None or any(each.replaced for each in planned.layouts.values()):
            basis = Basis.of(opened, found, data, job.calibration)
    try:
        if planned is None:
            planned = _plan(found, opened, job, basis, original, progress, speed)
        used = damage = None
        if basis is not None:
            basis.choose_fit(planned, progress)
            held_out = HeldOutMeasure(model, original, opened, job.sites, job.describe(plugins))
            damage = held_out.damage(basis, planned, progress)
        used = _rewrite(rewriter, found, planned, job, basis, progress)
        if job.plan.grouping == "learned":
            rewriter.absorb()
        rewriter.run_plugins(plugins)
        changes = rewriter.changes

        def measure(report: RewriteReport) -> Measured | None:
            if basis is None or used is None or damage is None or data is None or not changes.any:
                return None
            everything = basis.division.everything
            damage.fitted = measure_damage(model, opened, everything, report=report)
            notes = [*data_notes(data), *basis.notes]
            return Measured(used, data.preprocessing, damage, data_doubts(data), notes)

        report = describe(original, changes, opened, job.describe(plugins), measure)
    finally:
        if basis is not None:
            basis.close()
    report.selection = planned.summary
    if changes.any:
        checks = check_graph(original.interface, opened, original.doubt)
        report.checks = {**checks, **report.checks}
        write_digest(opened.proto, report)
    report.totals.file_bytes.after = opened.total_bytes() if changes.any else original.size
    return CompressResult(opened, report, changes.any)


def _plan(
    found: FoundSites,
    opened: OpenModel,
    job: _Job,
    basis: Basis | None,
    original: Original,
    progress: Progress | None,
    speed: LoweringRun | None,
) -> Plan:
    """A layout for every site; where speed counts, what would be slower than dense is kept."""

    def trial(layouts: Mapping[str, GroupLayout]) -> RewrittenModel:
        return _trial(opened, job, original.digest, layouts)

    pricing = None
    if speed is not None and isinstance(job.plan, Budget) and job.plan.quantity.is_latency:
        pricing = speed.pricing(found, trial)
    trials = basis.trials if basis is not None else None
    planned = plan_sites(found, job.plan, trials, count(opened), pricing, progress)
    if speed is not None:
        planned.layouts = speed.keep_dense(found, planned.layouts, trial)
    return planned


def _trial(
    opened: OpenModel, job: _Job, digest: RewriteReport | None, layouts: Mapping[str, GroupLayout]
) -> RewrittenModel:
    """A copy of the model rewritten with random weights, as fast as with any others."""
    rewriter = Rewriter(snapshot(opened), digest)
    published = job.published
    rewriter.rewrite(
        rewriter.find(job.sites),
        layouts,
        RandomFitter(published.seed, published.form == "paper"),
        published.form,
    )
    rewriter.settle(checked=False)
    if job.plan.grouping == "learned":
        rewriter.absorb(checked=False)
    return rewriter.result()


def _rewrite(
    rewriter: Rewriter,
    found: FoundSites,
    planned: Plan,
    job: _Job,
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
    with basis.calibrator(rewriter.model, found, layouts, everything) as calibrator:
        rewriter.rewrite(found, layouts, calibrator, published.form, progress)
        used = basis.complete(calibrator.summary())
    rewriter.settle()
    return used
