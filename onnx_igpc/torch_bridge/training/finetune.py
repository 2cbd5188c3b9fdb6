"""Fine-tuning: ONNX in, trained in PyTorch against the original as teacher, the same ONNX graph out."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from onnx_igpc.data.dataset import Dataset
from onnx_igpc.errors import DataError, ModelError, UsageError
from onnx_igpc.graph.checks import check_original
from onnx_igpc.graph.model import OpenModel, PathLike, open_model
from onnx_igpc.report.digest import read_digest, refuse_quantized
from onnx_igpc.report.result import new_report
from onnx_igpc.report.sections import DamageReport, JudgedReport
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.report.typed_json import to_values
from onnx_igpc.torch_bridge import to_torch
from onnx_igpc.torch_bridge.tensors import has_half
from onnx_igpc.torch_bridge.training.checkpoint import RunState, load_checkpoint
from onnx_igpc.torch_bridge.training.distributed import World, join
from onnx_igpc.torch_bridge.training.held_out import of_another_kind
from onnx_igpc.torch_bridge.training.int8_training import Int8Recipe, taken_apart
from onnx_igpc.torch_bridge.training.log import Progress, Reporter, RunLog
from onnx_igpc.torch_bridge.training.loop import Trainer, snapshot
from onnx_igpc.torch_bridge.training.networks import autocast
from onnx_igpc.torch_bridge.training.options import Run
from onnx_igpc.torch_bridge.training.output import (
    check_start,
    check_written,
    fold,
    measure,
    update_report,
    write,
    written_model,
)
from onnx_igpc.torch_bridge.training.pairing import with_outputs
from onnx_igpc.torch_bridge.training.preparation import Job, prepare
from onnx_igpc.torch_bridge.training.rate_probe import best_rate, plan_probe, try_rates
from onnx_igpc.torch_bridge.training.recipe import Recipe
from onnx_igpc.torch_bridge.training.result import FinetuneResult
from onnx_igpc.torch_bridge.training.run_files import checkpoint_path, finetune_files, run_log
from onnx_igpc.torch_bridge.training.start_checks import check_can_write, refuse_training_mode
from onnx_igpc.torch_bridge.training.views import Views


def finetune(
    compressed: onnx.ModelProto | PathLike,
    data: PathLike | Dataset,
    *,
    teacher: onnx.ModelProto | PathLike | None = None,
    val: PathLike | Dataset | None = None,
    recipe: Recipe | Int8Recipe | None = None,
    output: PathLike | None = None,
    fold_batch_norm: bool = False,
    run: Run | None = None,
    progress: Reporter | None = None,
) -> FinetuneResult:
    """What :func:`onnx_igpc.finetune` does, which documents the arguments and the errors.

    recipe: with ``precision`` int8, what quantizes the model comes with it.
    """
    run = run or Run()
    sources = train, judging = _read_alike(data, val)
    target = Path(output) if output is not None else None
    _check_run(target, run)
    opened = [_open(each) for each in (compressed, teacher) if each is not None]
    paths = (train.source, judging.source if judging is not None else None)
    finetune_files(tuple(opened), paths, output, run.log).check()
    if (files := run_log(target, run.log)) is not None:
        for each in (target, files.csv):
            if each is not None:
                check_can_write(each)
    model, *taught_by = [_loaded(each) for each in opened]
    taught = taught_by[0] if taught_by else None
    digest = read_digest(model)
    if digest is not None and digest.lowering is not None:
        raise ModelError(
            "the model was lowered for a runtime, which is final: fine-tune what compress wrote, "
            "and lower the result"
        )
    refuse_quantized(digest, "the model", "fine-tune")
    refuse_training_mode(model, "the model")
    if taught is not None:
        refuse_training_mode(taught, "the teacher")
    recipe, quantizer = taken_apart(recipe)
    with join(run.device) as world, _own_random_state(world):
        autocast(recipe.amp, world.device)  # refuses what the device cannot do
        job = prepare(model, taught, digest, sources, recipe, world, run.workers, quantizer)
        damage = None
        if world.leads:
            check_start(job, model)
            damage = measure(job, taught, model)
            _check_kind(job, digest, damage)
        # Each process drops out other units.
        torch.manual_seed(job.recipe.seed + world.rank)
        given = snapshot(job.networks.student)
        probe = plan_probe(job, recipe)
        state = RunState(_settings(job, model, taught) | {"rates": list(probe.rates)})
        checkpoint = checkpoint_path(target) if target is not None else None
        if run.resume and checkpoint is not None:
            state = load_checkpoint(checkpoint, state.settings, job.networks.student, job.optimizer)
        if not state.best_epoch:
            state.best_weights = given
        if not run.resume:
            with _own_random_state(world):
                state.rates = try_rates(job, probe)
        rate = best_rate(state.rates, job.recipe.learning_rate)
        job.recipe = replace(job.recipe, lr=rate)
        job.notes += probe.note(state.rates, rate)
        views = _views(job, target, run.cache_size)
        trainer = _trainer(job, views, state, given, checkpoint, run_log(target, run.log), progress)
        _train(trainer, job, progress)
        report = digest or (new_report(OpenModel(model)) if quantizer else RewriteReport())
        whole, rounded = _written(job, trainer, model, given)
        trained = fold(whole, report) if fold_batch_norm else whole
        if world.leads:
            told = replace(trainer.facts, seconds=round(state.seconds, 3), epochs=state.history)
            # A site whose BatchNormalization was folded makes another tensor than the teacher's.
            checked = trained if job.networks.outputs else whole
            told.check = check_written(job.networks, checked, job.some_batch())
            told.judged = _judgement(job, state, rounded)
            update_report(job, report, told, damage, taught, trained)
            outside = opened[0].has_external_data
            # For quantize, which has to know what was trained.
            write(trained, report, digest is not None or quantizer is not None, target, outside)
            if trainer.log is not None:
                trainer.log.write(told)
            if checkpoint is not None:
                checkpoint.unlink(missing_ok=True)
        world.wait()
        return FinetuneResult(
            trained, report, state.history, world.leads, gained=state.best_epoch > 0
        )


def _written(
    job: Job, trainer: Trainer, model: onnx.ModelProto, given: dict[str, torch.Tensor]
) -> tuple[onnx.ModelProto, float | None]:
    """The model with the weights that were judged best, if they still are once rounded to what it holds.

    Returns:
        The model, and the loss that its weights are judged by where they were rounded.
    """
    student, state = job.networks.student, trainer.state
    found = written_model(job.networks, model)
    if not state.best_epoch or not has_half(model):
        return found, None
    pairs = [pair.tensor for pair in job.networks.pairing.pairs]
    rounded = to_torch(with_outputs(found, pairs, job.networks.outputs))
    student.load_state_dict(rounded.state_dict())
    judged = trainer.validate().judged
    if judged < state.judged[0] * (job.val.allowance or 1.0):
        return found, judged
    state.best_epoch = 0
    student.load_state_dict(given)
    return written_model(job.networks, model), None


def _judgement(job: Job, state: RunState, rounded: float | None) -> JudgedReport:
    """What the choice of the weights was made by.

    rounded: the loss with the weights rounded to half precision, where the model holds that.
    """
    before, *after = state.judged
    return JudgedReport(
        on=job.val.kind,
        samples=job.val.data.size,
        before=before,
        after=state.judged[state.best_epoch] if rounded is None else rounded,
        least_after_training=min(after) if job.val.allowance is None else after[-1],
        counted=before * job.val.allowance if job.val.allowance is not None else None,
        epoch=state.best_epoch,
        gained=state.best_epoch > 0,
    )


def _views(job: Job, target: Path | None, gibibytes: float) -> Views:
    """The views of the training data, kept on disk where they come again and may be kept."""
    recipe, networks = job.recipe, job.networks
    assert recipe.views is not None
    assert recipe.epochs is not None
    views = Views(networks, job.data, job.train, job.plan, recipe.seed, recipe.views)
    if gibibytes and recipe.epochs > recipe.views:
        folder = target.resolve().parent if target is not None else Path(tempfile.gettempdir())
        # Every process has its own file, and all together half of what is free.
        free = shutil.disk_usage(folder).free / 2
        most = min(gibibytes * 2**30, free) / networks.world.size
        note = views.keep(folder, most, job.some_batch())
        job.notes += [note] if note else []
    return views


def _trainer(
    job: Job,
    views: Views,
    state: RunState,
    given: dict[str, torch.Tensor],
    checkpoint: Path | None,
    log: RunLog | None,
    progress: Reporter | None,
) -> Trainer:
    assert job.recipe.epochs is not None
    facts = replace(job.describe(), rates=state.rates or None)
    return Trainer(
        networks=job.networks,
        optimizer=job.optimizer,
        recipe=job.recipe,
        plan=job.plan,
        epochs=job.recipe.epochs,
        data=job.data,
        train=job.train,
        views=views,
        val=job.val,
        world=job.networks.world,
        state=state,
        given=given,
        checkpoint=checkpoint,
        log=log,
        facts=facts,
        report=progress,
    )


def _train(trainer: Trainer, job: Job, progress: Reporter | None) -> None:
    if progress is not None and trainer.world.leads:
        progress(Progress(0, trainer.epochs, 0, job.plan.steps, notes=job.notes))
    trainer.run()
    if skipped := job.train.skipped | job.val.loader.skipped:
        listed = "; ".join(sorted(skipped)[:3])
        job.notes.append(f"{len(skipped)} images cannot be read: {listed}")
    trainer.facts.notes = list(job.notes)


def _open(model: onnx.ModelProto | PathLike) -> OpenModel:
    return OpenModel(model) if isinstance(model, onnx.ModelProto) else open_model(model)


def _loaded(model: OpenModel) -> onnx.ModelProto:
    """With all data in memory; a model that was read from a file is checked."""
    if model.path is None:
        return model.proto
    check_original(model)
    return model.materialized() if model.has_external_data else model.proto


def _read_alike(
    data: PathLike | Dataset, val: PathLike | Dataset | None
) -> tuple[Dataset, Dataset | None]:
    """Training and validation data; a path alone is read as the training data is."""
    train = Dataset.of(data)
    if val is None or isinstance(val, Dataset):
        return train, val
    return train, replace(train, source=val)


def _check_kind(job: Job, digest: RewriteReport | None, damage: DamageReport | None) -> None:
    """Refuse to be judged by held-out data of another kind than compress was given; note it of validation data.

    Raises:
        DataError: the data is of another kind, and there is no other to judge by.
    """
    calibration = digest.calibration if digest is not None else None
    doubt = of_another_kind(calibration, damage, job.val.kind)
    if doubt is None:
        return
    if job.val.kind != "validation":
        raise DataError(f"{doubt}: give `val` with some of that")
    job.notes.append(doubt)


def _check_run(target: Path | None, run: Run) -> None:
    """Refuse to begin what would lose an earlier run."""
    if target is None:
        if run.resume:
            raise UsageError("a run without an output has no checkpoint to resume from")
        return
    checkpoint = checkpoint_path(target)
    if checkpoint.is_file() and not (run.resume or run.restart):
        raise UsageError(
            f"{checkpoint} is left of a run that was stopped: `resume` goes on with it, `restart` "
            "starts anew"
        )


def _settings(job: Job, model: onnx.ModelProto, teacher: onnx.ModelProto | None) -> dict[str, Any]:
    """What has to be the same when a run is resumed."""
    return {
        "model": _fingerprint(model),
        "teacher": _fingerprint(teacher) if teacher is not None else None,
        "samples": job.data.size,
        "judged_by": [job.val.kind, job.val.data.size],
        "preprocessing": to_values(job.data.preprocessing),
        "labels": job.networks.labelled,
        "label_offset": job.data.label_offset or 0,
        **job.recipe.to_dict(),
        "augment": job.augmentation.describe(),
        "int8": to_values(job.describe().int8),
    }


def _fingerprint(model: onnx.ModelProto) -> str:
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _own_random_state(world: World) -> Any:
    """A context that gives the caller's random state back."""
    devices = [world.device.index or 0] if world.device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)
