"""compress and inspect: the passes in order, and the report of what they did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx

from onnx_igpc.arguments import texts
from onnx_igpc.compression.calibration_run import DEFAULT_SAMPLES, CalibrationRun
from onnx_igpc.compression.plugins import PluginPass, load_plugins, run_plugin
from onnx_igpc.compression.summary import (
    NOTHING_WARNING,
    add_warnings,
    fill_totals,
    pointwise_parameters,
    site_reports,
)
from onnx_igpc.compression.weighing import no_weights, published_layout, weigher
from onnx_igpc.data.batches import Data
from onnx_igpc.data.file_guard import FileGuard
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.sources import Arrays
from onnx_igpc.errors import UsageError
from onnx_igpc.evaluation.equivalence import check_reordered
from onnx_igpc.evaluation.site_check import check_sites
from onnx_igpc.graph.checks import check_graph, check_original, shape_doubt
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel, PathLike, file_bytes, snapshot
from onnx_igpc.lowering.auto import LoweringRun
from onnx_igpc.passes import (
    AbsorbGathers,
    FoldBatchNorm,
    GroupPointwise,
    MergeGathers,
    Pass,
    RemoveDead,
)
from onnx_igpc.passes.remove_dead import unread_values
from onnx_igpc.planning.knapsack import Target
from onnx_igpc.planning.options import DEFAULT_CH, CompressOptions, chosen_init
from onnx_igpc.report.digest import read_digest, refuse_lowered, write_digest
from onnx_igpc.report.result import CompressResult, open_copy
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.sites.find import SiteFilter
from onnx_igpc.sites.rewrite import Form, Planner, SiteRewrite, Weigher

Progress = Callable[[int, int, str], None]


def compress(
    model: onnx.ModelProto | PathLike,
    *,
    channels_per_group: int | None = None,
    scheme: str = "v2",
    form: Form = "linear",
    init: str | None = None,
    seed: int = 0,
    fold_batch_norm: bool = False,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    include_heads: bool = False,
    calibration: PathLike | Arrays | Data | None = None,
    preprocessing: Preprocessing | None = None,
    samples: int = DEFAULT_SAMPLES,
    sequential: bool = True,
    target: str | None = None,
    family: str | None = None,
    grouping: str | None = None,
    sensitivity: PathLike | None = None,
    save_sensitivity: PathLike | None = None,
    passes: str | Pass | Sequence[str | Pass] = (),
    lowering: str = "literal",
    setting: Setting | None = None,
    allow_slower: bool = False,
    cache: PathLike | bool = True,
    progress: Progress | None = None,
) -> CompressResult:
    """Rewrite the pointwise convolutions of a model into interleaved grouped ones.

    Args:
        model: a ModelProto, which is not changed, or the path of a model file.
        channels_per_group: the schemes' hyper-parameter ``ch``, 16 if ``None``.
        scheme: ``"v2"`` (without divisibility constraints) or ``"v1"`` (with).
        form: ``"linear"`` replaces only the convolution and can be fitted to its weight;
            ``"paper"`` has BatchNorm and activation after K and after L, for training from scratch.
        init: ``"fitted"`` or ``"random"``; fitted in the linear form if ``None``, random in the
            paper's, which cannot be fitted.
        seed: for random weights.
        fold_batch_norm: fold BatchNormalization into the convolutions first.
        include: only sites whose name matches this glob, or one of these.
        exclude: no site whose name matches this glob, or one of these.
        include_heads: rewrite heads too: convolutions that make a model output.
        calibration: unlabelled data to fit the weights to, and to measure the damage on: a folder of
            images, tar shards, files of arrays (see :func:`~onnx_igpc.data.sources.open_data`), an array or
            arrays by the name of their input, or opened data.
        preprocessing: how images become inputs of the model.
        samples: at most so many of a data source that is not opened already.
        sequential: fit each site on what the rewritten sites before it make of the data, towards what
            the original computes; ``False`` fits all on the original's activations.
        target: a budget in place of ``channels_per_group``, as ``"pointwise-parameters=40%"``: every
            site gets the layout with which the predicted damage of the whole is least. ``"latency=60%"``
            is measured at ``setting``, and lowers the model as ``lowering="auto"`` does.
        family: what a budget chooses from: ``"extended"`` (the default there) or ``"published"``.
        grouping: ``"learned"`` puts channels that belong together into one group (the default under a
            budget), ``"contiguous"`` leaves them in order.
        sensitivity: a file of measurements to reuse; ``save_sensitivity`` is where to write them.
        passes: names of passes (one, or several) that installed packages bring (:mod:`onnx_igpc.compression.plugins`), or passes; they
            run in this order behind the rewrite.
        lowering: ``"auto"`` measures on this machine: sites that would be slower than dense stay dense,
            and the others are written for speed at the end, which is final.
        setting: where and how the model will run, for what is measured.
        allow_slower: rewrite what is slower than dense, too.
        cache: a folder for what was measured, ``True`` for the user's, ``False`` for none.
        progress: called with (sites done, sites in all, name of the next).

    Raises:
        DataError: calibration data that cannot be used, or activations that are not finite.
        UsageError: an option that cannot be used as given, or a glob that matches nothing.
        ModelError: the model cannot be read or is not valid ONNX.
        CheckFailedError: the target cannot be reached, or the written graph does not do what it
            should, which is a defect of this tool or of one of the ``passes``.
    """
    if target is not None and channels_per_group is not None:
        raise UsageError("--ch and --target both say how small: give one of them")
    plugins = load_plugins(passes)
    wanted = Target.parse(target) if target is not None else None
    options = CompressOptions(
        DEFAULT_CH if channels_per_group is None else channels_per_group,
        scheme,
        form,
        chosen_init(form, init),
        seed,
        fold_batch_norm,
        texts("include", include),
        texts("exclude", exclude),
        include_heads,
        wanted,
        family or ("extended" if target else "published"),
        grouping or ("learned" if target else "contiguous"),
        Path(sensitivity) if sensitivity is not None else None,
        Path(save_sensitivity) if save_sensitivity is not None else None,
        tuple(plugin.label for plugin in plugins),
        "auto" if wanted is not None and wanted.is_latency else lowering,
    )
    options.check(calibrated=calibration is not None)
    if calibration is None and preprocessing is not None:
        raise UsageError("preprocessing is for calibration images: give --calibration as well")
    opened = open_copy(model)
    guard = _guard(opened, calibration, options)
    check_original(opened)
    run = None
    if calibration is not None:
        run = CalibrationRun.open(model, opened, calibration, preprocessing, samples, sequential)
    if options.lowering == "literal":
        result = _compress(opened, options, weigher(options), progress, True, run, plugins)
        return replace(result, guard=guard)
    speed = LoweringRun.open(opened, setting, allow_slower, cache, progress)
    result = _compress(opened, options, weigher(options), progress, True, run, plugins, speed)
    return replace(speed.finish(result), guard=guard)


def inspect(
    model: onnx.ModelProto | PathLike,
    *,
    channels_per_group: int | None = None,
    scheme: str = "v2",
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    include_heads: bool = False,
) -> RewriteReport:
    """The report that :func:`compress` would give, without fitting or writing anything.

    The counts are those of a rewritten graph whose weights are all zero. Raises as compress does.
    """
    options = CompressOptions(
        DEFAULT_CH if channels_per_group is None else channels_per_group,
        scheme,
        include=texts("include", include),
        exclude=texts("exclude", exclude),
        include_heads=include_heads,
    )
    options.check(calibrated=False)
    opened = open_copy(model)
    check_original(opened)
    report = _compress(opened, options, no_weights, None, checked=False).report
    report.warnings = [text for text in report.warnings if text == NOTHING_WARNING]
    report.notes.append("a plan: nothing was fitted or written")
    return report


def _compress(
    opened: OpenModel,
    options: CompressOptions,
    weigh: Weigher,
    progress: Progress | None,
    checked: bool,
    calibration: CalibrationRun | None = None,
    plugins: Sequence[PluginPass] = (),
    lowering: LoweringRun | None = None,
    plan: Planner | None = None,
) -> CompressResult:
    before = count(opened)
    interface = _interface(opened.proto)
    doubt = shape_doubt(opened) if checked else None
    size = file_bytes(opened.path, opened.proto) if opened.path else opened.proto.ByteSize()
    digest = read_digest(opened.proto)
    refuse_lowered(digest, opened.name, "compress")
    taken = {name: site.name for site in digest.rewritten for name in site.nodes} if digest else {}
    report = RewriteReport(options=options.as_dict(), notes=list(before.notes))
    report.input_shapes = {name: list(shape) for name, shape in before.input_shapes.items()}
    cleaner = _Cleaner(opened, report)
    orphans: set[str] = set()
    fold = FoldBatchNorm(taken)
    if options.fold_batch_norm:
        folded = fold.run(opened)
        report.folded = folded.changed
        orphans |= folded.orphans
    group = GroupPointwise(
        plan or (lambda site: published_layout(site, options)),
        weigh,
        options.form,
        SiteFilter(options.include, options.exclude, options.include_heads, taken),
        progress,
    )
    if calibration is not None:
        latency = None
        if lowering is not None and options.target is not None and options.target.is_latency:
            latency = lowering.latency(opened, partial(_trial, options))
        calibration.plan(opened, group, options, report, progress, latency)
    if lowering is not None:
        lowering.plan(opened, group, partial(_trial, options))
    grouped = calibration.rewrite(opened, group) if calibration else group.run(opened)
    orphans |= grouped.orphans
    cleaner.clean(orphans)
    if checked:
        report.checks["sites"] = check_sites(opened, group.rewrites)
    inserted = {name for rewrite in group.rewrites for name in rewrite.nodes}
    merged = MergeGathers(inserted).run(opened)
    report.merged = merged.changed
    cleaner.clean(merged.orphans)
    rewrites = group.rewrites
    if options.grouping == "learned":
        rewrites = _absorb(opened, rewrites, report, taken, digest, cleaner)
    _run_plugins(opened, plugins, rewrites, report, cleaner)
    after = count(opened)
    changed = any(rewrite.layout is not None for rewrite in rewrites) or bool(report.folded)
    changed = changed or any(report.passes.values())
    report.sites = site_reports(rewrites, before, after, fold.renamed, digest)
    fill_totals(report, before, after, size)
    report.totals.pointwise_parameters = pointwise_parameters(
        rewrites, before, after, fold.renamed, digest
    )
    if calibration and changed:
        calibration.fill(report, opened)
    add_warnings(report, options, changed, digest)
    if digest is not None:
        report.inherit(digest)
    if checked and changed:
        report.checks = {**check_graph(interface, opened, doubt), **report.checks}
    if changed:
        write_digest(opened.proto, report)
    report.totals.file_bytes.after = opened.total_bytes() if changed else size
    return CompressResult(opened, report, changed)


def _guard(
    opened: OpenModel, calibration: PathLike | Arrays | Data | None, options: CompressOptions
) -> FileGuard:
    """What the run reads; UsageError where it would write its measurements over some of it."""
    guard = FileGuard()
    guard.reads_model(opened)
    guard.reads_data(calibration, "calibration")
    guard.reads(options.sensitivity, "sensitivity")
    guard.writes(options.save_sensitivity, "save_sensitivity")
    guard.check()
    return guard


def _trial(options: CompressOptions, plan: Planner, opened: OpenModel) -> CompressResult:
    """The rewrite of ``opened`` with random weights, as fast as with any others."""
    anything = weigher(replace(options, init="random"))
    return _compress(opened, options, anything, None, checked=False, plan=plan)


def _absorb(
    opened: OpenModel,
    rewrites: Sequence[SiteRewrite],
    report: RewriteReport,
    taken: Mapping[str, str],
    digest: RewriteReport | None,
    cleaner: _Cleaner,
) -> list[SiteRewrite]:
    """Let producers take over the order of channels that learned groups read; checked as a whole."""
    inserted = {name for rewrite in rewrites for name in rewrite.nodes}
    absorb = AbsorbGathers(inserted, taken, digest.permutations if digest else ())
    before = snapshot(opened)
    done = absorb.run(opened)
    if not done:
        return list(rewrites)
    cleaner.clean(done.orphans)
    report.permuted = absorb.permuted
    report.permutations = absorb.permutations
    report.checks["order"] = check_reordered(before, opened)
    if digest is not None:
        for site in digest.sites:
            site.input = absorb.renamed.get(("", site.input), site.input)
            site.output = absorb.renamed.get(("", site.output), site.output)
    return [absorb.updated(rewrite) for rewrite in rewrites]


def _run_plugins(
    opened: OpenModel,
    plugins: Sequence[PluginPass],
    rewrites: Sequence[SiteRewrite],
    report: RewriteReport,
    cleaner: _Cleaner,
) -> None:
    inserted = [name for rewrite in rewrites for name in rewrite.nodes]
    for plugin in plugins:
        done = run_plugin(plugin, opened, inserted)
        report.passes[plugin.label] = done.changed
        cleaner.clean(done.orphans)


def _interface(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model with the inputs, outputs and names of initializers of ``proto``, without its data."""
    kept = onnx.ModelProto()
    kept.graph.input.extend(proto.graph.input)
    kept.graph.output.extend(proto.graph.output)
    kept.graph.initializer.extend(
        onnx.TensorProto(name=tensor.name) for tensor in proto.graph.initializer
    )
    return kept


class _Cleaner:
    """Removes what passes leave without a reader, and lists it; what had none before stays."""

    def __init__(self, opened: OpenModel, report: RewriteReport) -> None:
        self._opened = opened
        self._report = report
        self._unread = unread_values(opened.proto)

    def clean(self, orphans: set[str]) -> None:
        dead = RemoveDead(orphans, self._unread)
        self._report.removed += dead.run(self._opened).changed
        self._report.inputs_removed += dead.inputs_removed
