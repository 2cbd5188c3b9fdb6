"""Fine-tuning: ONNX in, trained in PyTorch against the original as teacher, the same ONNX graph out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch

from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.graph.checks import check_original
from onnx_igpc.graph.model import OpenModel, PathLike, open_model
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.sections import EpochReport
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.report.typed_json import to_values
from onnx_igpc.torch_bridge.training.checkpoint import RunState, load_checkpoint
from onnx_igpc.torch_bridge.training.distributed import World, join
from onnx_igpc.torch_bridge.training.log import Progress, Reporter, RunLog
from onnx_igpc.torch_bridge.training.loop import Trainer
from onnx_igpc.torch_bridge.training.networks import autocast
from onnx_igpc.torch_bridge.training.output import (
    check_written,
    fold,
    update_report,
    write,
    written_model,
)
from onnx_igpc.torch_bridge.training.preparation import Job, prepare
from onnx_igpc.torch_bridge.training.recipe import Recipe
from onnx_igpc.torch_bridge.training.run_files import checkpoint_path, finetune_files, run_log


@dataclass
class FinetuneResult:
    """What a run gives.

    Attributes:
        model: The trained model.
        report: Its report; ``report.finetune`` tells the run.
        history: A row for each epoch.
        leads: Whether this process is the one of the run that wrote files.
    """

    model: onnx.ModelProto
    report: RewriteReport
    history: list[EpochReport]
    leads: bool = True

    def summary(self) -> list[str]:
        """What came of it, in lines for a person."""
        run, damage, last = self.report.finetune, self.report.damage, self.history[-1]
        lines = [f"fine-tuned: loss {self.history[0].loss:.4g} -> {last.loss:.4g}"]
        if run is not None and (before := run.val_before):
            for name, old, new in (
                ("accuracy", before.accuracy, last.val_accuracy),
                ("agreement", before.agreement, last.val_agreement),
            ):
                if old is not None and new is not None:
                    lines.append(f"validation {name}: {old:.2%} -> {new:.2%}")
        if damage is not None and damage.agreement is not None:
            earlier = run.damage_before if run is not None else None
            known = earlier.agreement if earlier is not None else None
            start = f"{known:.1%} -> " if known is not None else ""
            lines.append(f"agreement with the original: {start}{damage.agreement:.1%}")
        if run is not None and (check := run.check):
            lines.append(f"check: onnxruntime is within {check.relative:.1e} of the trained module")
        return [*lines, *(f"warning: {text}" for text in self.report.warnings)]


def finetune(
    compressed: onnx.ModelProto | PathLike,
    *,
    data: PathLike,
    output: PathLike | None = None,
    teacher: onnx.ModelProto | PathLike | None = None,
    val: PathLike | None = None,
    recipe: Recipe | None = None,
    preprocessing: Preprocessing | None = None,
    fold_batch_norm: bool = False,
    device: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    restart: bool = False,
    log: PathLike | None = None,
    label_offset: int | None = None,
    progress: Reporter | None = None,
) -> FinetuneResult:
    """Train a model against the original as teacher, or with labels, and write it into the same graph.

    Args:
        compressed: A ModelProto, which is not changed, or the path of a model file; usually what
            ``compress`` wrote, whose digest names the rewritten sites.
        data: Training data, as :func:`~onnx_igpc.torch_bridge.training.data.open_training_data` takes it.
        output: The model file to write. Beside it lie the log and, until it is written, a checkpoint.
            None writes nothing.
        teacher: The model that was compressed. With it, no labels are needed.
        val: Data for validation after every epoch; it is not trained on.
        recipe: Everything that decides the result.
        preprocessing: How images become inputs; None takes it from the model's digest.
        fold_batch_norm: Fold BatchNormalization into the convolutions of the written model.
        device: ``cpu``, ``cuda``, ``cuda:N``; None takes a GPU if there is one.
        workers: Processes that decode images; None takes as many as there are processors, at most 8,
            and none for arrays.
        resume: Go on from the checkpoint of a run that was stopped, with the same settings.
        restart: Start anew although there is a checkpoint.
        label_offset: Added to every label: 1 for a model with a background class in front.
        log: Where the log goes, without suffix; None takes ``<output>.finetune``.
        progress: Called while the run goes on, in the process that leads.

    Returns:
        The trained model. It has a digest that tells the run if ``compressed`` has a digest.

    Raises:
        UsageError: options that cannot be used as given or do not go together.
        ModelError: a model that cannot be read, was lowered for a runtime, or does not fit its teacher.
        DataError: data that is missing, does not fit the model, or lacks labels that are needed.
        CheckFailedError: the loss became NaN or infinite, or the written model does not compute what
            the trained module does.
        RunInterruptedError: SIGINT or SIGTERM came; a checkpoint was written.
        MissingExtraError: a package is not installed.
    """
    target = Path(output) if output is not None else None
    _check_run(target, resume, restart)
    opened = [_open(each) for each in (compressed, teacher) if each is not None]
    finetune_files(tuple(opened), (data, val), output, log).check()
    model, *taught_by = [_loaded(each) for each in opened]
    taught = taught_by[0] if taught_by else None
    digest = read_digest(model)
    if digest is not None and digest.lowering is not None:
        raise ModelError(
            "the model was lowered for a runtime, which is final: fine-tune what compress wrote, "
            "and lower the result"
        )
    with join(device) as world, _own_random_state(world):
        autocast((recipe or Recipe()).amp, world.device)  # refuses what the device cannot do
        job = prepare(
            model,
            taught,
            digest,
            (data, val),
            recipe or Recipe(),
            preprocessing,
            world,
            workers,
            label_offset,
        )
        # Each process drops out other units.
        torch.manual_seed(job.recipe.seed + world.rank)
        state = RunState(_settings(job, model, taught))
        checkpoint = checkpoint_path(target) if target is not None else None
        if resume and checkpoint is not None:
            state = load_checkpoint(checkpoint, state.settings, job.networks.student, job.optimizer)
        trainer = _trainer(job, state, checkpoint, run_log(target, log), progress)
        _train(trainer, job, progress)
        report = digest or RewriteReport()
        trained = written_model(job.networks, model)
        if fold_batch_norm:
            trained = fold(trained, report)
        if world.leads:
            run = replace(trainer.facts, seconds=round(state.seconds, 3), epochs=state.history)
            run.check = check_written(job.networks, trained, job.some_batch())
            update_report(job, report, run, taught, trained)
            outside = opened[0].has_external_data
            write(trained, report, digest is not None, target, outside)
            if trainer.log is not None:
                trainer.log.write(run)
            if checkpoint is not None:
                checkpoint.unlink(missing_ok=True)
        world.wait()
        return FinetuneResult(trained, report, state.history, world.leads)


def _trainer(
    job: Job,
    state: RunState,
    checkpoint: Path | None,
    log: RunLog | None,
    progress: Reporter | None,
) -> Trainer:
    assert job.recipe.epochs is not None
    return Trainer(
        networks=job.networks,
        optimizer=job.optimizer,
        recipe=job.recipe,
        plan=job.plan,
        epochs=job.recipe.epochs,
        train=job.train,
        val=job.val,
        world=job.networks.world,
        state=state,
        checkpoint=checkpoint,
        log=log,
        facts=job.describe(),
        report=progress,
    )


def _train(trainer: Trainer, job: Job, progress: Reporter | None) -> None:
    if progress is not None and trainer.world.leads:
        progress(Progress(0, trainer.epochs, 0, job.plan.steps, notes=job.notes))
    if "val_before" not in trainer.state.facts:
        trainer.state.facts["val_before"] = trainer.validate()
    trainer.facts.val_before = trainer.state.facts["val_before"]
    trainer.run()
    for loader in (job.train, job.val.loader if job.val else None):
        if loader is not None and loader.skipped:
            listed = "; ".join(sorted(loader.skipped)[:3])
            job.notes.append(f"{len(loader.skipped)} images cannot be read: {listed}")
    trainer.facts.notes = list(job.notes)


def _open(model: onnx.ModelProto | PathLike) -> OpenModel:
    return OpenModel(model) if isinstance(model, onnx.ModelProto) else open_model(model)


def _loaded(model: OpenModel) -> onnx.ModelProto:
    """With all data in memory; a model that was read from a file is checked."""
    if model.path is None:
        return model.proto
    check_original(model)
    return model.materialized() if model.has_external_data else model.proto


def _check_run(target: Path | None, resume: bool, restart: bool) -> None:
    """Refuse to begin what would lose an earlier run."""
    if resume and restart:
        raise UsageError("--resume goes on with an earlier run, --restart begins anew: give one")
    if target is None:
        if resume:
            raise UsageError("a run without an output has no checkpoint to resume from")
        return
    checkpoint = checkpoint_path(target)
    if checkpoint.is_file() and not (resume or restart):
        raise UsageError(
            f"{checkpoint} is left of a run that was stopped: --resume goes on with it, --restart "
            "starts anew"
        )


def _settings(job: Job, model: onnx.ModelProto, teacher: onnx.ModelProto | None) -> dict[str, Any]:
    """What has to be the same when a run is resumed."""
    return {
        "model": _fingerprint(model),
        "teacher": _fingerprint(teacher) if teacher is not None else None,
        "samples": job.data.size,
        "preprocessing": to_values(job.data.preprocessing),
        "labels": job.networks.labelled,
        "label_offset": job.data.label_offset or 0,
        **job.recipe.to_dict(),
        "augment": job.augmentation.describe(),
    }


def _fingerprint(model: onnx.ModelProto) -> str:
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _own_random_state(world: World) -> Any:
    """A context that gives the caller's random state back."""
    devices = [world.device.index or 0] if world.device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)
