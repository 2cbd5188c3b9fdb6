"""Batches of model inputs, and random ones for where there is no data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Protocol, Self

import numpy as np

from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.random_inputs import random_inputs
from onnx_igpc.errors import UsageError
from onnx_igpc.graph.inputs import InputSpec, Shapes, resolve_shapes

Sample = tuple[dict[str, np.ndarray], int | None]


@dataclass(frozen=True)
class Batch:
    """feeds: arrays by input name, the first dimension being the batch. labels: int64[count] or None.

    count: the samples in it. Feeds have more rows only where the model's batch is fixed and the data
    ran out: the last sample is repeated, and results beyond ``count`` mean nothing.
    """

    feeds: dict[str, np.ndarray]
    labels: np.ndarray | None
    count: int


@dataclass(frozen=True)
class DataDescription:
    """Data as a report tells of it."""

    source: str
    samples: int
    labelled: bool
    preprocessing: Preprocessing | None

    def portable(self) -> Self:
        """Without the folder that the data lay in."""
        return replace(self, source=PurePath(self.source).name)


@dataclass(frozen=True)
class SourceDescription(DataDescription):
    """Data that was iterated over; ``skipped``: images that could not be read, with the reason."""

    skipped: list[str]


class Data(Protocol):
    """What :func:`open_data` and :func:`random_data` give; iterate as often as needed.

    size: number of samples. labelled: whether batches have labels. classes: names of the classes
    that labels count; None where labels are indices by themselves. preprocessing: what was applied to
    images, None for arrays. skipped: unreadable images of the latest iteration, with the reason.

    Sources of this package also have ``notes``, what they leave out, and ``doubts``, why the samples of
    the latest iteration look wrong: see :func:`data_notes` and :func:`data_doubts`.
    """

    size: int
    labelled: bool
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    skipped: list[str]

    def __iter__(self) -> Iterator[Batch]: ...

    def describe(self) -> SourceDescription:
        """What a report says about the data."""


class BatchedData(ABC):
    """What is the same for every source: batching and the description; a source gives samples."""

    def __init__(self, source: str, inputs: Sequence[InputSpec], batch_size: int) -> None:
        if batch_size < 1:
            raise UsageError(f"batch size must be at least 1, not {batch_size}")
        fixed = [spec.fixed_batch for spec in inputs if spec.fixed_batch is not None]
        self._fixed = fixed[0] if fixed else None
        self._batch_size = self._fixed or batch_size
        self._source = source
        self.size = 0
        self.labelled = False
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None
        self.skipped: list[str] = []
        self.notes: list[str] = []
        self.label_offset: int | None = None
        self._variety = Variety()

    @property
    def doubts(self) -> list[str]:
        """Why the samples of the latest iteration look wrong."""
        return self._variety.doubts()

    def __iter__(self) -> Iterator[Batch]:
        self.skipped = []
        self._variety = Variety()
        pending: list[Sample] = []
        for sample in self._samples():
            self._variety.add(sample[0])
            # Images of a network with a dynamic size can differ: those of one size run together.
            if pending and (len(pending) == self._batch_size or not _stackable(pending[0], sample)):
                yield self._batch(pending)
                pending = []
            pending.append(sample)
        if pending:
            yield self._batch(pending)

    def describe(self) -> SourceDescription:
        return SourceDescription(
            self._source, self.size, self.labelled, self.preprocessing, list(self.skipped)
        )

    @abstractmethod
    def _samples(self) -> Iterator[Sample]:
        """Every sample of the source, in order."""

    def _batch(self, samples: list[Sample]) -> Batch:
        count = len(samples)
        rows = samples + [samples[-1]] * ((self._fixed or count) - count)
        feeds = {name: np.stack([row[0][name] for row in rows]) for name in rows[0][0]}
        labels = np.array([label for _, label in samples], np.int64) if self.labelled else None
        return Batch(feeds, labels, count)


class Variety:
    """Whether samples differ from one another, and within themselves, as those of real data do."""

    def __init__(self) -> None:
        self._first: dict[str, np.ndarray] | None = None
        self._samples = self._equal = self._flat = 0

    def add(self, sample: dict[str, np.ndarray]) -> None:
        """Look at a sample; only at its largest input, which is the picture."""
        if self._first is None:
            self._first = sample
        name = max(sample, key=lambda each: sample[each].size)
        values, first = sample[name], self._first[name]
        self._samples += 1
        self._equal += values.shape == first.shape and bool((values == first).all())
        self._flat += _is_flat(values)

    def doubts(self) -> list[str]:
        """In sentences; none where the samples vary."""
        if self._samples > 1 and self._equal == self._samples:
            black = ", of one colour, as black is" if self._flat else ""
            return [f"all {self._samples} samples are equal{black}: check the data"]
        if self._flat and 2 * self._flat >= self._samples:
            return [f"{self._flat} of {self._samples} samples are of one colour: check the data"]
        return []


def _is_flat(values: np.ndarray) -> bool:
    """Whether a picture, of either layout, has one colour; what has no positions never has."""
    if values.ndim < 2 or values.size == 0:
        return False
    picture = values if values.ndim == 3 else values.reshape(1, *values.shape)
    if picture.ndim != 3 or picture.shape[1] * picture.shape[2] == 1:
        return False
    if bool((picture == picture[:, :1, :1]).all()):
        return True
    return picture.shape[2] in (1, 3) and bool((picture == picture[:1, :1]).all())


def data_notes(data: Data) -> list[str]:
    """What data leave out, in sentences; none where they are of a kind that does not say."""
    return list(getattr(data, "notes", ()))


def data_doubts(data: Data) -> list[str]:
    """Why data look wrong once they were read, in sentences."""
    return list(getattr(data, "doubts", ()))


class _RandomData(BatchedData):
    def __init__(
        self,
        inputs: Sequence[InputSpec],
        samples: int,
        batch_size: int,
        seed: int,
        shapes: Shapes | None,
    ) -> None:
        super().__init__("random", inputs, batch_size)
        resolved = resolve_shapes(inputs, 1, shapes)
        self._inputs = [InputSpec(spec.name, spec.dtype, resolved[spec.name]) for spec in inputs]
        # Inputs without a dimension, or with different first ones, have no batch to stack.
        self._stacked = len({spec.fixed_batch for spec in inputs if spec.shape}) == 1 and all(
            spec.shape for spec in inputs
        )
        self._seed = seed
        self.size = samples

    def __iter__(self) -> Iterator[Batch]:
        if self._stacked:
            yield from super().__iter__()
            return
        for i in range(self.size):
            feeds = random_inputs(self._inputs, seed=(self._seed, i))
            yield Batch(feeds, None, max(len(v) if v.ndim else 1 for v in feeds.values()))

    def _samples(self) -> Iterator[Sample]:
        # One sample at a time, so that the same seed gives the same samples at every batch size.
        single = [InputSpec(spec.name, spec.dtype, (1, *spec.shape[1:])) for spec in self._inputs]
        for i in range(self.size):
            feeds = random_inputs(single, seed=(self._seed, i))
            yield {name: values[0] for name, values in feeds.items()}, None


def random_data(
    inputs: Sequence[InputSpec],
    *,
    samples: int = 8,
    batch_size: int = 8,
    seed: int = 0,
    shapes: Shapes | None = None,
) -> Data:
    """Seeded random samples in the form of :func:`open_data`, without labels."""
    return _RandomData(inputs, samples, batch_size, seed, shapes)


def _stackable(first: Sample, second: Sample) -> bool:
    return all(first[0][name].shape == second[0][name].shape for name in first[0])
