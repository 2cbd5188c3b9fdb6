"""A learning rate that does not ruin the model: it is tried before the run, and a smaller one where it does.

A rate trains the model as it was given for a few dozen steps, over which it falls to zero. That says whether it
ruins the model. It does not say which of several rates is best: after so few steps every model is worse than its
start, the less so the smaller the rate, while what the whole run comes to is the other way about. A quarter of the training
data has no part in these steps, and judges: what the run itself is judged by chooses nothing here, so that its
figures stay those of unseen data. Afterwards everything is as it was, and the run is the one that the chosen rate alone
would have made.
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

# The largest first.
_FACTORS = (1.0, 1 / 3, 1 / 9)
# A rate ruins a model whose loss is more than so many times that of the start, and so much. What a whole run makes up
# for stays below (MobileNet V1 0.25: 1.6 and 2.8 times), what it does not lies far above (8 to 10 times).
_RUINED_TIMES, _RUINED_MORE = 4.0, 0.1
# Of the steps of the run, each of them.
_STEPS_PART = 0.05
_FEWEST_STEPS, _MOST_STEPS = 24, 64
START = "start"
"""What the loss of the model as it was given is called among those of the rates."""
_JUDGED_PART = 0.25
_FEWEST_JUDGED = 30


@dataclass(frozen=True)
class RateProbe:
    """Which rates are tried, and how.

    rates: one after the other until one does not ruin the model, that of the recipe first; none where nothing is tried.
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
        return [f"learning rate {chosen:g} was taken ({how}): {losses_text(tried)}"]


def plan_probe(job: Job, given: Recipe) -> RateProbe:
    """What is tried for a run.

    given: the recipe as the user has it; a rate in it is believed.
    """
    recipe = job.recipe
    # Whether this pays with many samples was not measured.
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
    """The loss of the model as given (``start``), and that of each rate up to one that does not ruin it; None
    where it diverged.

    The student is as before afterwards, without gradients and in eval mode, and ``job.optimizer`` is not used;
    random states change. All processes of a run get what the first one found.

    Raises:
        DataError: training data cannot be read.
    """
    if not probe.rates:
        return {}
    networks = job.networks
    start = snapshot(networks.student)
    tried = {START: _known(job, _judged(job))}
    for rate in probe.rates:
        found = _tried(job, replace(job.recipe, lr=rate, schedule="cosine"), probe.steps)
        networks.student.load_state_dict(start)
        networks.student.zero_grad(set_to_none=True)
        tried[f"{rate:g}"] = _known(job, found)
        if not _ruins(tried, f"{rate:g}"):
            break
    networks.set_training(False)
    return tried


def best_rate(tried: dict[str, float | None], own: float) -> float:
    """The largest rate that does not ruin the model, the least where all do; ``own`` where none was tried."""
    rates = [rate for rate in tried if rate != START]
    kept = [float(rate) for rate in rates if not _ruins(tried, rate)]
    return max(kept, default=min(map(float, rates), default=own))


def _ruins(tried: dict[str, float | None], rate: str) -> bool:
    start, loss = tried[START], tried[rate]
    if start is None or loss is None:
        return True
    return loss > _RUINED_TIMES * start + _RUINED_MORE


def _known(job: Job, loss: float) -> float | None:
    # Sums of the processes may differ in the last digit; the choice must not.
    world = job.networks.world
    found = world.sum([loss if world.leads else 0.0])[0]
    return found if math.isfinite(found) else None


def _tried(job: Job, recipe: Recipe, steps: int) -> float:
    """Train for some steps at the rate of a recipe, and judge."""
    networks, world = job.networks, job.networks.world
    data = _parts(job)[0]
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
    return _judged(job)


def _judged(job: Job) -> float:
    """The loss on what the rates are judged by, in fake int8 where the first steps are."""
    networks, (data, part) = job.networks, _parts(job)
    assert part is not None
    judge = networks.judge
    batches = job.val.loader.of(part).plain(job.plan.in_order(part.size))
    forward, labelled = networks.forward_plain, networks.labelled
    rounded = first_epoch(job.recipe) == 0
    if rounded:
        observe(networks, data, job.train.of(data))
    with networks.in_int8(rounded):
        found = evaluate(networks.student, forward, judge, batches, networks.world, labelled)
    return judge.judged(found)


def _batches(loader: BatchLoader, plan: BatchPlan) -> Iterator[TensorBatch]:
    """Epoch after epoch."""
    for epoch in count():
        for batch in loader.training(plan.batches(epoch), plan.seed, epoch):
            yield loader.readable(batch)


def _parts(job: Job) -> tuple[Part, Part | None]:
    """The training data that a probe trains on, and what it judges by."""
    needed, processes = job.plan.samples_per_step, job.networks.world.size
    return hold_out(job.data, _JUDGED_PART, job.recipe.seed, needed=needed, multiple=processes)
