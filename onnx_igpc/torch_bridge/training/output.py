"""The end of a run: weights back into the graph, the written model checked, its report brought up to date."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from onnx_igpc.errors import CheckFailedError, ModelError, with_flags
from onnx_igpc.evaluation.damage import measure_damage
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel, file_bytes, save_model
from onnx_igpc.passes import FoldBatchNorm
from onnx_igpc.report.damage import large_damage_warning
from onnx_igpc.report.digest import write_digest
from onnx_igpc.report.sections import DamageReport, FinetuneReport, MeasuredOn
from onnx_igpc.report.training import WrittenCheck
from onnx_igpc.report.tree import NO_DATA_WARNING, RANDOM_WARNING, RewriteReport
from onnx_igpc.runtime.session import make_session, run_session
from onnx_igpc.torch_bridge import from_torch
from onnx_igpc.torch_bridge.running import as_list
from onnx_igpc.torch_bridge.tensors import has_half
from onnx_igpc.torch_bridge.training.evaluation import site_errors
from onnx_igpc.torch_bridge.training.held_out import PlainBatches
from onnx_igpc.torch_bridge.training.loader import TensorBatch
from onnx_igpc.torch_bridge.training.losses import is_bounded
from onnx_igpc.torch_bridge.training.networks import Networks
from onnx_igpc.torch_bridge.training.pairing import with_outputs
from onnx_igpc.torch_bridge.training.preparation import Job

_TOLERANCE = {"float32": 1e-4, "float16": 5e-3}
# Two computations in float32 differ by about twice the rounding of one.
_ROUNDINGS = 4
_DAMAGE_SAMPLES = 512
# Weights that make up for rounding are further from the original where nothing is rounded.
_FOR_INT8 = (
    "the weights were trained for int8: quantize the model; in float it is not what was judged"
)
_ADVICE = with_flags("train longer, on more images, or with a smaller `lr`")


def written_model(networks: Networks, model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` with the trained weights and statistics."""
    networks.student.eval()
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


def check_start(job: Job, model: onnx.ModelProto) -> None:
    """:func:`check_written` before the first step, with the module as it is before any training.

    Raises:
        CheckFailedError: onnxruntime computes something else than PyTorch.
        ModelError: onnxruntime cannot load or run the model.
    """
    try:
        check_written(job.networks, model, job.some_batch())
    except CheckFailedError as error:
        raise CheckFailedError(
            f"onnxruntime and PyTorch do not agree on the model, so there is no use in training: {error}"
        ) from error


def check_written(networks: Networks, model: onnx.ModelProto, batch: TensorBatch) -> WrittenCheck:
    """Run the written model in onnxruntime and the module in PyTorch on the same samples.

    Compared are the outputs, or where none can be compared, the tensors of the rewritten sites.

    Returns:
        ``relative``: the largest ``max|a - b| / max|b|`` of an output, b being the module's, or
        ``max|a - b|`` behind a Sigmoid or Softmax, which onnxruntime computes to so many digits of 1;
        ``bound``: what it may be: 1e-4, with half precision in the graph 5e-3, and more where a network
        amplifies rounding, four times by how much the module itself is away from its own computation in
        float64; ``samples``.

    Raises:
        CheckFailedError: it is larger.
        ModelError: what the model computes is not finite in either.
    """
    specs = model_inputs(model)
    feeds = {
        spec.name: tensor.numpy().astype(spec.dtype)
        for spec, tensor in zip(specs, batch.inputs, strict=True)
    }
    names = networks.outputs or [pair.tensor for pair in networks.pairing.pairs]
    shown = {output.name for output in model.graph.output}
    session = make_session(model, extra_outputs=[name for name in names if name not in shown])
    got = list(run_session(session, feeds, names).values())
    student = _on_cpu(networks.whole)
    made = _arrays(student, batch.inputs)[: len(names)]
    bound = _TOLERANCE["float16" if has_half(model) else "float32"]
    bounded = [is_bounded(model, name) for name in names]
    worst, place = _worst(bounded, got, made)
    if bound < worst < float("inf"):
        bound = max(bound, _ROUNDINGS * _rounding(student, bounded, batch, made))
    if not worst <= bound:
        if not (np.isfinite(got[place]).all() or np.isfinite(made[place]).all()):
            raise ModelError(
                f"output {names[place]!r} holds NaN or infinite values, in onnxruntime and in PyTorch: "
                "look for weights that are not finite or too large, and for negative variances of a "
                "BatchNormalization"
            )
        raise CheckFailedError(
            f"output {names[place]!r} of the written model is {worst:.2g} away from what the trained "
            f"module computes, relative to its largest value, more than {bound:g}: nothing was written"
        )
    return WrittenCheck(relative=worst, bound=bound, samples=batch.count)


def measure(
    job: Job, teacher: onnx.ModelProto | None, model: onnx.ModelProto
) -> DamageReport | None:
    """How far a model is from the teacher, on what the run is judged by; None without a teacher.

    The outputs are compared in onnxruntime. Where none can be compared, the sites of the student as it is
    now are, in PyTorch: the relative error of the worst.
    """
    if teacher is None:
        return None
    networks, val = job.networks, job.val
    dtypes = {spec.name: spec.dtype for spec in model_inputs(model)}
    data = PlainBatches(val.data, val.loader, dtypes, _DAMAGE_SAMPLES)
    if networks.outputs:
        ours, theirs = (with_outputs(each, [], networks.outputs) for each in (model, teacher))
        return measure_damage(theirs, ours, data)
    batches = val.loader.plain(iter(data.places()))
    errors = site_errors(networks.student, networks.forward_plain, networks.objective, batches)
    site = max(errors, key=errors.__getitem__)
    return DamageReport(relative_error=errors[site], output=f"site {site}", samples=data.size)


def update_report(
    job: Job,
    report: RewriteReport,
    run: FinetuneReport,
    before: DamageReport | None,
    teacher: onnx.ModelProto | None,
    model: onnx.ModelProto,
) -> None:
    """Tell the run in the report, and replace what it made untrue: the damage and the advice to train.

    before: what :func:`measure` found before the first step.
    """
    gained = run.judged is None or run.judged.gained
    stale = {worse_than_before(report), report.finetune and no_gain(report.finetune)}
    if gained:
        stale |= {NO_DATA_WARNING, RANDOM_WARNING}
    if gained or before is not None:
        stale.add(large_damage_warning(report.damage))
    report.warnings = [text for text in report.warnings if text not in stale]
    measured = {each.note for each in MeasuredOn}
    report.notes = [text for text in report.notes if text not in (*measured, _FOR_INT8)]
    run.damage_before = report.damage if before is None else before
    report.damage, report.finetune = None, run
    if job.val.data.preprocessing is not None:
        report.preprocessing = job.val.data.preprocessing
    if before is not None:
        report.damage = measure(job, teacher, model) if gained else before
        report.notes.append(MeasuredOn.after_training(job.val.kind).note)
        if run.int8 is not None:
            report.notes.append(_FOR_INT8)
        else:
            found = (large_damage_warning(report.damage), worse_than_before(report))
            report.warnings += [text for text in found if text]
    if useless := no_gain(run):
        report.warnings.append(useless)


def worse_than_before(report: RewriteReport) -> str | None:
    """The warning that the model is further from the original than before."""
    run, after = report.finetune, report.damage
    before = run.damage_before if run is not None else None
    if run is None or before is None or after is None:
        return None
    if run.judged is not None and run.judged.counted is not None:
        return None  # what it was before is flattered by the fit to these samples
    told = f"after {run.epochs[-1].step} steps than before: {_ADVICE}" if run.epochs else _ADVICE
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


def no_gain(run: FinetuneReport) -> str | None:
    """The warning that training did not help."""
    judged = run.judged
    if judged is None or judged.gained:
        return None
    return (
        f"training did not help: the loss on {judged.samples} {judged.on} samples was "
        f"{judged.counted or judged.before:.3g} before and at best {judged.least_after_training:.3g} after an "
        f"epoch; the weights are as they were given: {_ADVICE}"
    )


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


def _on_cpu(module: nn.Module) -> nn.Module:
    """The module where it lies on the CPU, otherwise a copy there; in eval mode."""
    if all(tensor.device.type == "cpu" for tensor in module.parameters()):
        return module.eval()
    return copy.deepcopy(module).to("cpu").eval()


@torch.no_grad()
def _arrays(module: nn.Module, inputs: Sequence[torch.Tensor]) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in as_list(module(*inputs))]


def _worst(
    bounded: Sequence[bool], ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> tuple[float, int]:
    """By how much outputs of floats differ at most, and the place of the one that does.

    bounded: whether an output holds shares of 1.
    """
    worst, place = 0.0, 0
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if other.dtype.kind == "f":
            apart = _relative(one, other, 1.0 if bounded[index] else None)
            if not apart <= worst:
                worst, place = apart, index
    return worst, place


def _rounding(
    module: nn.Module, bounded: Sequence[bool], batch: TensorBatch, made: Sequence[np.ndarray]
) -> float:
    """By how much rounding alone moves the outputs: those of the module against float64's.

    Zero where the module cannot be computed in float64.
    """
    inputs = [tensor.double() if tensor.is_floating_point() else tensor for tensor in batch.inputs]
    try:
        exact = _arrays(copy.deepcopy(module).double(), inputs)[: len(made)]
    except (RuntimeError, TypeError, ValueError):
        return 0.0
    apart, _ = _worst(bounded, made, exact)
    return apart if apart < float("inf") else 0.0


def _relative(ours: np.ndarray, theirs: np.ndarray, unit: float | None) -> float:
    """max|a - b| in the unit, or in max|b|; infinite where shapes differ, NaN where values are."""
    if ours.shape != theirs.shape:
        return float("inf")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.abs(a - b).max(initial=0.0) / (unit or max(np.abs(b).max(initial=0.0), 1e-30)))
