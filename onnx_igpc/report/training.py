"""Parts of the section about a run of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class WrittenCheck:
    """The written model in onnxruntime against the module in PyTorch: the deviation and its bound."""

    relative: float
    bound: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class Int8Report:
    """Training in fake int8, for the model that ``quantize`` makes.

    How many tensors and weights of it were rounded, to integers of which ``levels``; ``unknown`` ones were not.
    ``from_epoch`` on; ``observed``: on how many samples ranges were found after each epoch, at most.
    """

    activations: int
    weights: int
    levels: list[list[int]]
    unknown: list[str]
    from_epoch: int
    observed: int
