"""Batches that are read after every epoch, kept in memory as the student reads them, with what the teacher makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from onnx_igpc.torch_bridge.training.loader import BatchLoader, TensorBatch

KEPT_BYTES = 256 * 2**20
"""So much of what the student reads of the validation data, and of the teacher's outputs on it, is kept in memory."""


class KeptBatches:
    """Batches without augmentation, in order; each time the same.

    The first of them, as many as ``most`` bytes hold, are read and shown to the teacher once; the others each time.

    places: the samples of each batch. known: a batch with what is to be kept.
    """

    def __init__(
        self,
        loader: BatchLoader,
        places: list[list[int]],
        known: Callable[[TensorBatch], TensorBatch],
        most: int = KEPT_BYTES,
    ) -> None:
        self._loader = loader
        self._places = places
        self._known = known
        self._kept: list[TensorBatch] = []
        self._room = most
        self._full = False

    def __iter__(self) -> Iterator[TensorBatch]:
        yield from self._kept
        rest = self._places[len(self._kept) :]
        if not rest:
            return
        for batch in self._loader.plain(iter(rest)):
            known = self._known(batch)
            self._keep(known)
            yield known

    def _keep(self, batch: TensorBatch) -> None:
        read = batch.read or ()
        tensors = [*read, *(batch.taught or ())]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self._full = self._full or size > self._room
        if self._full:
            return
        self._room -= size
        # What comes from a worker lies in memory shared with it, which costs a file descriptor each.
        labels = batch.labels.clone() if batch.labels is not None else None
        kept = [tensor.clone() for tensor in read]
        self._kept.append(replace(batch, inputs=(), read=kept, labels=labels))
