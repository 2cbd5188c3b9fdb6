"""Optimizers whose steps suit the sizes of the weights.

Adam moves every weight by about the learning rate, whatever the weight's size. Sizes differ by a hundred: between
K and L of a site (the fit of published V2 leaves K small and L large), between the filters of a layer whose
BatchNorm was folded, and between networks. A rate that suits one filter then ruins another or
leaves it where it is. Here AdamW moves every filter as if it were divided by its size, so that units do
not matter: rates are relative, as in Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear
Memory Cost", ICML 2018, section 8, though to the sizes that the weights begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from onnx_igpc.torch_bridge.training.recipe import Recipe

_SGD_MOMENTUM = 0.9
# Of the gradient of a weight that was divided by its size: at a size of 0.1, which is common, it is the
# usual 1e-8 of the gradient itself.
_EPSILON = 1e-9
# A filter that is small by chance, or dead, moves as one of this part of the tensor's median size.
_LEAST_PART = 0.1
# Of tensors that say nothing of their size, such as a shift before any training.
_UNKNOWN_SIZE = 0.125


class RelativeAdamW(torch.optim.AdamW):
    """AdamW on weights that are divided by their :func:`sizes` at the time this is made.

    Args:
        parameters: what is trained; those that need no gradient are left out.
        lr: about the part of its size by which a weight moves in a step.
        weight_decay: for tensors of two and more dimensions.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float = 1e-2,
        weight_decay: float = 1e-3,
    ) -> None:
        super().__init__(_groups(parameters, weight_decay), lr=lr, eps=_EPSILON)
        self._sizes = {p: sizes(p) for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; gradients are in units of the sizes afterwards."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [(p, size) for p, size in self._sizes.items() if p.grad is not None]
        # Sizes are powers of two: dividing and multiplying rounds nothing.
        for parameter, size in moved:
            assert parameter.grad is not None
            parameter.div_(size)
            parameter.grad.mul_(size)
        super().step()
        for parameter, size in moved:
            parameter.mul_(size)
        return loss


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], recipe: Recipe
) -> torch.optim.Optimizer:
    """The optimizer of a recipe, weight decay only for what has several dimensions.

    SGD is PyTorch's own: its steps follow the gradient.
    """
    if recipe.optimizer == "adamw":
        return RelativeAdamW(parameters, recipe.learning_rate, recipe.weight_decay)
    groups = _groups(parameters, recipe.weight_decay)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=_SGD_MOMENTUM, nesterov=True)


def sizes(tensor: torch.Tensor) -> torch.Tensor:
    """The root mean square of every filter, as the nearest power of two, in the shape of the tensor with 1
    in all axes but the first.

    A filter is what has one index on the first axis, in a vector a single value. It counts as at least a
    tenth of the median of those that are not zero. Where all are zero, or one is not finite, all have 1/8.
    """
    shape = [-1, *[1] * (tensor.dim() - 1)] if tensor.dim() else []
    values = tensor.detach().double()
    values = values.flatten(1) if tensor.dim() > 1 else values.reshape(-1, 1)
    found = values.square().mean(1).sqrt()
    known = found[found > 0]
    if len(known) and found.isfinite().all():
        found = found.clamp(min=_LEAST_PART * float(known.median()))
    else:
        found = torch.full_like(found, _UNKNOWN_SIZE)
    return torch.exp2(found.log2().round()).to(tensor.dtype).reshape(shape)


def _groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
