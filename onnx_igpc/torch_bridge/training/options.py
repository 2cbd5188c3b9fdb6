"""How and where a fine-tuning run goes, which decides nothing about its result."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_igpc.errors import UsageError
from onnx_igpc.graph.model import PathLike


@dataclass(frozen=True)
class Run:
    """How and where a fine-tuning run goes; what decides its result is in the recipe.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:N``; ``None`` takes a GPU if there is one.
        workers: processes that decode images; ``None`` takes as many as there are processors, at most 8,
            and none for arrays.
        resume: go on from the checkpoint of a run that was stopped, with the same settings.
        restart: start anew although there is a checkpoint.
        log: where the log goes, without suffix; ``None`` takes ``<output>.finetune``.

    Raises:
        UsageError: fewer than no workers, or both ``resume`` and ``restart``.
    """

    device: str | None = None
    workers: int | None = None
    resume: bool = False
    restart: bool = False
    log: PathLike | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"`workers` must be at least 0, not {self.workers}")
        if self.resume and self.restart:
            raise UsageError(
                "`resume` goes on with an earlier run, `restart` begins anew: give one"
            )
