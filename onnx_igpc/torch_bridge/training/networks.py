"""Student and teacher as modules, and the objective that ties them, made ready for a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from onnx import ModelProto
from torch import nn

from onnx_igpc.data.class_folders import background_hint
from onnx_igpc.data.class_folders import label_problem as labels_misfit
from onnx_igpc.errors import DataError, ModelError, UsageError, with_flags
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.torch_bridge import to_torch
from onnx_igpc.torch_bridge.convert import convert
from onnx_igpc.torch_bridge.module import OnnxModule
from onnx_igpc.torch_bridge.running import as_list, in_words, placed, put_channels_innermost
from onnx_igpc.torch_bridge.training.comparable import Survey
from onnx_igpc.torch_bridge.training.data import TrainingData
from onnx_igpc.torch_bridge.training.distributed import World
from onnx_igpc.torch_bridge.training.fake_quantization import FakeQuantization
from onnx_igpc.torch_bridge.training.form import find_feature, find_form
from onnx_igpc.torch_bridge.training.front import Ends, Whole, ahead, measured_alone, picked
from onnx_igpc.torch_bridge.training.loader import TensorBatch
from onnx_igpc.torch_bridge.training.losses import (
    Objective,
    Scores,
    check_pairs,
    comparable,
    find_scores,
    is_bounded,
    scale_of,
)
from onnx_igpc.torch_bridge.training.pairing import Pairing, check_teacher, pair_sites, with_outputs
from onnx_igpc.torch_bridge.training.recipe import Recipe
from onnx_igpc.torch_bridge.training.trained_weights import freeze, leave_unreached

_TENSORFLOW_CLASSES = 1001
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Networks:
    """What a step runs.

    Attributes:
        student: The model that is trained, with the paired tensors behind its outputs.
        teacher: The original likewise, in eval mode and without gradients; None without one.
        objective: The loss.
        pairing: Which sites are matched.
        recipe: With everything decided.
        labelled: Whether labels are used, for the loss or for the accuracy.
        outputs: Names of the outputs that are compared; the others are left out.
        notes: What a person should know about the choices made here.
        int8: What rounds the student's values, where it is trained for int8.
        front: What lies before the first rewritten layer, where that is not trained; student and teacher are
            then what lies behind it.
        measured: What of the student's inputs is read for its shape alone.
        input_names: Of the model, as the data comes.
    """

    student: OnnxModule
    teacher: OnnxModule | None
    objective: Objective
    pairing: Pairing
    recipe: Recipe
    labelled: bool
    world: World
    outputs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    int8: FakeQuantization | None = None
    front: OnnxModule | None = None
    measured: frozenset[str] = frozenset()
    input_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._wrapped = self.world.wrap(self.student)

    @property
    def whole(self) -> nn.Module:
        """The student from the inputs of the model on."""
        if self.front is None:
            return self.student
        return Whole(self.front, self.student, self.input_names)

    @property
    def judge(self) -> Objective:
        """The loss that a model is judged by. With few samples class scores count as they are used, by the
        divergence at temperature 1, which would be learned by heart if it were trained by."""
        if self.recipe.base == "many":
            return self.objective
        return replace(self.objective, temperature=1.0)

    @property
    def judges_by_divergence(self) -> bool:
        """Whether a model is judged by the divergence of its class scores, at temperature 1, and nothing else."""
        judge = self.judge
        by = (judge.scores is not None, judge.loss, judge.values, judge.temperature)
        return by == (True, "kd", (), 1.0)

    def in_int8(self, on: bool = True) -> contextlib.AbstractContextManager[None]:
        """Inside, the student computes in fake int8, where it is trained for that."""
        return self.int8.int8(on) if self.int8 is not None else contextlib.nullcontext()

    def set_training(self, batch_norm: bool) -> None:
        """Training mode, in which BatchNormalization normalises by the batch; or eval mode."""
        self.student.train(batch_norm)
        self._wrapped.train(batch_norm)

    def forward(self, batch: TensorBatch) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """Outputs of both; gradients of the student's are averaged over the processes."""
        return self._run(self._wrapped, batch)

    def forward_plain(
        self, batch: TensorBatch
    ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """Outputs of both, by this process alone."""
        return self._run(self.student, batch)

    def known(self, batch: TensorBatch) -> TensorBatch:
        """A batch with what does not change while the student is trained: what that reads, and the teacher's
        outputs."""
        if batch.read is not None:
            return batch
        inputs = [placed(tensor, self.world.device) for tensor in batch.inputs]
        with self._computing(inputs), torch.no_grad():
            values = ahead(self.front, dict(zip(self.input_names, inputs, strict=True)))
            taught = None
            if self.teacher is not None:
                taught = as_list(self.teacher(*picked(self.teacher, values)))
        for name in self.measured:
            values[name] = values[name].new_zeros(()).expand(values[name].shape)
        return replace(batch, read=picked(self.student, values), taught=taught)

    @contextlib.contextmanager
    def _computing(self, inputs: Sequence[torch.Tensor]) -> Iterator[None]:
        with in_words(inputs), autocast(self.recipe.amp, self.world.device):
            yield

    def _run(
        self, student: nn.Module, batch: TensorBatch
    ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        known = self.known(batch)
        assert known.read is not None
        with self._computing(known.read):
            return as_list(student(*known.read)), known.taught


def build_networks(
    model: ModelProto,
    teacher: ModelProto | None,
    digest: RewriteReport | None,
    recipe: Recipe,
    data: TrainingData,
    probe: TensorBatch,
    world: World,
    int8: FakeQuantization | None = None,
) -> Networks:
    """Modules, pairs and objective for a model.

    probe: the first samples of the data. What they go through decides which output holds class scores,
    the scales of the losses, and which weights the loss reaches. int8: what rounds the student's values.

    Raises:
        ModelError: the teacher does not fit, or the loss reaches no weight.
        DataError: labels are needed and missing, or are not those of the model.
        UsageError: options that do not go together.
    """
    if teacher is not None:
        check_teacher(model, teacher)
    notes: list[str] = []
    surveys = Survey(model), Survey(teacher if teacher is not None else model)
    names = _compared(model, surveys, recipe, notes)
    form, feature = find_form(recipe, data, teacher is not None), None
    if teacher is not None and recipe.looks_for_penultimate:
        wanted = recipe.scores
        feature, head = find_feature((model, teacher), surveys, digest, names, wanted, probe)
        form = replace(form, penultimate=feature is not None, head=head)
    recipe = recipe.fitted(form)
    pairing = Pairing((), {})
    if teacher is not None and recipe.feature_loss:
        if recipe.features == "sites":
            pairing = pair_sites(*surveys, digest, names)
        elif feature is not None:
            pairing = Pairing((feature,), {})
    if not names:
        _check_learns(model, surveys, pairing, notes)
    if digest is None or not (digest.rewritten or digest.blocks or digest.narrowed):
        recipe = replace(recipe, front="train")  # nothing says that a difference is to be learned
    ends = Ends.of((model, teacher), pairing, names, recipe, probe)
    recipe = replace(recipe, front="train" if ends.front is None else "frozen")
    student = convert(ends.student, int8.hooks() if int8 is not None else None)
    freeze(student, recipe.freeze or (), ends.frozen)
    taught = None
    if ends.teacher is not None:
        taught = to_torch(ends.teacher).eval().requires_grad_(False)
    for module in (ends.front, student, taught):
        if module is not None:
            module.to(world.device)
            put_channels_innermost(module)
    student.eval()
    inputs = [placed(tensor, world.device) for tensor in probe.inputs]
    theirs = None
    with in_words(inputs):
        values = ahead(ends.front, dict(zip(ends.input_names, inputs, strict=True)))
        ours = as_list(student(*picked(student, values)))
        if taught is not None:
            with torch.no_grad():
                theirs = as_list(taught(*picked(taught, values)))
    if theirs is not None:
        check_pairs(ours, theirs, student.output_names)
    scores = find_scores(with_outputs(model, [], names), ours, probe.count, recipe.scores)
    labelled = _labels_fit(recipe, data, scores, taught is None, notes)
    loss = _choose_loss(recipe, taught is not None)
    outputs = len(names)
    objective = Objective(
        loss=loss,
        scores=scores,
        values=_matched(ours[:outputs], scores) if taught is not None and loss != "ce" else (),
        pairs=pairing.pairs,
        outputs=outputs,
        temperature=recipe.temperature,
        label_weight=recipe.label_weight,
        feature_weight=recipe.feature_loss or 0.0,
        scales=_scales(model, student.output_names, pairing, theirs, scores) if theirs else {},
    )
    labels = probe.labels.to(world.device) if probe.labels is not None and labelled else None
    leave_unreached(student, objective(ours, theirs, labels).total, notes)
    if ends.front is not None:
        notes.append(ends.note)
    return Networks(
        student,
        taught,
        objective,
        pairing,
        recipe,
        labelled,
        world,
        names,
        notes,
        int8,
        ends.front,
        measured_alone(ends.student),
        ends.input_names,
    )


def _compared(
    model: ModelProto, surveys: tuple[Survey, Survey], recipe: Recipe, notes: list[str]
) -> list[str]:
    """Names of the outputs that can be compared; notes say what is left out."""
    ours, theirs = surveys
    left_out = theirs.outputs | ours.outputs
    names = [output.name for output in model.graph.output]
    if recipe.scores is not None:
        reason = left_out.get(recipe.scores) or ours.inner.get(recipe.scores)
        if reason:
            raise UsageError(f"`scores` {recipe.scores!r} cannot be compared: {reason}")
        if recipe.scores in ours.computed & theirs.computed and recipe.scores not in names:
            names.append(recipe.scores)
    notes += [
        f"output {name!r} is left out: {left_out[name]}" for name in names if name in left_out
    ]
    return [name for name in names if name not in left_out]


def _check_learns(
    model: ModelProto, surveys: tuple[Survey, Survey], pairing: Pairing, notes: list[str]
) -> None:
    """Where no output is compared, the sites must be; ModelError where they are not."""
    if pairing.pairs:
        notes.append("no output can be compared: only the rewritten sites are learned")
        return
    to_torch(model)  # says which operators are missing, if that is why
    left_out = surveys[1].outputs | surveys[0].outputs
    reasons = "; ".join(f"{name!r}: {reason}" for name, reason in sorted(left_out.items())[:3])
    raise ModelError(
        f"there is nothing to learn from: no output can be compared ({reasons}), and no rewritten "
        "site is matched: give the original as `teacher`, or name a tensor with `scores`"
    )


def autocast(amp: str | None, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context for mixed precision on a device; nothing without it.

    Raises:
        UsageError: fp16 on a CPU, which has no fast arithmetic for it.
    """
    if amp is None:
        return contextlib.nullcontext()
    if amp == "fp16" and device.type != "cuda":
        raise UsageError("`amp` fp16 needs a CUDA GPU: take bf16 or leave it out")
    return torch.autocast(device.type, dtype=_PRECISIONS[amp])


def _labels_fit(
    recipe: Recipe, data: TrainingData, scores: Scores | None, alone: bool, notes: list[str]
) -> bool:
    """Whether the labels of the data are those of the model; DataError where they must be."""
    problem = label_problem(data, scores)
    needed = recipe.loss in ("ce", "kd+ce") or (recipe.loss is None and alone)
    if problem is None:
        if data.labels is not None and data.label_offset is None and scores is not None:
            hint = background_hint(data.labels, scores.classes)
            notes += [with_flags(hint)] if hint else []
        return True
    if needed:
        help_ = "give a `teacher` to train without labels" if alone else "take `loss` kd"
        raise DataError(f"{problem}: {help_}")
    if data.labels is not None:
        notes.append(with_flags(f"labels are not used: {problem}"))
    return False


def label_problem(data: TrainingData, scores: Scores | None) -> str | None:
    """Why the labels of data cannot be used with these class scores; None where they can."""
    if data.labels is None:
        return f"{data.source} has no labels (class folders, .cls files, an array 'labels')"
    if scores is None:
        return "no output holds class scores; name it with `scores`"
    problem = labels_misfit(
        data.source, data.labels, data.classes, scores.classes, data.label_offset
    )
    if problem is None and data.label_offset is None and scores.classes == _TENSORFLOW_CLASSES:
        problem = background_hint(data.labels, scores.classes)
    return problem


def _choose_loss(recipe: Recipe, taught: bool) -> str:
    loss = recipe.loss or ("kd" if taught else "ce")
    if loss != "ce" and not taught:
        raise UsageError(f"`loss` {loss} learns from a teacher: give a `teacher`")
    return loss


def _matched(outputs: Sequence[torch.Tensor], scores: Scores | None) -> tuple[int, ...]:
    """Places of the outputs that are compared by value: those that numbers flow back from."""
    own = scores.index if scores is not None else None
    return tuple(i for i, value in enumerate(outputs) if i != own and value.requires_grad)


def _scales(
    model: ModelProto,
    names: Sequence[str],
    pairing: Pairing,
    theirs: Sequence[torch.Tensor],
    scores: Scores | None,
) -> dict[int, float]:
    """What the squared errors of the outputs and paired tensors are multiplied by, by place."""
    outputs = len(names) - len(pairing.pairs)
    paired = [comparable(*each) for each in zip(pairing.pairs, theirs[outputs:], strict=True)]
    theirs = [*theirs[:outputs], *paired]
    found: dict[int, float] = {}
    for place, (name, value) in enumerate(zip(names, theirs, strict=True)):
        if scores is not None and place == scores.index:
            found[place] = scale_of(scores.logits(value))
        elif value.is_floating_point():
            found[place] = scale_of(value, bounded=is_bounded(model, name))
    return found
