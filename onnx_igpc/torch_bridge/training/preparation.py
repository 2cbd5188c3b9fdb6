"""From what a user names to what a run needs: data, loaders, modules, optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from onnx_igpc.data.batches import DataDescription
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.errors import DataError, UsageError, with_flags
from onnx_igpc.graph.inputs import InputSpec, model_inputs
from onnx_igpc.report.sections import FinetuneReport, JudgedBy, JudgedOn
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.runtime.at_once import usable_processors
from onnx_igpc.torch_bridge.training.augment import Augmentation, parse_augmentation
from onnx_igpc.torch_bridge.training.data import TrainingData, open_training_data
from onnx_igpc.torch_bridge.training.distributed import World
from onnx_igpc.torch_bridge.training.held_out import Part, hold_out
from onnx_igpc.torch_bridge.training.int8_places import Quantizer
from onnx_igpc.torch_bridge.training.int8_training import described, doubts, fake_quantization
from onnx_igpc.torch_bridge.training.loader import BatchLoader, TensorBatch
from onnx_igpc.torch_bridge.training.networks import Networks, build_networks, label_problem
from onnx_igpc.torch_bridge.training.optimizers import build_optimizer
from onnx_igpc.torch_bridge.training.pairing import FEATURE
from onnx_igpc.torch_bridge.training.recipe import FEWEST_SOME, MOST_FEW, Recipe
from onnx_igpc.torch_bridge.training.sampling import BatchPlan

_MOST_WORKERS = 8
_AS_IT_IS = Augmentation()
# Samples that show shapes, scales and which weights the loss reaches.
_PROBE = 16
_FITTED = (
    "compress fitted the model to the samples that are held out, too, which flatters it there: it counts as half "
    "way to what compress measured on samples not used for a fit, and the last epoch is compared with that; "
    "images that compress has not seen, as `val`, would tell for sure"
)
_NO_REPORT = (
    "the model carries no report, so that only its outputs are matched: compress found nothing to rewrite "
    "in it, or has not seen it"
)


@dataclass(frozen=True)
class Validation:
    """What the model is judged by. ``labelled``: its labels are those of the model. ``kind``: "validation"
    for data of its own, "held-out" for a part of the training data, "training" where that is too small
    for having parts. ``allowance``: what the loss of the model as given counts times; None: as it is."""

    data: Part
    loader: BatchLoader
    labelled: bool
    kind: JudgedOn
    allowance: float | None = None


@dataclass
class Job:
    """Everything of a run that does not change while it runs. ``recipe`` has nothing left open."""

    recipe: Recipe
    networks: Networks
    optimizer: torch.optim.Optimizer
    plan: BatchPlan
    data: Part
    train: BatchLoader
    val: Validation
    augmentation: Augmentation
    notes: list[str]

    def some_batch(self) -> TensorBatch:
        """A few samples as they are, of what the model is judged by."""
        loader = self.val.loader
        return next(
            loader.plain(iter([list(range(min(loader.rows or _PROBE, self.val.data.size)))]))
        )

    def describe(self) -> FinetuneReport:
        """What the log and the report say about the run before it has begun."""
        pairing, int8 = self.networks.pairing, self.networks.int8
        features = [pair.tensor for pair in pairing.pairs if pair.site == FEATURE]
        return FinetuneReport(
            recipe=self.recipe.to_dict()
            | {"augment": self.augmentation.describe(), "loss": self.networks.objective.loss},
            taught=self.networks.teacher is not None,
            data=_describe(self.data),
            val=JudgedBy(**vars(_describe(self.val.data)), kind=self.val.kind),
            device=str(self.networks.world.device),
            processes=self.networks.world.size,
            matched_sites=[pair.site for pair in pairing.pairs if pair.site != FEATURE],
            unmatched_sites=dict(pairing.unpaired),
            penultimate=features[0] if features else None,
            outputs=list(self.networks.outputs),
            int8=described(int8.places, self.recipe) if int8 is not None else None,
            notes=list(self.notes),
        )


def prepare(
    model: onnx.ModelProto,
    teacher: onnx.ModelProto | None,
    digest: RewriteReport | None,
    sources: tuple[Dataset, Dataset | None],
    recipe: Recipe,
    world: World,
    workers: int | None,
    quantizer: Quantizer | None = None,
) -> Job:
    """Open the training and validation data and build the modules.

    quantizer: what quantizes the model, where it is trained for int8.

    Raises as :func:`onnx_igpc.torch_bridge.training.finetune.finetune`.
    """
    inputs = model_inputs(model)
    whole = _open(sources[0], inputs, digest)
    fixed = next((spec.fixed_batch for spec in inputs if spec.fixed_batch is not None), None)
    if fixed is not None and whole.size < fixed * world.size:
        raise DataError(
            f"{whole.source}: {whole.size} samples are fewer than the {fixed * world.size} that the "
            "model takes at a time"
        )
    val_whole = None
    if sources[1] is not None:
        val_whole = _open(sources[1], inputs, digest)
    data, judged = Part(whole), Part(val_whole or whole)
    if val_whole is None:
        data, part = hold_out(
            whole,
            recipe.hold_out,
            recipe.seed,
            needed=(fixed or 1) * world.size,
            multiple=world.size,
        )
        judged = part or judged
    sources_read = [whole] if val_whole is None else [whole, val_whole]
    notes = [f"{each.source}: {note}" for each in sources_read for note in each.notes]
    # Without a teacher a network may well be trained from random weights.
    trained = teacher is not None and (digest is None or digest.options.init != "random")
    lost = _lost(model, digest)
    given, recipe = recipe, recipe.resolved(fixed, data.size, world.size, trained, lost)
    assert recipe.batch_size is not None
    plan = BatchPlan(data.size, recipe.batch_size, recipe.seed, world.rank, world.size)

    def loader(
        source: TrainingData, part_of: int, augmentation: Augmentation = _AS_IT_IS
    ) -> BatchLoader:
        return BatchLoader(
            source,
            [spec.name for spec in inputs],
            augmentation,
            rows=fixed,
            workers=_workers(source, workers, world.size),
            pin=world.device.type == "cuda",
            part_of=part_of,
        )

    probe = _probe(loader(data, whole.size), data, recipe.seed)
    int8 = fake_quantization(model, quantizer, probe) if quantizer is not None else None
    networks = build_networks(model, teacher, digest, recipe, whole, probe, world, int8)
    recipe = networks.recipe
    augmentation = parse_augmentation(recipe.augment, images=data.preprocessing is not None)
    train = loader(data, whole.size, augmentation)
    if given.base is None:
        notes.append(_why(recipe, data.size, lost))
    if given.batch_norm is None and recipe.batch_norm == "frozen" and recipe.base == "many":
        notes.append("BatchNormalization keeps its statistics: the batch is too small for new ones")
    kind: JudgedOn = (
        "validation" if val_whole else "training" if judged.size == whole.size else "held-out"
    )
    val_loader = loader(judged, (val_whole or whole).size)
    labelled = _labels_of(judged, networks, val_whole is not None)
    allowance = _allowance(networks, digest, whole) if kind == "held-out" else None
    val = Validation(judged, val_loader, labelled, kind, allowance)
    if kind == "training":
        notes.append("too few samples to hold any out: the model is judged by those that it learns")
    if allowance is not None:
        notes.append(with_flags(_FITTED))
    notes += networks.notes
    notes += doubts(int8.places) if int8 is not None else []
    if teacher is not None and digest is None:
        notes.append(_NO_REPORT)
    optimizer = build_optimizer(networks.student.parameters(), recipe)
    return Job(recipe, networks, optimizer, plan, data, train, val, augmentation, notes)


def _open(data: Dataset, inputs: Sequence[InputSpec], digest: RewriteReport | None) -> TrainingData:
    """The data, its images preprocessed as asked, or else as they were for the compression."""
    if data.samples is not None:
        raise UsageError("finetune takes all samples of its data: leave out `samples`")
    preprocessing = data.preprocessing
    if preprocessing is None and digest is not None:
        preprocessing = digest.preprocessing
    return open_training_data(data.source, inputs, preprocessing, label_offset=data.label_offset)


def _workers(source: TrainingData, asked: int | None, processes: int) -> int:
    if asked is not None:
        return asked
    if source.preprocessing is None:
        return 0  # arrays are taken from memory: handing them over would cost more
    # Those that this process may use are what PyTorch holds the number against.
    return min(usable_processors() // processes, _MOST_WORKERS)


def _allowance(
    networks: Networks, digest: RewriteReport | None, whole: TrainingData
) -> float | None:
    """What the loss of a model counts times on samples that compress fitted it to; None where that is not known.

    There the model as given looks better than it is: by how much, compress measured on samples that it left out
    of a fit. Training wears that off without anything becoming worse; as half of it may be left in the
    end, the other half is allowed for.
    """
    fit, damage = (digest.calibration, digest.damage) if digest is not None else (None, None)
    if fit is None or damage is None or damage.fitted is None or not networks.judges_by_divergence:
        return None
    if (fit.source, fit.samples) != (Path(whole.source).name, whole.size):
        return None
    if not (damage.kl and damage.fitted.kl and damage.kl > damage.fitted.kl):
        return None
    return math.sqrt(damage.kl / damage.fitted.kl)


def _lost(model: onnx.ModelProto, digest: RewriteReport | None) -> float | None:
    """What large steps could make up for: the divergence that compress measured; None where that is not known,
    or where no BatchNormalization would put the scale of the activations right on the way."""
    if digest is None or digest.damage is None:
        return None
    normalized = any(node.op_type == "BatchNormalization" for node in model.graph.node)
    return digest.damage.kl if normalized else None


def _why(recipe: Recipe, samples: int, lost: float | None) -> str:
    """Which recipe was chosen, and for what reason."""
    what = f"recipe {recipe.base} was chosen for {samples} training samples"
    if recipe.base == "many":
        return f"{what}: more than {MOST_FEW}"
    if recipe.base == "some":
        return f"{what}: {FEWEST_SOME} to {MOST_FEW}, and much was lost (compress measured a divergence of {lost:.2f})"
    matched = (
        "the penultimate feature is matched, and what lies behind it stays"
        if recipe.features == "penultimate"
        else "no penultimate feature is matched, since no last layer that makes class scores was found in a "
        "teacher"
    )
    return f"{what}: up to {MOST_FEW}; {matched}"


def _probe(loader: BatchLoader, data: TrainingData, seed: int) -> TensorBatch:
    """A few samples from all over the data, the same for every number of processes."""
    order = np.random.default_rng(seed).permutation(data.size)
    return next(loader.plain(iter([order[: loader.rows or _PROBE].tolist()])))


def _labels_of(val: TrainingData, networks: Networks, own: bool) -> bool:
    """Whether the labels of the validation data are used; DataError where they are needed.

    own: it is data of its own, not a part of the training data.
    """
    if not own:
        return networks.labelled
    problem = label_problem(val, networks.objective.scores)
    if problem and (networks.objective.loss in ("ce", "kd+ce") or val.labels is not None):
        if networks.labelled:
            raise DataError(f"`val`: {problem}")
        networks.notes.append(with_flags(f"labels are not used: {problem}"))
    return problem is None


def _describe(data: TrainingData) -> DataDescription:
    return DataDescription(data.source, data.size, data.labels is not None, data.preprocessing)
