"""More than one process: what ``torchrun`` starts, through ``torch.distributed``.

Every process computes its part of each batch, and DistributedDataParallel averages the gradients. The
gradient is that of one process with the whole batch, except for what BatchNorm does: each process
normalises by its own part. The running statistics, which take no gradient, are averaged over the
processes at the end of every epoch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from onnx_igpc.errors import UsageError


@dataclass(frozen=True)
class World:
    """This process among those of the run: ``rank`` of ``size``, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module whose backward pass averages gradients over the processes.

        All its parameters that require a gradient must get one in every step.
        """
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            module, device_ids=devices, broadcast_buffers=False
        )

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums of numbers over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(each) for each in total]

    def average_statistics(self, module: nn.Module) -> None:
        """Give every process the mean of the float buffers: the running statistics."""
        if self.size == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.size

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def join(device: str | None) -> Iterator[World]:
    """Take part in the run that ``torchrun`` started, or be alone.

    device: ``cpu``, ``cuda`` or ``cuda:N``; None takes a GPU if there is one. With several processes,
    each takes the GPU of its local rank. A process group that exists is used and left as it is.

    Raises:
        UsageError: a device that does not exist here.
    """
    several = dist.is_available() and dist.is_initialized()
    started = not several and int(os.environ.get("WORLD_SIZE", "1")) > 1
    local = int(os.environ.get("LOCAL_RANK", "0")) if several or started else None
    chosen = choose_device(device, local)
    if started:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        if several or started:
            yield World(dist.get_rank(), dist.get_world_size(), chosen)
        else:
            yield World(0, 1, chosen)
    finally:
        if started:
            dist.destroy_process_group()


def choose_device(name: str | None, local_rank: int | None = None) -> torch.device:
    """The device called ``name``; None takes a GPU if there is one.

    Raises:
        UsageError: an unknown device, or a GPU that PyTorch does not see.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"`device` {name!r}: choose cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"`device` {name!r}: choose cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise UsageError(f"`device` {name}: PyTorch {torch.__version__} sees no CUDA GPU")
    index = device.index if device.index is not None else (local_rank or 0)
    if index >= torch.cuda.device_count():
        raise UsageError(f"`device` {name}: there are {torch.cuda.device_count()} GPUs here")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
