"""Optimizers whose steps suit the sizes of the weights.

Adam moves every weight by about the learning rate, whatever the weight's size. Sizes differ by a hundred within
one rewritten site (the fit of published V2 leaves K small and L large), and between networks by how they
were trained and whether their BatchNorm was folded. A rate that suits one tensor then ruins another or
leaves it where it is. Here AdamW moves every tensor as if it were divided by its size, so that units do
not matter: rates are relative, as in Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear
Memory Cost", ICML 2018, section 8, to the size that the tensor begins with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from onnx_igpc.torch_bridge.recipe import Recipe

_SGD_MOMENTUM = 0.9
# At a size of 0.1, which is common, it is the usual 1e-8 in the gradient's units.
_EPSILON = 1e-9
# Of tensors that say nothing of their size, such as a shift before any training.
_UNKNOWN_SIZE = 0.125


def relative_adamw(
    parameters: Iterable[torch.nn.Parameter], lr: float = 1e-2, weight_decay: float = 1e-3
) -> torch.optim.AdamW:
    """AdamW that moves every tensor as if it were divided by its present :func:`size_of`.

    Learning rate schedulers of PyTorch work with it: each group has its own rate, ``lr`` times its ``size``.

    Args:
        parameters: what is trained; those that need no gradient are left out.
        lr: the part of its tensor's size by which a weight moves in a step, about.
        weight_decay: for tensors of two and more dimensions.
    """
    members: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            decay = weight_decay if parameter.dim() > 1 else 0.0
            members.setdefault((size_of(parameter), decay), []).append(parameter)
    # Of a weight that is divided by its size the gradient is larger by that, and epsilon is added to
    # it; decay comes with the rate, which has the size in it already.
    groups: list[dict[str, Any]] = [
        {
            "params": members[size, decay],
            "size": size,
            "lr": lr * size,
            "eps": _EPSILON / size,
            "weight_decay": decay / size,
        }
        for size, decay in sorted(members)
    ]
    return torch.optim.AdamW(groups, lr=lr)


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], recipe: Recipe
) -> torch.optim.Optimizer:
    """The optimizer of a recipe, weight decay only for what has several dimensions.

    SGD is PyTorch's own: its steps follow the gradient.
    """
    if recipe.optimizer == "adamw":
        return relative_adamw(parameters, recipe.learning_rate, recipe.weight_decay)
    trained = [p for p in parameters if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=_SGD_MOMENTUM, nesterov=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step be with ``rate``, for a group that has a ``size`` in units of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("size", 1.0)


def size_of(tensor: torch.Tensor) -> float:
    """The root mean square of the values, as the nearest power of two: few sizes make few groups.

    1/8 for a tensor that is empty, zero or not finite.
    """
    power = float(tensor.detach().double().square().mean()) if tensor.numel() else 0.0
    if not 0.0 < power < math.inf:
        return _UNKNOWN_SIZE
    return float(2.0 ** round(math.log2(power) / 2))
