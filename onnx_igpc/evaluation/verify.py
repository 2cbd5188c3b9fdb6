"""Does a rewritten model still do what the original did? Both run in onnxruntime on the same inputs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnx_igpc.data.batches import Data, data_doubts, data_notes, random_data
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.sources import Arrays, as_data
from onnx_igpc.errors import DataError, ModelError, UsageError
from onnx_igpc.evaluation.comparison import Comparison
from onnx_igpc.evaluation.options import Thresholds
from onnx_igpc.evaluation.output_kinds import Compared, output_kinds, site_tensors
from onnx_igpc.evaluation.single_precision import holds_double, in_single_precision
from onnx_igpc.graph.inputs import InputSpec
from onnx_igpc.graph.model import OpenModel, PathLike, open_model
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.report.verification import VerifyReport
from onnx_igpc.runtime.profile import ExecutionProfile, misplaced_message
from onnx_igpc.runtime.session import (
    Session,
    make_session,
    other_outputs,
    provider_label,
    provider_name,
    session_inputs,
    session_outputs,
)
from onnx_igpc.runtime.session_source import AnyModel
from onnx_igpc.runtime.setting import Setting

RANDOM_SAMPLES = 8
"""Random inputs that are compared where there is no data."""


DEFAULT_SETTING = Setting(batch=16)


@dataclass(frozen=True)
class Wanted:
    """What is compared, and how; see :func:`verify`.

    report: names the rewritten sites; None reads the candidate's.
    """

    scores: str | None = None
    outputs: Sequence[str] = ()
    metric: str | None = None
    report: RewriteReport | None = None


def verify(
    original: AnyModel,
    candidate: AnyModel,
    data: PathLike | Arrays | Data | Dataset | None = None,
    *,
    setting: Setting | None = None,
    thresholds: Thresholds | None = None,
    scores: str | None = None,
    outputs: Sequence[str] = (),
    metric: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Run both models on the same inputs and compare every output that can be compared.

    Outputs that are no tensors of numbers (strings, sequences, maps), or whose rows depend on the data
    (NonMaxSuppression), are left out with a note. Where nothing is left, the outputs of the rewritten
    sites are compared. Class numbers (ArgMax) are compared by the share that is equal.

    Args:
        original: a model, by its path or in memory.
        candidate: the other one.
        data: a path, arrays, opened data, or a :class:`~onnx_igpc.data.dataset.Dataset` with more to say;
            without a source, seeded random inputs (8 unless ``Dataset.samples`` says otherwise).
        setting: where the models run, on how many samples at once, and the sizes of dynamic dimensions of
            random inputs; None: on the CPU, 16 at once.
        thresholds: what has to hold.
        scores: the output with class scores; without it, the only output that is [batch, classes] once
            dimensions of 1 other than the batch are dropped.
        outputs: the only ones to compare.
        metric: ``module:function``, see :class:`~onnx_igpc.evaluation.user_metric.Metric`.
        progress: called with samples done and in all.

    Returns:
        What was compared. What does not hold is listed in its failures.

    Raises:
        ModelError: the models' inputs or outputs differ, or one cannot run.
        DataError: data that cannot be used.
        UsageError: options that cannot be used for the models.
        CheckFailedError: the execution provider asked for is not the one that onnxruntime uses.
    """
    return compare_models(
        original,
        candidate,
        Dataset.of(data),
        Wanted(scores, outputs, metric),
        setting=setting or DEFAULT_SETTING,
        thresholds=thresholds or Thresholds(),
        progress=progress,
    )


def compare_models(
    original: AnyModel,
    candidate: AnyModel,
    data: Dataset,
    wanted: Wanted,
    *,
    setting: Setting = DEFAULT_SETTING,
    thresholds: Thresholds | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """As :func:`verify`, which this is the whole of."""
    thresholds = thresholds or Thresholds()
    for model in (original, candidate):
        # What a file must not hold is refused before onnxruntime sees it: it follows any call of a function.
        if isinstance(model, (str, os.PathLike)):
            open_model(model)
    models: dict[str, AnyModel] = {"original": original, "candidate": candidate}
    narrowed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="onnx-igpc-", ignore_cleanup_errors=True) as folder:

        def sessions(tensors: Sequence[Compared] = ()) -> dict[str, Session]:
            return {
                role: make_session(
                    model,
                    setting.provider,
                    threads=setting.threads,
                    profile=Path(folder) / role,
                    extra_outputs=list(dict.fromkeys(getattr(each, role) for each in tensors)),
                )
                for role, model in models.items()
            }

        try:
            made = sessions()
        except ModelError:
            opened = {role: _opened(model) for role, model in models.items()}
            if not all(holds_double(each.proto) for each in opened.values()):
                raise
            models |= {role: in_single_precision(each) for role, each in opened.items()}
            narrowed.append(
                "onnxruntime cannot run the models in float64: both were run in float32"
            )
            made = sessions()
        inputs = check_same_interface(made["original"], made["candidate"])
        kinds = output_kinds(
            _proto(original),
            session_outputs(made["original"]),
            other_outputs(made["original"]),
            wanted.outputs,
            wanted.scores,
        )
        source = _open(data, inputs, setting)
        run = Comparison(made, kinds.outputs, source, wanted.scores, wanted.metric)
        if run.compares or wanted.metric is not None:
            _run(run, source, progress)
        sites: tuple[Compared, ...] = ()
        digest: RewriteReport | None = None
        if not run.compares and wanted.metric is None:
            digest = read_digest(_proto(candidate))
            sites = site_tensors(_proto(original), _proto(candidate), wanted.report or digest)
            left_out = run.left_out
            # Without sites the models are still run: that they can be is worth knowing.
            run = Comparison(sessions(sites) if sites else sessions(), sites, source, None, None)
            run.left_out += left_out
            _run(run, source, progress)
    if not run.samples:
        raise DataError(f"{source.describe().source}: no sample could be read")
    classes = run.classifier is not None or any(o.agreement is not None for o in run.differences())
    if thresholds.min_agreement is not None and not classes:
        raise UsageError(
            "no output holds class scores, so there is no agreement: name it with scores"
        )
    failures = run.failures(thresholds.min_agreement, thresholds.atol, thresholds.rtol)
    doubts = [] if data.source is None else data_doubts(source)
    notes = [*narrowed, *data_notes(source), *doubts, *kinds.left_out, *run.notes()]
    if sites:
        of = "the rewritten sites" if wanted.report or digest else "the last layers of one name"
        notes.append(f"no output can be compared: the outputs of {of} are")
    elif not run.compares and wanted.metric is None:
        failures.append(
            "nothing was compared: no output can be, and no inner layer has one name in both"
        )
    for role, profile in run.profiles.items():
        failures += _misplacements(role, profile, setting.provider)
    return VerifyReport(
        original=_label(original),
        candidate=_label(candidate),
        provider=provider_label(provider_name(setting.provider)),
        samples=run.samples,
        random=data.source is None,
        data=source.describe(),
        outputs=tuple(run.differences()),
        classifier=run.classifier.result() if run.classifier else None,
        metric=run.metric.result() if run.metric else None,
        executed={role: profile.describe() for role, profile in run.profiles.items()},
        failures=tuple(failures),
        notes=tuple(notes),
        sites=bool(sites),
    )


def _run(run: Comparison, source: Data, progress: Callable[[int, int], None] | None) -> None:
    for batch in source:
        run.add(batch)
        if progress is not None:
            progress(run.samples, source.size)


def _opened(model: AnyModel) -> OpenModel:
    if isinstance(model, onnx.ModelProto):
        return OpenModel(model)
    return model if isinstance(model, OpenModel) else open_model(model)


def _proto(model: AnyModel) -> onnx.ModelProto:
    return _opened(model).proto


def check_same_interface(original: Session, candidate: Session) -> list[InputSpec]:
    """The inputs of both models; ModelError where inputs or outputs differ in name, type or shape.

    Names of dynamic dimensions do not matter, nor whether an output's dimension is declared as fixed
    or left dynamic.
    """
    inputs = session_inputs(original)
    _check_same("input", inputs, session_inputs(candidate), strict=True)
    _check_same("output", session_outputs(original), session_outputs(candidate), strict=False)
    ours, theirs = other_outputs(original), other_outputs(candidate)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ModelError(
                f"the models differ: output {name!r} is {ours.get(name)} in the original and "
                f"{theirs.get(name)} in the candidate"
            )
    return inputs


def _check_same(
    kind: str, ours: Sequence[InputSpec], theirs: Sequence[InputSpec], *, strict: bool
) -> None:
    by_name = {spec.name: spec for spec in theirs}
    ours_names = {spec.name for spec in ours}
    if ours_names != set(by_name):
        odd = min(ours_names ^ set(by_name))
        has, lacks = ("original", "candidate") if odd in ours_names else ("candidate", "original")
        raise ModelError(f"the models differ: {kind} {odd!r} of the {has} is not in the {lacks}")
    for spec in ours:
        other = by_name[spec.name]
        if spec.dtype != other.dtype or not _same_shape(spec.shape, other.shape, strict):
            raise ModelError(
                f"the models differ: {kind} {spec.describe()} of the original is "
                f"{other.describe()} in the candidate"
            )


def _same_shape(
    a: tuple[int | str | None, ...], b: tuple[int | str | None, ...], strict: bool
) -> bool:
    if not strict and not (a and b):
        return True  # an output that is declared without a shape
    return len(a) == len(b) and all(
        x == y if isinstance(x, int) and isinstance(y, int) else _both_dynamic(x, y) or not strict
        for x, y in zip(a, b, strict=True)
    )


def _both_dynamic(x: int | str | None, y: int | str | None) -> bool:
    return not isinstance(x, int) and not isinstance(y, int)


def _open(data: Dataset, inputs: Sequence[InputSpec], setting: Setting) -> Data:
    if data.source is None:
        count = RANDOM_SAMPLES if data.samples is None else data.samples
        return random_data(inputs, samples=count, batch_size=setting.batch, shapes=setting.shapes)
    return as_data(
        data.source,
        inputs,
        data.preprocessing,
        samples=data.samples,
        batch_size=setting.batch,
        label_offset=data.label_offset,
    )


def _misplacements(role: str, profile: ExecutionProfile, provider: str) -> list[str]:
    """Failures where the provider asked for did not run the model's arithmetic."""
    if not profile.ran_on(provider):
        label = provider_label(provider_name(provider))
        return [f"{role}: {label} ran none of the nodes; {profile.describe()}"]
    misplaced = profile.misplaced(provider)
    if not misplaced:
        return []
    return [f"{role}: {misplaced_message(misplaced, provider)}"]


def _label(model: AnyModel) -> str:
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    return model.name if isinstance(model, OpenModel) else "the model"
