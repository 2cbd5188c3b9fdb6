"""Which weights of a module are trained: not those that a user or a recipe freezes, nor those without a part in the loss."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch

from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.torch_bridge.module import OnnxModule


def freeze(module: OnnxModule, globs: Sequence[str], frozen: Sequence[str] = ()) -> None:
    """Stop the training of the weights whose ONNX name matches a glob; ``frozen`` are not trained anyway.

    Raises:
        UsageError: a glob matches no weight, or nothing is left to train.
        ModelError: the model has no weights.
    """
    named = {module.bindings.get(path, path): p for path, p in module.named_parameters()}
    for glob in globs:
        found = fnmatch.filter(named, glob)
        if not found and not fnmatch.filter(frozen, glob):
            raise UsageError(
                f"`freeze` {glob!r} matches none of the {len(named)} weights, such as "
                f"{', '.join(sorted(named)[:3])}"
            )
        for name in found:
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        if globs:
            raise UsageError("`freeze` leaves no weight to train")
        raise ModelError("the model has no float weights: fine-tune before it is quantized")


def leave_unreached(student: OnnxModule, total: torch.Tensor, notes: list[str]) -> None:
    """Take weights that the loss does not depend on out of the training; ModelError if all are such."""
    trained = [p for p in student.parameters() if p.requires_grad]
    gradients: Sequence[torch.Tensor | None] = [None] * len(trained)
    if total.requires_grad:
        gradients = torch.autograd.grad(total, trained, allow_unused=True)
    unreached = [p for p, g in zip(trained, gradients, strict=True) if g is None]
    if len(unreached) == len(trained):
        raise ModelError(
            "the loss does not depend on any weight: its outputs are integers, rounded, or constant"
        )
    for parameter in unreached:
        parameter.requires_grad_(False)
    if unreached:
        names = {id(p): student.bindings.get(n, n) for n, p in student.named_parameters()}
        listed = ", ".join(names[id(p)] for p in unreached[:3])
        notes.append(f"{len(unreached)} weights have no part in the loss and stay: {listed}")
