"""Sums of losses and hits over batches and processes, and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from onnx_igpc.report.sections import MeansReport
from onnx_igpc.torch_bridge.training.distributed import World
from onnx_igpc.torch_bridge.training.loader import TensorBatch
from onnx_igpc.torch_bridge.training.losses import Losses, Objective

Forward = Callable[[TensorBatch], tuple[list[torch.Tensor], list[torch.Tensor] | None]]
"""From a batch to the student's and the teacher's outputs, each followed by the paired tensors."""

_KEYS = ("samples", "loss", "output_loss", "label_loss", "feature_loss")


class Tally:
    """Losses and hits added up on the device, so that a GPU need not be waited for at every step."""

    def __init__(self, objective: Objective, device: torch.device, labelled: bool) -> None:
        self._objective = objective
        self._taught = False
        self._labelled = labelled and objective.scores is not None
        self._sums = torch.zeros(7, dtype=torch.float64, device=device)

    def restore(self, sums: dict[str, float]) -> None:
        """Go on from :meth:`local`."""
        self._taught = bool(sums["taught"])
        values = [sums[key] for key in (*_KEYS, "hits", "agreed")]
        self._sums.copy_(torch.tensor(values, dtype=torch.float64))

    @torch.no_grad()
    def add(
        self,
        losses: Losses,
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor] | None,
        labels: torch.Tensor | None,
        count: int,
    ) -> None:
        """Add a batch of ``count`` samples."""
        self._taught = self._taught or teacher is not None
        parts = [losses.total.detach(), losses.output, losses.label, losses.feature]
        hits = agreed = self._sums.new_zeros(())
        scores = self._objective.scores
        if scores is not None:
            chosen = scores.logits(student[scores.index])[:count].argmax(1)
            if labels is not None:
                hits = (chosen == labels[:count]).sum()
            if teacher is not None:
                agreed = (chosen == scores.logits(teacher[scores.index])[:count].argmax(1)).sum()
        means = torch.stack([part.double() for part in parts]) * count
        self._sums[0] += count
        self._sums[1:5] += means
        self._sums[5] += hits
        self._sums[6] += agreed

    def local(self) -> dict[str, float]:
        """The sums of this process, for a checkpoint."""
        values = self._sums.tolist()
        return {
            **dict(zip((*_KEYS, "hits", "agreed"), values, strict=True)),
            "taught": float(self._taught),
        }

    def means(self, world: World) -> MeansReport:
        """Means over all processes: the losses, accuracy and agreement where they are known."""
        samples, *sums = world.sum(self._sums.tolist())
        loss, output, label, feature, hits, agreed = (value / max(samples, 1) for value in sums)
        scored = self._objective.scores is not None
        return MeansReport(
            loss=loss,
            output_loss=output,
            label_loss=label,
            feature_loss=feature,
            accuracy=hits if self._labelled else None,
            agreement=agreed if scored and self._taught else None,
        )


def evaluate(
    module: nn.Module,
    forward: Forward,
    objective: Objective,
    batches: Iterable[TensorBatch],
    world: World,
    labelled: bool,
) -> MeansReport:
    """Means over data with the module in eval mode; it is left in the mode it was in."""
    tally = Tally(objective, world.device, labelled)
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                student, teacher = forward(batch)
                labels = batch.labels.to(world.device) if batch.labels is not None else None
                losses = objective(student, teacher, labels)
                tally.add(losses, student, teacher, labels, batch.count)
    finally:
        module.train(training)
    return tally.means(world)


@torch.no_grad()
def site_errors(
    module: nn.Module, forward: Forward, objective: Objective, batches: Iterable[TensorBatch]
) -> dict[str, float]:
    """``|a - b| / |b|`` over all samples of the tensor that each matched site makes, b being the teacher's.

    By the name of the site; the module is in eval mode afterwards.
    """
    module.eval()
    apart = [0.0] * len(objective.pairs)
    size = [0.0] * len(objective.pairs)
    for batch in batches:
        student, teacher = forward(batch)
        assert teacher is not None
        for index, (ours, theirs) in enumerate(objective.paired(student, teacher)):
            apart[index] += float((ours - theirs).double().square().sum())
            size[index] += float(theirs.double().square().sum())
    return {
        pair.site: (a / max(b, 1e-300)) ** 0.5
        for pair, a, b in zip(objective.pairs, apart, size, strict=True)
    }
