"""Where and how a model runs: provider, device, threads, batch size."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import onnx

from onnx_igpc.errors import UsageError
from onnx_igpc.graph.inputs import Shapes, model_inputs
from onnx_igpc.runtime.session import (
    PROVIDERS,
    import_onnxruntime,
    provider_label,
    provider_name,
)


@dataclass(frozen=True)
class Setting:
    """Where and how a model will run.

    threads: intra-operator threads, ``None`` for onnxruntime's choice. batch: for inputs whose first
    dimension is dynamic; where it is fixed, see :meth:`fitted`. shapes: sizes of other dynamic inputs, by name.
    """

    provider: str = "cpu"
    threads: int | None = None
    batch: int = 1
    shapes: Shapes = field(default_factory=dict)

    def __post_init__(self) -> None:
        provider_name(self.provider)
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, not {self.threads}")
        if self.batch < 1:
            raise UsageError(f"batch must be at least 1, not {self.batch}")

    @property
    def clock(self) -> Callable[[], float]:
        """What is read before and after a run.

        With one thread on the CPU it is the time that the thread had a processor, which other programs
        do not lengthen; on an idle machine that is the time on the wall.
        """
        alone = self.threads == 1 and provider_name(self.provider) == PROVIDERS["cpu"]
        return time.thread_time if alone else time.perf_counter

    @property
    def label(self) -> str:
        """As in ``cpu (1 thread, batch 1)``."""
        if self.threads is None:
            threads = "onnxruntime's threads"
        else:
            threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{provider_label(provider_name(self.provider))} ({threads}, batch {self.batch})"

    def fitted(self, model: onnx.ModelProto) -> Setting:
        """The setting with the batch size that the model fixes, if it fixes one.

        Raises:
            UsageError: another batch size was asked for.
        """
        fixed = next((spec.fixed_batch for spec in model_inputs(model)), None)
        if fixed is None or fixed == self.batch:
            return self
        if self.batch != 1:
            raise UsageError(
                f"batch {self.batch} was asked for, but the model takes only batches of {fixed}"
            )
        return replace(self, batch=fixed)

    def environment(self) -> dict[str, object]:
        """What decides the times of a given model."""
        return {
            "provider": provider_name(self.provider),
            "threads": self.threads,
            "onnxruntime": import_onnxruntime("racing lowerings").__version__,
            "processor": device_name(self.provider),
        }


@dataclass(frozen=True)
class Settings:
    """Where and how models are raced: every batch size with every number of threads.

    batches: none means the batch size that the models fix, or 1. threads: intra-operator threads, ``None``
    for onnxruntime's choice; a number alone stands for a tuple of one. shapes: as in :class:`Setting`.
    """

    provider: str = "cpu"
    batches: int | Sequence[int] = ()
    threads: int | Sequence[int | None] = (None,)
    shapes: Shapes = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("batches", "threads"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, int) else tuple(given))
        if not self.thread_counts:
            raise UsageError(
                "threads names no number of threads: give None for onnxruntime's choice"
            )
        # Every value is checked by the one setting that it is raced in.
        for batch in self.batch_sizes or (1,):
            for count in self.thread_counts:
                Setting(self.provider, count, batch)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """``batches`` as a tuple."""
        return cast("tuple[int, ...]", self.batches)

    @property
    def thread_counts(self) -> tuple[int | None, ...]:
        """``threads`` as a tuple."""
        return cast("tuple[int | None, ...]", self.threads)


@functools.cache
def device_name(provider: str) -> str:
    """The processor, and for providers on an NVIDIA GPU the GPU, as the system names them."""
    parts = [platform.machine(), _processor(), f"{os.cpu_count()} processors"]
    if provider_label(provider_name(provider)) in ("cuda", "tensorrt"):
        parts.append(_gpu())
    return ", ".join(part for part in parts if part)


def _processor() -> str:
    """Linux tells the model, stepping and instruction sets, others what platform knows."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    lines = [line.partition(":") for line in text.split("\n\n")[0].splitlines()]
    first = {name.strip(): value.strip() for name, _, value in lines}
    flags = hashlib.sha256(first.get("flags", "").encode()).hexdigest()[:8]
    known = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    return " ".join([*(first[key] for key in known if key in first), flags])


def _gpu() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown GPU"
    asked = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown GPU"
    return said.stdout.strip().splitlines()[0] if said.stdout.strip() else "unknown GPU"
