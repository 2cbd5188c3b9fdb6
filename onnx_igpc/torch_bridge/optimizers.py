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


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], recipe: Recipe
) -> torch.optim.Optimizer:
    """The optimizer of a recipe over the parameters that are trained, with their present values.

    Weight decay is only for what has several dimensions. Every group has a ``size``, see
    :func:`set_learning_rate`: for AdamW that of its tensors, for SGD, whose steps follow the
    gradient, 1.
    """
    relative = recipe.optimizer == "adamw"
    members: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            decay = recipe.weight_decay if parameter.dim() > 1 else 0.0
            size = size_of(parameter) if relative else 1.0
            members.setdefault((size, decay), []).append(parameter)
    # Decay is in proportion to the rate, and the gradient to what a weight is divided by.
    groups: list[dict[str, Any]] = [
        {"params": members[size, decay], "weight_decay": decay / size, "size": size}
        for size, decay in sorted(members)
    ]
    if not relative:
        return torch.optim.SGD(
            groups, lr=recipe.learning_rate, momentum=_SGD_MOMENTUM, nesterov=True
        )
    groups = [{**group, "eps": _EPSILON / group["size"]} for group in groups]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step be with ``rate``, for each group times its size."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["size"]


def size_of(tensor: torch.Tensor) -> float:
    """The root mean square of the values, as the nearest power of two: few sizes make few groups.

    1/8 for a tensor that is empty, zero or not finite.
    """
    power = float(tensor.detach().double().square().mean()) if tensor.numel() else 0.0
    if not 0.0 < power < math.inf:
        return _UNKNOWN_SIZE
    return float(2.0 ** round(math.log2(power) / 2))
