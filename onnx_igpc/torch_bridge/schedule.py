"""The learning rate as a function of the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import math

from onnx_igpc.torch_bridge.recipe import Recipe


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
