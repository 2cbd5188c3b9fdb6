"""The end of a run: weights back into the graph, the written model checked, its report brought up to date."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from onnx_igpc.data.sources import open_data
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.evaluation.damage import measure_damage
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel, file_bytes, save_model
from onnx_igpc.passes import FoldBatchNorm
from onnx_igpc.report.digest import write_digest
from onnx_igpc.report.sections import FinetuneReport, MeasuredOn, WrittenCheck
from onnx_igpc.report.tree import NO_DATA_WARNING, RANDOM_WARNING, RewriteReport
from onnx_igpc.runtime.session import make_session, run_session
from onnx_igpc.torch_bridge import from_torch
from onnx_igpc.torch_bridge.training.loader import TensorBatch
from onnx_igpc.torch_bridge.training.losses import is_bounded
from onnx_igpc.torch_bridge.training.networks import Networks, as_list
from onnx_igpc.torch_bridge.training.preparation import Job

_TOLERANCE = {"float32": 1e-4, "float16": 5e-3}
# Two computations in float32 differ by about twice the rounding of one.
_ROUNDINGS = 4
_DAMAGE_SAMPLES = 512


def written_model(networks: Networks, model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` with the trained weights and statistics."""
    networks.student.to("cpu").eval()
    return from_torch(networks.student, model)


def fold(model: onnx.ModelProto, report: RewriteReport) -> onnx.ModelProto:
    """A copy with BatchNormalization folded into the convolutions before it; listed in the report."""
    opened = OpenModel(onnx.ModelProto())
    opened.proto.CopyFrom(model)
    folded = FoldBatchNorm().run(opened)
    report.removed += folded.removed
    report.inputs_removed += folded.inputs_removed
    report.folded += folded.changed
    for site in report.sites:
        site.nodes = [name for name in site.nodes if name not in folded.changed]
    cost = count(opened)
    report.totals.parameters.after, report.totals.macs.after = cost.parameters, cost.macs
    return opened.proto


def check_written(networks: Networks, model: onnx.ModelProto, batch: TensorBatch) -> WrittenCheck:
    """Run the written model in onnxruntime and the module in PyTorch on the same samples.

    Returns:
        ``relative``: the largest ``max|a - b| / max|b|`` of an output, b being the module's, or
        ``max|a - b|`` behind a Sigmoid or Softmax, which onnxruntime computes to so many digits of 1;
        ``bound``: what it may be: 1e-4, with half precision in the graph 5e-3, and more where a network
        amplifies rounding, four times by how much the module itself is away from its own computation in
        float64; ``samples``.

    Raises:
        CheckFailedError: it is larger.
    """
    specs = model_inputs(model)
    feeds = {
        spec.name: tensor.numpy().astype(spec.dtype)
        for spec, tensor in zip(specs, batch.inputs, strict=True)
    }
    got = list(run_session(make_session(model), feeds).values())
    made = _arrays(networks.student(*batch.inputs))[: len(got)]
    bound = _TOLERANCE["float16" if _has_half(model) else "float32"]
    worst, name = _worst(model, got, made)
    if bound < worst < float("inf"):
        bound = max(bound, _ROUNDINGS * _rounding(networks, model, batch, made))
    if not worst <= bound:
        raise CheckFailedError(
            f"output {name!r} of the written model is {worst:.2g} away from what the trained module "
            f"computes, relative to its largest value, more than {bound:g}: nothing was written"
        )
    return WrittenCheck(relative=worst, bound=bound, samples=batch.count)


def update_report(
    job: Job,
    report: RewriteReport,
    run: FinetuneReport,
    teacher: onnx.ModelProto | None,
    model: onnx.ModelProto,
) -> None:
    """Tell the run in the report, and replace what it made untrue: the damage and the advice to train."""
    stale = {NO_DATA_WARNING, RANDOM_WARNING, worse_than_before(report)}
    report.warnings = [text for text in report.warnings if text not in stale]
    measured = {each.note for each in MeasuredOn}
    report.notes = [text for text in report.notes if text not in measured]
    run.damage_before, report.damage, report.finetune = report.damage, None, run
    data = job.val.data if job.val else job.data
    if data.preprocessing is not None:
        report.preprocessing = data.preprocessing
    if teacher is not None:
        source = open_data(
            data.source, model_inputs(model), data.preprocessing, samples=_DAMAGE_SAMPLES
        )
        report.damage = measure_damage(teacher, model, source)
        measured_on = MeasuredOn.VALIDATION if job.val else MeasuredOn.TRAINING
        report.notes.append(measured_on.note)
        if worse := worse_than_before(report):
            report.warnings.append(worse)


def worse_than_before(report: RewriteReport) -> str | None:
    """The warning that training did not help; the damage before may be of other data."""
    run, after = report.finetune, report.damage
    before = run.damage_before if run is not None else None
    if run is None or before is None or after is None:
        return None
    advice = "train longer, on more images, or with a smaller --lr"
    told = f"after {run.epochs[-1].step} steps than before: {advice}" if run.epochs else advice
    old, new = before.agreement, after.agreement
    if old is not None and new is not None:
        if new >= old:
            return None
        return f"the model agrees less with the original ({new:.1%}, not {old:.1%}) {told}"
    old, new = before.relative_error, after.relative_error
    if old is None or new is None or new <= old:
        return None
    figures = f"(relative error {new:.3g}, not {old:.3g})"
    return f"the model is further from the original {figures} {told}"


def write(
    model: onnx.ModelProto,
    report: RewriteReport,
    digest: bool,
    target: Path | None,
    outside: bool = False,
) -> None:
    """Put the report into the model if it had one, and save it whole or not at all.

    ``outside``: with its weights in a file of their own, as where it came from.
    """
    if digest:
        write_digest(model, report)
    if target is not None:
        save_model(model, target, outside=outside)
        report.totals.file_bytes.after = file_bytes(target)


def _arrays(outputs: object) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in as_list(outputs)]


def _worst(
    model: onnx.ModelProto, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> tuple[float, str]:
    """By how much outputs of floats differ at most, and the name of the one that does."""
    worst, name = 0.0, ""
    for output, one, other in zip(model.graph.output, ours, theirs, strict=True):
        if other.dtype.kind == "f":
            apart = _relative(one, other, 1.0 if is_bounded(model, output.name) else None)
            if not apart <= worst:
                worst, name = apart, output.name
    return worst, name


def _rounding(
    networks: Networks, model: onnx.ModelProto, batch: TensorBatch, made: Sequence[np.ndarray]
) -> float:
    """By how much rounding alone moves the outputs: those of the module against float64's.

    Zero where the module cannot be computed in float64.
    """
    inputs = [tensor.double() if tensor.is_floating_point() else tensor for tensor in batch.inputs]
    try:
        exact = _arrays(copy.deepcopy(networks.student).double()(*inputs))[: len(made)]
    except (RuntimeError, TypeError, ValueError):
        return 0.0
    apart, _ = _worst(model, made, exact)
    return apart if apart < float("inf") else 0.0


def _relative(ours: np.ndarray, theirs: np.ndarray, unit: float | None) -> float:
    """max|a - b| in the unit, or in max|b|; infinite where shapes differ, NaN where values are."""
    if ours.shape != theirs.shape:
        return float("inf")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.abs(a - b).max(initial=0.0) / (unit or max(np.abs(b).max(initial=0.0), 1e-30)))


def _has_half(model: onnx.ModelProto) -> bool:
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    typed = [tensor.data_type for tensor in model.graph.initializer]
    typed += [value.type.tensor_type.elem_type for value in model.graph.input]
    return any(kind in half for kind in typed)
