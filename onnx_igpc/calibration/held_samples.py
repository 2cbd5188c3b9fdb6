"""Calibration data that is read once and then shared out by samples.

Fits, choices and the figure that a report shows each need samples of their own, again and again: every
sample is decoded once and kept, in memory up to a limit and in temporary files beyond it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType

import numpy as np

from onnx_igpc.calibration.activation_store import ActivationStore
from onnx_igpc.calibration.collect import feed_rows, no_samples
from onnx_igpc.data.batches import Batch, Data, SourceDescription
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.graph.inputs import InputSpec

# Draws the order of the samples: neighbours in a folder are often alike.
_SEED = 0
_BATCH = 16


class HeldSamples:
    """All samples of some data, in an order that is drawn; a context manager.

    A batch whose inputs have not all the batch as their first dimension cannot be taken apart and
    stands for one sample here.

    Args:
        data: read once, now.
        inputs: of the model, for the size of a fixed batch.
        batch_size: samples that run together where the model does not fix it.

    Raises:
        DataError: no sample could be read.
    """

    def __init__(self, data: Data, inputs: Sequence[InputSpec], batch_size: int = _BATCH) -> None:
        fixed = [spec.fixed_batch for spec in inputs if spec.fixed_batch is not None]
        self.fixed = fixed[0] if fixed else None
        self.batch_size = self.fixed or batch_size
        self.source = data
        self._store = ActivationStore()
        self._counts: list[int] = []
        self._labels: list[np.ndarray | None] = []
        self._names: list[str] = []
        self.divisible = True
        for batch in data:
            self._add(batch)
        if not self._counts:
            self._store.close()
            raise no_samples(data)
        self.skipped = list(data.skipped)
        self.order = np.random.default_rng(_SEED).permutation(len(self._counts)).tolist()

    def __enter__(self) -> HeldSamples:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all samples."""
        self._store.close()

    def __len__(self) -> int:
        return len(self._counts)

    def all(self) -> Part:
        """Every sample, in the order of the data."""
        return Part(self, sorted(self.order))

    def count(self, numbers: Sequence[int]) -> int:
        """Samples of the data that these stand for."""
        return sum(self._counts[number] for number in numbers)

    def feeds(self, number: int) -> dict[str, np.ndarray]:
        """The inputs of one sample, with a first dimension of 1 where it was taken out of a batch."""
        return {name: self._store.get((number, name)) for name in self._names}

    def batch(self, numbers: Sequence[int]) -> Batch:
        """These samples side by side; filled up with the last one where the batch is fixed."""
        rows = [self.feeds(number) for number in numbers]
        if len(rows) == 1 and not self.divisible:
            feeds = {name: np.asarray(values) for name, values in rows[0].items()}
        else:
            rows += [rows[-1]] * ((self.fixed or len(rows)) - len(rows))
            feeds = {name: np.concatenate([row[name] for row in rows]) for name in self._names}
        labels = [self._labels[number] for number in numbers]
        known = [each for each in labels if each is not None]
        return Batch(
            feeds,
            np.concatenate(known) if len(known) == len(labels) else None,
            self.count(numbers),
        )

    def _add(self, batch: Batch) -> None:
        rows = feed_rows(batch)
        self._names = list(batch.feeds)
        if self._counts and not self.divisible:
            parts = [(batch.feeds, batch.labels, batch.count)]
        elif all(values.ndim and len(values) == rows for values in batch.feeds.values()):
            parts = [
                (
                    {name: values[i : i + 1] for name, values in batch.feeds.items()},
                    None if batch.labels is None else batch.labels[i : i + 1],
                    1,
                )
                for i in range(batch.count)
            ]
        else:
            self.divisible = False
            parts = [(batch.feeds, batch.labels, batch.count)]
        for feeds, labels, count in parts:
            for name, values in feeds.items():
                self._store.put((len(self._counts), name), np.array(values))
            self._counts.append(count)
            self._labels.append(labels)


class Part:
    """Some of the samples, as :class:`~onnx_igpc.data.batches.Data`.

    numbers: the samples, by their place in the data.
    """

    def __init__(self, held: HeldSamples, numbers: Sequence[int]) -> None:
        self.held = held
        self.numbers = list(numbers)
        self.size = held.count(self.numbers)
        self.labelled = held.source.labelled
        self.classes = held.source.classes
        self.preprocessing: Preprocessing | None = held.source.preprocessing
        self.skipped = held.skipped

    def __iter__(self) -> Iterator[Batch]:
        most = self.held.batch_size if self.held.divisible else 1
        pending: list[int] = []
        shapes: list[tuple[int, ...]] = []
        for number in self.numbers:
            own = [values.shape for values in self.held.feeds(number).values()]
            # Images of a network with a dynamic size can differ: those of one size run together.
            if pending and (len(pending) == most or own != shapes):
                yield self.held.batch(pending)
                pending = []
            pending.append(number)
            shapes = own
        if pending:
            yield self.held.batch(pending)

    def describe(self) -> SourceDescription:
        """As the data it is a part of, with its own number of samples beside those that were skipped."""
        whole, skipped = self.held.source.describe(), self.skipped
        samples = self.size + len(skipped)
        return replace(whole, samples=samples, skipped=list(skipped))

    def take(self, most: int) -> Part:
        """At most so many of the samples, from all over the part."""
        count = min(most, len(self.numbers))
        picks = np.arange(count) * len(self.numbers) // max(count, 1)
        return Part(self.held, [self.numbers[i] for i in picks.tolist()])

    def folds(self, count: int) -> list[Part]:
        """The samples in so many parts of nearly equal size; fewer where there are fewer samples."""
        count = min(count, len(self.numbers))
        return [Part(self.held, self.numbers[k::count]) for k in range(count)]

    def without(self, other: Part) -> Part:
        """The samples that are not in ``other``."""
        left_out = set(other.numbers)
        return Part(self.held, [number for number in self.numbers if number not in left_out])

    def joined(self, other: Part) -> Part:
        """The samples of both."""
        return Part(self.held, [*self.numbers, *other.numbers])
