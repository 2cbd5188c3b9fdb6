"""A learning rate confirmed rather than believed: a few are tried before the run, from its start.

Every rate trains the model as it was given for the same few dozen steps, over which it falls to zero, since until
it has come down every run is worse than its start. A quarter of the training data has no part in these steps, and
judges: what the run itself is judged by chooses nothing here, so that its figures stay those of unseen data.
Afterwards everything is as it was, and the run is the one that the chosen rate alone would have made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice

import torch

from onnx_igpc.report.numbers import losses_text
from onnx_igpc.torch_bridge.training.evaluation import evaluate
from onnx_igpc.torch_bridge.training.held_out import Part, hold_out
from onnx_igpc.torch_bridge.training.int8_training import first_epoch, observe
from onnx_igpc.torch_bridge.training.loader import BatchLoader, TensorBatch
from onnx_igpc.torch_bridge.training.loop import snapshot, train_step
from onnx_igpc.torch_bridge.training.optimizers import build_optimizer
from onnx_igpc.torch_bridge.training.preparation import Job
from onnx_igpc.torch_bridge.training.recipe import Recipe
from onnx_igpc.torch_bridge.training.sampling import BatchPlan, learning_rate

_FACTORS = (1 / 3, 1.0, 3.0)
# Of the steps of the run, each of them.
_STEPS_PART = 0.05
_FEWEST_STEPS, _MOST_STEPS = 24, 64
_JUDGED_PART = 0.25
_FEWEST_JUDGED = 30


@dataclass(frozen=True)
class RateProbe:
    """Which rates are tried, and how.

    rates: relative ones for ``adamw``, as in the recipe, whose own is among them; none where nothing is tried.
    steps: of each. reason: why nothing is tried, where the rate could have been in question.
    """

    rates: tuple[float, ...] = ()
    steps: int = 0
    reason: str | None = None

    def note(self, tried: dict[str, float | None], chosen: float) -> list[str]:
        """What a person is told, once it is done: one line, or none where the rate was not in question."""
        if self.reason:
            return [f"learning rate {chosen:g} was not confirmed by trying others: {self.reason}"]
        if not tried:
            return []
        how = f"loss after {self.steps} steps, on training data left out of them"
        return [f"learning rate {chosen:g} was chosen ({how}): {losses_text(tried)}"]


def plan_probe(job: Job, given: Recipe) -> RateProbe:
    """What is tried for a run.

    given: the recipe as the user has it; a rate in it is believed.
    """
    recipe = job.recipe
    # With many samples a run gains far more than a rate three times off costs it, and at its beginning
    # the largest rate that does not diverge looks best.
    if given.lr is not None or recipe.base != "few":
        return RateProbe()
    assert recipe.epochs is not None
    total = recipe.epochs * job.plan.steps
    steps = min(int(_STEPS_PART * total), _MOST_STEPS)
    if steps < _FEWEST_STEPS:
        least = math.ceil(_FEWEST_STEPS / _STEPS_PART)
        return RateProbe(reason=f"{total} steps are too few to spare some of them, {least} are not")
    judged = _parts(job)[1]
    if judged is None or judged.size < _FEWEST_JUDGED:
        return RateProbe(reason=f"{job.data.size} training samples leave too few to judge by")
    # Two digits: what is shown, and can be given, is what was tried.
    rates = tuple(float(f"{factor * recipe.learning_rate:.2g}") for factor in _FACTORS)
    return RateProbe(rates, steps)


def try_rates(job: Job, probe: RateProbe) -> dict[str, float | None]:
    """The loss that each rate of a probe comes to, by rate; None where it diverged.

    The student is as before afterwards, without gradients and in eval mode, and ``job.optimizer`` is not used;
    random states change. All processes of a run get what the first one found.

    Raises:
        DataError: training data cannot be read.
    """
    start = snapshot(job.networks.student)
    tried: dict[str, float | None] = {}
    for rate in probe.rates:
        found = _tried(job, replace(job.recipe, lr=rate, schedule="cosine"), probe.steps)
        job.networks.student.load_state_dict(start)
        job.networks.student.zero_grad(set_to_none=True)
        # Sums of the processes may differ in the last digit; the choice must not.
        found = job.networks.world.sum([found if job.networks.world.leads else 0.0])[0]
        tried[f"{rate:g}"] = found if math.isfinite(found) else None
    job.networks.set_training(False)
    return tried


def best_rate(tried: dict[str, float | None], own: float) -> float:
    """The rate with the least loss; the recipe's ``own`` where none was tried, or all diverged."""
    known = {float(rate): loss for rate, loss in tried.items() if loss is not None}
    return min(known, key=lambda rate: known[rate], default=own)


def _tried(job: Job, recipe: Recipe, steps: int) -> float:
    """Train for some steps at the rate of a recipe, and judge."""
    networks, world = job.networks, job.networks.world
    data, judged = _parts(job)
    assert judged is not None
    plan = BatchPlan(data.size, job.plan.batch_size, recipe.seed, world.rank, world.size)
    torch.manual_seed(recipe.seed + world.rank)
    optimizer = build_optimizer(networks.student.parameters(), recipe)
    scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.amp == "fp16")
    rounded = first_epoch(recipe) == 0
    loader = job.train.of(data)
    if rounded:
        observe(networks, data, loader)
    networks.set_training(recipe.batch_norm == "train" and not rounded)
    with networks.in_int8(rounded):
        for step, batch in enumerate(islice(_batches(loader, plan), steps)):
            train_step(networks, optimizer, scaler, batch, learning_rate(recipe, step, steps))
    world.average_statistics(networks.student)
    if rounded:
        observe(networks, data, loader)
    judge = networks.judge
    with networks.in_int8(rounded):
        means = evaluate(
            networks.student,
            networks.forward_plain,
            judge,
            job.val.loader.of(judged).plain(plan.in_order(judged.size)),
            world,
            networks.labelled,
        )
    return judge.judged(means)


def _batches(loader: BatchLoader, plan: BatchPlan) -> Iterator[TensorBatch]:
    """Epoch after epoch."""
    for epoch in count():
        yield from loader.training(plan.batches(epoch), plan.seed, epoch)


def _parts(job: Job) -> tuple[Part, Part | None]:
    """The training data that a probe trains on, and what it judges by."""
    needed, processes = job.plan.samples_per_step, job.networks.world.size
    return hold_out(job.data, _JUDGED_PART, job.recipe.seed, needed=needed, multiple=processes)
