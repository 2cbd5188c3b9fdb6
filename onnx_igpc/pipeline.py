"""compress and inspect: the passes in order, and the report of what they did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_igpc.batches import Data
from onnx_igpc.calibration_run import DEFAULT_SAMPLES, CalibrationRun
from onnx_igpc.checks import check_graph, check_original, check_sites, shape_doubt
from onnx_igpc.cost import ModelCost, count
from onnx_igpc.errors import UsageError
from onnx_igpc.fitting import (
    IgpcWeights,
    fit_layout,
    igpc_matrix,
    random_weights,
    relative_error,
)
from onnx_igpc.layout import SCHEMES, GroupedStage, GroupLayout, plan_layout
from onnx_igpc.model_io import (
    OpenModel,
    PathLike,
    copy_model,
    file_bytes,
    open_model,
    refuse_same_file,
    save_model,
)
from onnx_igpc.passes import FoldBatchNorm, GroupPointwise, MergeGathers, RemoveDead
from onnx_igpc.passes.group_pointwise import Form, SiteRewrite, Weigher
from onnx_igpc.preprocessing import Preprocessing
from onnx_igpc.report import (
    Change,
    RewriteReport,
    SiteReport,
    StageReport,
    describe_interleave,
    read_digest,
    write_digest,
)
from onnx_igpc.sites import PointwiseSite, SiteFilter

Progress = Callable[[int, int, str], None]
NO_DATA_WARNING = "the weights were fitted without data: expect to fine-tune before use"
RANDOM_WARNING = "the weights are random: train the model before use"
NOTHING_WARNING = "nothing to rewrite: the output is the input, byte for byte"


@dataclass(frozen=True)
class CompressOptions:
    """What :func:`compress` is asked for; see there."""

    channels_per_group: int = 16
    scheme: str = "v2"
    form: Form = "linear"
    init: str = "fitted"
    seed: int = 0
    fold_batch_norm: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include_heads: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For the report: everything that decides what is written."""
        options: dict[str, Any] = {
            "ch": self.channels_per_group,
            "scheme": self.scheme,
            "form": self.form,
            "init": self.init,
            "fold_batch_norm": self.fold_batch_norm,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "include_heads": self.include_heads,
        }
        if self.init == "random":
            options["seed"] = self.seed
        return options


@dataclass
class CompressResult:
    """The rewritten model and the report of the rewrite.

    ``changed`` is false where there was nothing to rewrite; :meth:`save` then copies the input.
    """

    opened: OpenModel
    report: RewriteReport
    changed: bool
    _loaded: onnx.ModelProto | None = field(default=None, repr=False)

    @property
    def model(self) -> onnx.ModelProto:
        """The model with all its data in memory.

        Raises:
            ModelError: it is larger than a protobuf message can be (2 GiB): use :meth:`save`.
        """
        if self._loaded is None:
            self._loaded = (
                self.opened.materialized() if self.opened.has_external_data else self.opened.proto
            )
        return self._loaded

    def save(self, path: PathLike) -> None:
        """Write the model, whole or not at all, and put its size into the report.

        Raises:
            UsageError: the file cannot be written, or is the input itself.
        """
        target = Path(path)
        refuse_same_file(self.opened.path, target)
        if not self.changed and self.opened.path is not None:
            copy_model(self.opened, target)
        else:
            save_model(self.opened, target)
        self.report.totals.file_bytes.after = file_bytes(target)


def compress(
    model: onnx.ModelProto | PathLike,
    *,
    channels_per_group: int = 16,
    scheme: str = "v2",
    form: Form = "linear",
    init: str | None = None,
    seed: int = 0,
    fold_batch_norm: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    include_heads: bool = False,
    calibration: PathLike | Data | None = None,
    preprocessing: Preprocessing | None = None,
    samples: int = DEFAULT_SAMPLES,
    sequential: bool = True,
    progress: Progress | None = None,
) -> CompressResult:
    """Rewrite the pointwise convolutions of a model into interleaved grouped ones.

    Args:
        model: a ModelProto, which is not changed, or the path of a model file.
        channels_per_group: the schemes' hyper-parameter ``ch``.
        scheme: ``"v2"`` (without divisibility constraints) or ``"v1"`` (with).
        form: ``"linear"`` replaces only the convolution and can be fitted to its weight;
            ``"paper"`` has BatchNorm and activation after K and after L, for training from scratch.
        init: ``"fitted"`` or ``"random"``; fitted in the linear form if ``None``, random in the
            paper's, which cannot be fitted.
        seed: for random weights.
        fold_batch_norm: fold BatchNormalization into the convolutions first.
        include: only sites whose name matches one of these globs.
        exclude: no site whose name matches one of these globs.
        include_heads: rewrite heads too: convolutions that make a model output.
        calibration: unlabelled data to fit the weights to, and to measure the damage on: a folder of
            images, tar shards, arrays (see :func:`~onnx_igpc.inputs.open_data`), or opened data.
        preprocessing: how images become inputs of the model.
        samples: at most so many of a data source that is not opened already.
        sequential: fit each site on what the rewritten sites before it make of the data, towards what
            the original computes; ``False`` fits all on the original's activations.
        progress: called with (sites done, sites in all, name of the next).

    Raises:
        DataError: calibration data that cannot be used, or activations that are not finite.
        UsageError: an option that cannot be used as given, or a glob that matches nothing.
        ModelError: the model cannot be read or is not valid ONNX.
        CheckFailedError: the written graph does not do what it should; a defect of this tool.
    """
    options = CompressOptions(
        channels_per_group,
        scheme,
        form,
        _init(form, init),
        seed,
        fold_batch_norm,
        tuple(include),
        tuple(exclude),
        include_heads,
    )
    _check_options(options)
    if calibration is not None and options.init == "random":
        raise UsageError("random weights are not fitted to data: leave out --calibration")
    if calibration is None and preprocessing is not None:
        raise UsageError("preprocessing is for calibration images: give --calibration as well")
    opened = _open(model)
    check_original(opened)
    run = None
    if calibration is not None:
        run = CalibrationRun.open(model, opened, calibration, preprocessing, samples, sequential)
    return _compress(opened, options, _weigher(options), progress, checked=True, calibration=run)


def inspect(
    model: onnx.ModelProto | PathLike,
    *,
    channels_per_group: int = 16,
    scheme: str = "v2",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    include_heads: bool = False,
) -> RewriteReport:
    """The report that :func:`compress` would give, without fitting or writing anything.

    The counts are those of a rewritten graph whose weights are all zero. Raises as compress does.
    """
    options = CompressOptions(
        channels_per_group,
        scheme,
        include=tuple(include),
        exclude=tuple(exclude),
        include_heads=include_heads,
    )
    _check_options(options)
    opened = _open(model)
    check_original(opened)
    report = _compress(opened, options, _no_weights, None, checked=False).report
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
) -> CompressResult:
    before = count(opened)
    interface = _interface(opened.proto)
    doubt = shape_doubt(opened) if checked else None
    size = file_bytes(opened.path, opened.proto) if opened.path else opened.proto.ByteSize()
    digest = read_digest(opened.proto)
    taken = {name: site.name for site in digest.rewritten for name in site.nodes} if digest else {}
    report = RewriteReport(options=options.as_dict(), notes=list(before.notes))
    report.input_shapes = {name: list(shape) for name, shape in before.input_shapes.items()}
    orphans: set[str] = set()
    fold = FoldBatchNorm(taken)
    if options.fold_batch_norm:
        folded = fold.run(opened)
        report.folded = folded.changed
        orphans |= folded.orphans
    group = GroupPointwise(
        lambda site: _plan(site, options),
        weigh,
        options.form,
        SiteFilter(options.include, options.exclude, options.include_heads, taken),
        progress,
    )
    grouped = calibration.rewrite(opened, group) if calibration else group.run(opened)
    orphans |= grouped.orphans
    _clean(opened, orphans, report)
    if checked:
        report.checks["sites"] = check_sites(opened, group.rewrites)
    inserted = {name for rewrite in group.rewrites for name in rewrite.nodes}
    merged = MergeGathers(inserted).run(opened)
    report.merged = merged.changed
    _clean(opened, merged.orphans, report)
    after = count(opened)
    changed = any(rewrite.layout is not None for rewrite in group.rewrites) or bool(report.folded)
    report.sites = _site_reports(group.rewrites, before, after, fold.renamed, digest)
    _fill_totals(report, before, after, size)
    report.totals.pointwise_parameters = _pointwise_parameters(
        group.rewrites, before, after, fold.renamed, digest
    )
    if calibration and changed:
        calibration.fill(report, opened)
    _warn(report, options, changed, digest)
    if checked and changed:
        report.checks = {**check_graph(interface, opened, doubt), **report.checks}
    if changed:
        write_digest(opened.proto, report)
    report.totals.file_bytes.after = opened.total_bytes() if changed else size
    return CompressResult(opened, report, changed)


def _interface(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model with the inputs, outputs and names of initializers of ``proto``, without its data."""
    kept = onnx.ModelProto()
    kept.graph.input.extend(proto.graph.input)
    kept.graph.output.extend(proto.graph.output)
    kept.graph.initializer.extend(
        onnx.TensorProto(name=tensor.name) for tensor in proto.graph.initializer
    )
    return kept


def _clean(opened: OpenModel, orphans: set[str], report: RewriteReport) -> None:
    dead = RemoveDead(orphans)
    report.removed += dead.run(opened).changed
    report.inputs_removed += dead.inputs_removed


def _init(form: str, init: str | None) -> str:
    if form == "paper" and init == "fitted":
        raise UsageError(
            "the paper's form cannot be fitted to the dense weights: "
            "use the linear form, or leave out --init fitted"
        )
    return init or ("random" if form == "paper" else "fitted")


def _check_options(options: CompressOptions) -> None:
    if options.channels_per_group < 1:
        raise UsageError(f"--ch must be at least 1, not {options.channels_per_group}")
    if options.scheme not in SCHEMES:
        raise UsageError(f"--scheme must be one of {', '.join(SCHEMES)}, not {options.scheme!r}")
    if options.form not in ("linear", "paper"):
        raise UsageError(f"--form must be linear or paper, not {options.form!r}")
    if options.init not in ("fitted", "random"):
        raise UsageError(f"--init must be fitted or random, not {options.init!r}")


def _open(model: onnx.ModelProto | PathLike) -> OpenModel:
    if not isinstance(model, onnx.ModelProto):
        return open_model(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return OpenModel(copy)


def _plan(site: PointwiseSite, options: CompressOptions) -> GroupLayout:
    assert site.in_channels is not None
    assert site.out_channels is not None
    return plan_layout(
        site.in_channels, site.out_channels, options.channels_per_group, options.scheme
    )


def _weigher(options: CompressOptions) -> Weigher:
    if options.init == "random":
        return lambda site, layout, scale: (
            random_weights(layout, options.seed, site.name, options.form == "paper"),
            None,
        )
    return _fit


def _fit(
    site: PointwiseSite, layout: GroupLayout, scale: np.ndarray | None
) -> tuple[IgpcWeights, float]:
    weight = site.weight_matrix().astype(np.float64)
    weights = fit_layout(layout, weight, filter_scale=scale)
    return weights, relative_error(weight, igpc_matrix(layout, weights))


def _no_weights(
    site: PointwiseSite, layout: GroupLayout, scale: np.ndarray | None
) -> tuple[IgpcWeights, None]:
    def zeros(stage: GroupedStage) -> tuple[np.ndarray, ...]:
        return tuple(np.zeros(path.weight_shape, dtype=site.dtype) for path in stage.paths)

    return IgpcWeights(zeros(layout.k), zeros(layout.l) if layout.l else None), None


def _site_reports(
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
        if _is_part(rewrite):
            continue
        reports.append(_site_report(rewrite, before, after, renamed))
    names = {name for site in earlier.values() for name in site.nodes}
    reports = [site for site in reports if site.name not in names]
    return [*earlier.values(), *reports]


def _is_part(rewrite: SiteRewrite) -> bool:
    """Whether this convolution is the K or L of a site that an earlier run rewrote."""
    return (rewrite.kept_reason or "").startswith("part of the already rewritten")


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
    return report


def _pointwise_parameters(
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
        written += [(path, name) for name in rewrite.convolutions or (output,)]
        if not _is_part(rewrite):
            dense.append((path, renamed.get((path, output), output)))
    earlier = [site for site in digest.rewritten if not site.shares_weight_with] if digest else []
    return Change(
        before.parameters_of(dense) + sum(site.parameters.before or 0 for site in earlier),
        after.parameters_of(written),
    )


def _fill_totals(report: RewriteReport, before: ModelCost, after: ModelCost, size: int) -> None:
    totals = report.totals
    totals.parameters = Change(before.parameters, after.parameters)
    totals.macs = Change(before.macs, after.macs)
    totals.file_bytes.before = size
    if before.unknown:
        report.notes.append(
            f"MACs do not include {len(before.unknown)} nodes whose shapes are not known"
        )


def _warn(
    report: RewriteReport, options: CompressOptions, changed: bool, digest: RewriteReport | None
) -> None:
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
