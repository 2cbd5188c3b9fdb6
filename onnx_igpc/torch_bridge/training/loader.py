"""Batches of tensors from training data, prepared by worker processes where that pays."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from onnx_igpc.data.preprocessing import CorruptImageError
from onnx_igpc.data.sources import MAX_CORRUPT
from onnx_igpc.errors import DataError, IgpcError
from onnx_igpc.torch_bridge.training.augment import (
    Augmentation,
    Draw,
    EpochDraws,
    mixed,
)
from onnx_igpc.torch_bridge.training.data import TrainingData

_Request = list[tuple[int, Draw | None]]
_PREFETCH = 4


@dataclass
class TensorBatch:
    """inputs: one tensor for each graph input, in order. labels: int64[rows] or None. count: the rows
    that mean something; there are more only where the model fixes its batch and the data ran out.
    skipped: why samples could not be read; others of the batch stand in for them. places: of the samples
    that were asked for, those that could be read, which are the first rows. read: what the student reads,
    and taught: the teacher's outputs, where they are known already, on the device; ``inputs`` may be missing then."""

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor | None
    count: int
    skipped: list[str]
    places: tuple[int, ...] = ()
    read: list[torch.Tensor] | None = None
    taught: list[torch.Tensor] | None = None


class BatchLoader:
    """Loads the batches that it is given as lists of indices.

    rows: samples of every batch, repeated where there are fewer; None leaves them as they are.
    workers: processes that prepare batches ahead; 0 prepares them in this one. pin: into memory from
    which a GPU copies while it computes. part_of: how many samples the share of images that may be
    unreadable is counted of; None for those of ``data``.
    """

    def __init__(
        self,
        data: TrainingData,
        input_names: Sequence[str],
        augmentation: Augmentation,
        *,
        rows: int | None = None,
        workers: int = 0,
        pin: bool = False,
        part_of: int | None = None,
    ) -> None:
        self._dataset = _Batches(data, tuple(input_names), augmentation, rows)
        self._data = data
        self._names = tuple(input_names)
        self._augmentation = augmentation
        self.rows = rows
        self._workers = workers
        self._pin = pin
        self._part_of = part_of or data.size
        self.skipped: set[str] = set()
        self._turns = _Turns()
        self._staying: DataLoader[TensorBatch | IgpcError] | None = None

    def of(self, data: TrainingData) -> BatchLoader:
        """A loader that does the same with other samples of the same kind."""
        return BatchLoader(
            data,
            self._names,
            self._augmentation,
            rows=self.rows,
            workers=self._workers,
            pin=self._pin,
            part_of=self._part_of,
        )

    def training(self, batches: Iterator[list[int]], seed: int, view: int) -> Iterator[TensorBatch]:
        """Augmented batches of one epoch, to be read before those of the next one.

        view: what happens to each sample, the same for the same number. A batch of no samples, or of none that can be
        read, is one without inputs.
        """
        draws = None
        if self._augmentation.does_anything:
            draws = EpochDraws(self._augmentation, self._data.size, seed, view)
        requests = ([(i, draws[i] if draws else None) for i in batch] for batch in batches)
        if not self._workers:
            return self._load(self._loader(requests))
        # A worker that began after the first steps would share their memory, which they would then have to copy.
        self._turns.requests = requests
        if self._staying is None:
            self._staying = self._loader(self._turns, stay=True)
        return self._load(self._staying)

    def plain(self, batches: Iterator[list[int]]) -> Iterator[TensorBatch]:
        """Batches without augmentation."""
        loader = self._loader([(index, None) for index in batch] for batch in batches)
        return map(self.readable, self._load(loader))

    def readable(self, batch: TensorBatch) -> TensorBatch:
        """The batch; DataError where nothing that was asked for can be read."""
        if not batch.inputs:
            source = self._data.source
            raise DataError(f"{source}: no image of a batch can be read: {batch.skipped[0]}")
        return batch

    def _loader(
        self, requests: Iterable[_Request], stay: bool = False
    ) -> DataLoader[TensorBatch | IgpcError]:
        """stay: its workers are there for the requests of one turn after another."""
        return DataLoader(
            self._dataset,
            batch_size=None,
            sampler=requests,  # what it yields goes to __getitem__
            worker_init_fn=_leave_signals,
            num_workers=self._workers,
            prefetch_factor=_PREFETCH if self._workers else None,
            persistent_workers=stay,
            pin_memory=self._pin,
            # The seeds of workers come from a generator: without one of its own it would be the
            # global one, whose state Dropout reads.
            generator=torch.Generator(),
        )

    def _load(self, loader: DataLoader[TensorBatch | IgpcError]) -> Iterator[TensorBatch]:
        for batch in loader:
            if isinstance(batch, IgpcError):
                raise batch
            self.skipped.update(batch.skipped)
            if len(self.skipped) > MAX_CORRUPT * self._part_of:
                raise DataError(
                    f"{self._data.source}: more than {MAX_CORRUPT:.0%} of {self._part_of} images "
                    f"cannot be read: {'; '.join(sorted(self.skipped)[:3])}"
                )
            yield batch


def rows_of(samples: int, size: int) -> list[int]:
    """Which sample each row of a batch is.

    It keeps its size where some could not be read: the gradients of several processes are averaged as equals.
    """
    return [row % samples for row in range(size)]


class _Turns:
    """The requests of one epoch after another, as a sampler."""

    def __init__(self) -> None:
        self.requests: Iterator[_Request] = iter(())

    def __iter__(self) -> Iterator[_Request]:
        return self.requests


def _leave_signals(_: int) -> None:
    """Ctrl-C reaches workers, too, but it is the main process that ends them, after a checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Batches(Dataset[TensorBatch | IgpcError]):
    """Requests in, batches out; this is what workers run.

    An error is a result: raised in a worker, it would come back as the text of a traceback.
    """

    def __init__(
        self,
        data: TrainingData,
        names: tuple[str, ...],
        augmentation: Augmentation,
        rows: int | None,
    ) -> None:
        self._data = data
        self._names = names
        self._rows = rows
        self._augmentation = augmentation

    def __getitem__(self, request: Any) -> TensorBatch | IgpcError:
        try:
            return self._batch(request)
        except IgpcError as error:
            return error

    def _batch(self, request: _Request) -> TensorBatch:
        samples: list[dict[str, np.ndarray]] = []
        places: list[int] = []
        skipped: list[str] = []
        for place, (index, draw) in enumerate(request):
            try:
                samples.append(self._sample(index, draw))
            except CorruptImageError as error:
                skipped.append(str(error))
            else:
                places.append(place)
        if not samples:
            return TensorBatch((), None, len(request), skipped)
        rows = rows_of(len(samples), max(len(request), self._rows or 0))
        inputs = tuple(
            _stacked([samples[row][name] for row in rows], self._data.source, name)
            for name in self._names
        )
        labels = None
        if self._data.labels is not None:
            labels = torch.from_numpy(self._data.labels[[request[places[row]][0] for row in rows]])
        return TensorBatch(inputs, labels, len(request), skipped, tuple(places))

    def _sample(self, index: int, draw: Draw | None) -> dict[str, np.ndarray]:
        values = self._data.sample(index, self._augmentation, draw)
        if draw is None or draw.mix is None:
            return values
        mix = draw.mix
        others = self._data.sample(mix.index, self._augmentation, mix.draw)
        return mixed(values, others, mix.weight)


def _stacked(values: list[np.ndarray], source: str, name: str) -> torch.Tensor:
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        raise DataError(
            f"{source}: samples of {list(first)} and {list(second)} for input {name!r} cannot be "
            "trained in one batch: give `resize` and `crop`"
        )
    stacked = np.stack(values)
    # PyTorch computes with signed integers beyond 8 bits, as the bridge does.
    wider = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}.get(str(stacked.dtype))
    return torch.from_numpy(stacked if wider is None else stacked.astype(wider))
