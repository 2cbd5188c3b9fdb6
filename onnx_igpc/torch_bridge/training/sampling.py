"""Which samples each step sees: seeded, the same for every number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnx_igpc.errors import UsageError
from onnx_igpc.torch_bridge.training.recipe import Recipe


@dataclass(frozen=True)
class BatchPlan:
    """Batches of an epoch over ``size`` samples, and the part of each that a process takes.

    A step takes ``batch_size`` samples of the shuffled data, or all of it where there are fewer.
    What is left over after the last full batch waits for the next epoch, which is shuffled anew.
    Process ``rank`` of ``world`` takes every ``world``-th sample of a batch, so that all processes
    together do what one would.

    Raises:
        UsageError: a batch cannot be shared out evenly.
    """

    size: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.samples_per_step % self.world or self.samples_per_step < self.world:
            raise UsageError(
                f"a batch of {self.samples_per_step} samples cannot be shared evenly by "
                f"{self.world} processes: choose a `batch_size` that is a multiple of {self.world}, "
                f"and not more than the {self.size} samples"
            )

    @property
    def samples_per_step(self) -> int:
        """Samples of one step, over all processes."""
        return min(self.batch_size, self.size)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.size // self.samples_per_step

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """The indices this process takes in each step of an epoch, from step ``start`` on."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
        for step in range(start, self.steps):
            first = step * self.samples_per_step
            batch = order[first : first + self.samples_per_step]
            yield batch[self.rank :: self.world].tolist()

    def in_order(self, size: int) -> Iterator[list[int]]:
        """The indices this process takes of ``size`` samples that are read once, for validation."""
        own = range(self.rank, size, self.world)
        each = self.samples_per_step // self.world
        for start in range(0, len(own), each):
            yield list(own[start : start + each])


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of step ``step``, counted from 0, of a run of ``steps``.

    It rises linearly over the first ``recipe.warmup`` of the run and then falls to zero along half a
    cosine (Loshchilov and Hutter, SGDR, 2017, without restarts) or a line, or stays.
    """
    warm = math.ceil(recipe.warmup * steps)
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    # One step beyond the last is zero: the last step, too, learns something.
    done = (step - warm) / max(steps - warm, 1)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if recipe.schedule == "linear":
        return recipe.learning_rate * (1 - done)
    return recipe.learning_rate * (1 + math.cos(math.pi * done)) / 2
