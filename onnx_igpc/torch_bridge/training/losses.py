"""What is minimised: distillation of the outputs, matching of the rewritten sites, cross-entropy.

All parts are means over the samples of a batch with weights that stay the same for the whole run, so that
the gradient of a batch is the mean of the gradients of its parts: processes can share a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch.nn import functional

from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.report.sections import MeansReport
from onnx_igpc.torch_bridge.reordering import take
from onnx_igpc.torch_bridge.training.pairing import Pair

MOVES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Transpose"})
"""Operators that move values, or change their type, and compute nothing."""


@dataclass(frozen=True)
class Scores:
    """The output with class scores: its place among the outputs, its name, and whether it holds
    probabilities (behind a Softmax) rather than logits."""

    index: int
    name: str
    probabilities: bool
    classes: int

    def logits(self, output: torch.Tensor) -> torch.Tensor:
        """The output as float32[samples, classes] whose softmax is the distribution."""
        scores = output.float().reshape(len(output), -1)
        if not self.probabilities:
            return scores
        return scores.clamp_min(torch.finfo(torch.float32).tiny).log()


def find_scores(
    model: onnx.ModelProto, outputs: Sequence[torch.Tensor], count: int, wanted: str | None
) -> Scores | None:
    """The output with class scores: the one named ``wanted``, or the only one that is [count, classes]
    once dimensions of 1 are dropped. ``outputs``: what the model makes of a batch of ``count``.

    A Sigmoid in front of the output makes it one that is not about a choice of one class: it is
    matched as a tensor, unless it is ``wanted``.

    Raises:
        UsageError: there is no output ``wanted``, or it holds no class scores.
    """
    names = [output.name for output in model.graph.output]
    if wanted is not None and wanted not in names:
        raise UsageError(f"no output {wanted!r}: the model has {', '.join(names)}")
    found = []
    for index, (name, output) in enumerate(zip(names, outputs, strict=False)):
        wide = [size for size in output.shape[1:] if size != 1]
        fits = output.dim() > 1 and len(output) == count and len(wide) == 1
        maker = maker_of(model, name)
        if fits and output.is_floating_point() and (wanted == name or maker != "Sigmoid"):
            found.append(Scores(index, name, maker == "Softmax", wide[0]))
    chosen = [each for each in found if wanted is None or each.name == wanted]
    if wanted is not None and not chosen:
        raise UsageError(f"output {wanted!r} holds no class scores")
    return chosen[0] if len(chosen) == 1 else None


def is_bounded(model: onnx.ModelProto, name: str) -> bool:
    """Whether a tensor holds shares of 1: what comes out of a Sigmoid or Softmax."""
    return maker_of(model, name) in ("Sigmoid", "HardSigmoid", "Softmax")


def maker_of(model: onnx.ModelProto, name: str) -> str:
    """The operator that computes the values of a tensor, behind those that only move them."""
    producers = {output: node for node in model.graph.node for output in node.output}
    while name in producers:
        node = producers[name]
        if node.op_type not in MOVES:
            return str(node.op_type)
        name = node.input[0]
    return ""


@dataclass
class Losses:
    """The parts of the loss of a batch; ``total`` is what is minimised, the others are for the log."""

    total: torch.Tensor
    output: torch.Tensor
    label: torch.Tensor
    feature: torch.Tensor


@dataclass(frozen=True)
class Objective:
    """Computes :class:`Losses`.

    Attributes:
        loss: kd, kd+ce, ce or mse; see :class:`~onnx_igpc.torch_bridge.training.recipe.Recipe`.
        scores: The output with class scores, if there is one.
        values: Places of the other outputs that are matched, by mean squared error.
        pairs: Inner tensors that are matched; they follow the outputs.
        outputs: Number of outputs.
        scales: One over the variance of the teacher's tensor, for each tensor, by place.
    """

    loss: str
    scores: Scores | None
    values: tuple[int, ...]
    pairs: tuple[Pair, ...]
    outputs: int
    temperature: float
    label_weight: float
    feature_weight: float
    scales: dict[int, float]

    def __call__(
        self,
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor] | None,
        labels: torch.Tensor | None,
    ) -> Losses:
        """The loss of a batch. ``teacher`` has gradients off, or is None without a teacher."""
        zero = student[0].new_zeros((), dtype=torch.float32)
        output = self._output_loss(student, teacher) if teacher is not None else zero
        label = zero
        if self.loss in ("ce", "kd+ce") and self.scores is not None and labels is not None:
            logits = self.scores.logits(student[self.scores.index])
            label = functional.cross_entropy(logits, labels)
        feature = self._feature_loss(student, teacher) if teacher is not None else zero
        share = self._label_share
        total = (1 - share) * output + share * label + self.feature_weight * feature
        return Losses(total, output.detach(), label.detach(), feature.detach())

    def judged(self, means: MeansReport) -> float:
        """What a model is judged by, out of the means of the losses: the loss less the part of the sites.

        That of the sites where no output is compared: a site can come closer to the teacher's while the
        outputs go away from it.
        """
        if not self.values and self.scores is None:
            return means.feature_loss
        share = self._label_share
        return (1 - share) * means.output_loss + share * means.label_loss

    @property
    def _label_share(self) -> float:
        return {"ce": 1.0, "kd+ce": self.label_weight}.get(self.loss, 0.0)

    def _output_loss(
        self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        parts = [self._distance(student[i], teacher[i], i) for i in self.values]
        if self.scores is not None and self.loss != "ce":
            index = self.scores.index
            ours, theirs = (self.scores.logits(each[index]) for each in (student, teacher))
            if self.loss == "mse":
                parts.append(self._distance(ours, theirs, index))
            else:
                parts.append(divergence(ours, theirs, self.temperature))
        if not parts:
            return student[0].new_zeros((), dtype=torch.float32)
        return torch.stack(parts).mean()

    def _feature_loss(
        self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        if not self.pairs:
            return student[0].new_zeros((), dtype=torch.float32)
        parts = [
            self._distance(ours, theirs, place)
            for place, (ours, theirs) in enumerate(self.paired(student, teacher), self.outputs)
        ]
        return torch.stack(parts).mean()

    def paired(
        self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The tensors of each pair, their channels in the same order."""
        for place, pair in enumerate(self.pairs, self.outputs):
            theirs = teacher[place]
            if pair.order is not None:
                order = torch.tensor(pair.order, device=theirs.device)
                theirs = take(theirs, order, 1)
            yield comparable(pair, student[place]), comparable(pair, theirs)

    def _distance(self, ours: torch.Tensor, theirs: torch.Tensor, place: int) -> torch.Tensor:
        """Mean squared error in units of the teacher's variance: 1 is as bad as a constant."""
        difference = ours - theirs
        # One pass over the numbers where mse_loss takes three, which costs twice the time on a CPU.
        exact = torch.promote_types(difference.dtype, torch.float32)
        norm: torch.Tensor = torch.linalg.vector_norm(difference, dtype=exact).float()
        return norm.square() * (self.scales[place] / max(difference.numel(), 1))


def comparable(pair: Pair, values: torch.Tensor) -> torch.Tensor:
    """A tensor as it is compared: its mean over height and width where the pair is ``pooled``."""
    return values.flatten(2).mean(2) if pair.pooled and values.dim() > 2 else values


def divergence(ours: torch.Tensor, theirs: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(softmax(theirs / T) || softmax(ours / T)), mean over the samples; logits [samples, classes].

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015; the factor T^2 keeps
    the size of the gradient where T changes.
    """
    ours = functional.log_softmax(ours / temperature, dim=1)
    theirs = functional.log_softmax(theirs / temperature, dim=1)
    kl = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return kl * temperature**2


def scale_of(values: torch.Tensor, *, bounded: bool = False) -> float:
    """One over the variance of a tensor, which makes its squared error comparable with others'.

    A tensor that hardly varies in the sample does not outweigh all others: the variance counts as at
    least 1e-6 of the mean square, and where ``bounded`` says that values are shares of 1, as 1e-4.
    """
    exact = values.detach().double()
    least = max(1e-6 * float(exact.square().mean()), 1e-4 if bounded else 0.0)
    variance = max(float(exact.var(correction=0)), least)
    return 1 / variance if variance > 0 else 1.0


def check_pairs(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], names: Sequence[str]
) -> None:
    """Raise ModelError where tensors that are to be matched differ in shape."""
    for name, ours, theirs in zip(names, student, teacher, strict=True):
        if ours.shape != theirs.shape:
            raise ModelError(
                f"the teacher does not fit: {name!r} is {list(theirs.shape)} there and "
                f"{list(ours.shape)} in the model; the teacher is the model that was compressed"
            )
