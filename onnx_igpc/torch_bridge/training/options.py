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
        cache_size: GiB at most that a file beside the output may have for the time of the run, shared between its
            processes: what the student reads of views that come again, and what the teacher makes of them. It takes at
            most half of what is free there. 0 makes that anew each time, which comes to the same but for rounding.

    Raises:
        UsageError: fewer than no workers, a size below zero, or both ``resume`` and ``restart``.
    """

    device: str | None = None
    workers: int | None = None
    resume: bool = False
    restart: bool = False
    log: PathLike | None = None
    cache_size: float = 8.0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"`workers` must be at least 0, not {self.workers}")
        if not 0 <= self.cache_size < float("inf"):
            raise UsageError(f"`cache_size` must be at least 0 GiB, not {self.cache_size}")
        if self.resume and self.restart:
            raise UsageError(
                "`resume` goes on with an earlier run, `restart` begins anew: give one"
            )
