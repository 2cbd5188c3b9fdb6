"""The training batches of a run: so many views of every sample, which come again.

Of a view that comes again nothing need be decoded, and neither the teacher nor what lies before the first rewritten
layer need run: what the student reads and what it is to learn is kept on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from onnx_igpc.errors import with_flags
from onnx_igpc.torch_bridge.running import placed
from onnx_igpc.torch_bridge.training.held_out import Part
from onnx_igpc.torch_bridge.training.loader import BatchLoader, TensorBatch, rows_of
from onnx_igpc.torch_bridge.training.networks import Networks
from onnx_igpc.torch_bridge.training.row_file import RowFile, gibibytes
from onnx_igpc.torch_bridge.training.sampling import BatchPlan

# A sample's part of what is made of a batch differs by rounding alone, whatever the others are.
_TOLERANCE = 1e-3


@dataclass
class Views:
    """The batches of every epoch.

    Attributes:
        networks: student and teacher.
        data, loader: the training data.
        plan: which samples when.
        seed: of the views.
        count: different views of each sample; those of epoch e are those of epoch e + ``count``.
        file: where what is made of them is kept; None makes it anew each time.
    """

    networks: Networks
    data: Part
    loader: BatchLoader
    plan: BatchPlan
    seed: int
    count: int
    file: RowFile | None = None

    def __post_init__(self) -> None:
        # The row of the file that each view of each sample has, -1 for none yet.
        self._rows = np.zeros((0, 0), np.int64)
        self._used = 0

    def keep(self, folder: Path, most: float, probe: TensorBatch) -> str | None:
        """Keep on disk what is made of the views.

        Args:
            folder: where.
            most: bytes that it may take there.
            probe: some samples, which say how much of it there will be.

        Returns:
            What a person is told, if it is kept, or why it cannot be.
        """
        if self.networks.teacher is None or not _alone(self.networks, probe):
            return None
        rows = self.count * self.data.size
        try:
            file = RowFile(folder, _made(self.networks.known(probe)), rows, most)
        except OSError as error:
            return f"views are made anew each time: they cannot be kept on disk: {error.strerror}"
        if not file.rows:
            return None
        self.file = file
        self._rows = np.full((self.count, self.data.size), -1)
        what = "each sample" if self.count == 1 else f"the {self.count} views of each sample"
        part = "" if file.rows == rows else f"{file.rows / rows:.0%} of "
        return with_flags(
            f"what is made of {part}{what} is kept on disk for the time of the run, {gibibytes(file.bytes)} "
            "(`cache_size` 0 makes it anew each time)"
        )

    def catch_up(self, epoch: int, step: int) -> None:
        """Make again what a run had kept that stopped in front of a step of an epoch, from the same batches: out of
        others it would differ by rounding."""
        if self.file is None:
            return
        for earlier in range(epoch):
            for _ in self.batches(earlier):
                pass
        for _ in islice(self.batches(epoch), step):
            pass

    def batches(self, epoch: int, start: int = 0) -> Iterator[TensorBatch]:
        """The batches of an epoch from step ``start`` on, with what is known of them."""
        view = epoch % self.count
        if self.file is None:
            whole = self.loader.training(self.plan.batches(epoch, start), self.seed, view)
            yield from map(self.networks.known, map(self.loader.readable, whole))
            return
        asked: deque[tuple[list[int], list[int]]] = deque()

        def missing() -> Iterator[list[int]]:
            for batch in self.plan.batches(epoch, start):
                places = [i for i, sample in enumerate(batch) if self._rows[view, sample] < 0]
                asked.append((batch, places))
                yield [batch[place] for place in places]

        for read in self.loader.training(missing(), self.seed, view):
            batch, places = asked.popleft()
            if len(places) == len(batch):
                known = self.networks.known(self.loader.readable(read))
                self._keep(view, [batch[place] for place in known.places], known)
                yield known
            else:
                yield self._completed(view, batch, places, read)

    def _completed(
        self, view: int, batch: Sequence[int], places: Sequence[int], read: TensorBatch
    ) -> TensorBatch:
        """A batch of which those at ``places`` had to be read."""
        assert self.file is not None
        device = self.networks.world.device
        known = [place for place in range(len(batch)) if self._rows[view, batch[place]] >= 0]
        parts = self.file.get([self._rows[view, batch[place]] for place in known])
        parts = [placed(tensor, device) for tensor in parts]
        if read.inputs:
            made = self.networks.known(read)
            new = [places[place] for place in read.places]
            self._keep(view, [batch[place] for place in new], made)
            found = [tensor[: len(new)] for tensor in _made(made)]
            parts = [torch.cat(pair) for pair in zip(parts, found, strict=True)]
            known += new
        order = np.argsort(known)
        order = order[rows_of(len(known), max(len(batch), self.loader.rows or 0))]
        parts = [placed(tensor[torch.from_numpy(order)], device) for tensor in parts]
        labels = None
        if self.data.labels is not None:
            labels = torch.from_numpy(self.data.labels[[batch[known[row]] for row in order]])
        inner = len(self.networks.student.input_names)
        return replace(
            read,
            inputs=(),
            labels=labels,
            count=len(batch),
            read=parts[:inner],
            taught=parts[inner:],
        )

    def _keep(self, view: int, samples: Sequence[int], batch: TensorBatch) -> None:
        """Keep the first rows of a batch as what is made of these samples, as far as there is room."""
        assert self.file is not None
        tensors = _made(batch)
        samples = samples[: self.file.rows - self._used]
        if not samples or not self.file.fits(tensors):
            return
        rows = range(self._used, self._used + len(samples))
        self.file.put(rows, [tensor[: len(samples)] for tensor in tensors])
        self._rows[view, samples] = rows
        self._used += len(samples)


def _made(batch: TensorBatch) -> list[torch.Tensor]:
    """What the student reads, and what the teacher makes."""
    assert batch.read is not None
    return [*batch.read, *(batch.taught or ())]


def _alone(networks: Networks, probe: TensorBatch) -> bool:
    """Whether what is made of a sample is its own, whatever else is in the batch: the samples of the first half are to
    be what they were with those of the second half before them."""
    half = len(probe.inputs[0]) // 2
    if not half:
        return True

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor[:half], tensor[:half], tensor[2 * half :]])

    rows = len(probe.inputs[0])
    first = _made(networks.known(probe))
    other = _made(networks.known(replace(probe, inputs=tuple(map(turned, probe.inputs)))))
    return all(
        one.dim() > 0
        and len(one) == rows
        and torch.allclose(
            one[:half].double(),
            again[:half].double(),
            rtol=0,
            atol=_TOLERANCE * float(one.double().abs().max()),
        )
        for one, again in zip(first, other, strict=True)
    )
