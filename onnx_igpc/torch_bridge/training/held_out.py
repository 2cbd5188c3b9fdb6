"""Parts of training data: what is trained on, and what is held out to judge by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnx_igpc.data.batches import Batch, SourceDescription
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.errors import DataError
from onnx_igpc.report.sections import CalibrationReport, DamageReport, JudgedOn
from onnx_igpc.torch_bridge.training.augment import Augmentation, Draw
from onnx_igpc.torch_bridge.training.data import TrainingData
from onnx_igpc.torch_bridge.training.loader import BatchLoader

# So many are held out at least, unless that would be more than a quarter of the data.
_FEWEST = 40
_MOST_PART = 4
# Distinguishes the draw from those of the order of the data and of the augmentation.
_STREAM = 2
_BATCH = 16
# Of the confidence on what compress was given: below this part of it the data is of another kind. On blurred images
# three ImageNet networks had 0.49 to 0.58 of it, on photographs of other things 0.69 to 0.93.
_SAME_KIND = 2 / 3


class Part:
    """Some of the samples of training data, and only with finite values.

    indices: which samples of ``whole``; None for all of them.
    """

    def __init__(
        self, whole: TrainingData, indices: Sequence[int] | np.ndarray | None = None
    ) -> None:
        self._whole = whole
        self._indices = np.arange(whole.size) if indices is None else np.asarray(indices, np.int64)
        self.source = whole.source
        self.size = len(self._indices)
        self.labels = whole.labels[self._indices] if whole.labels is not None else None
        self.classes = whole.classes
        self.preprocessing: Preprocessing | None = whole.preprocessing
        self.label_offset = whole.label_offset
        self.notes = whole.notes

    def number(self, index: int) -> int:
        """The place of a sample in the whole data, counted from 0."""
        return int(self._indices[index])

    def sample(
        self, index: int, augmentation: Augmentation, draw: Draw | None
    ) -> dict[str, np.ndarray]:
        """See :class:`~onnx_igpc.torch_bridge.training.data.TrainingData`.

        Raises:
            DataError: a value is NaN or infinite; no learning rate would help there.
        """
        number = self.number(index)
        values = self._whole.sample(number, augmentation, draw)
        for name, array in values.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                what = "NaN" if np.isnan(array).any() else "infinite"
                raise DataError(
                    f"{self.source}: sample {number} (counted from 0) has values that are {what} in "
                    f"input {name!r}: take it out"
                )
        return values


def hold_out(
    data: TrainingData, share: float, seed: int, *, needed: int, multiple: int
) -> tuple[Part, Part | None]:
    """The data to train on, and what is held out of it, drawn by the seed.

    share: of the data, in (0, 1). At least 40 samples are held out, or a quarter of the data where that is
    less, and at least one. needed: how many samples must remain for training; multiple: of what.

    Returns:
        The two parts; None in place of the second where the data is too small to be shared.
    """
    count = max(round(share * data.size), min(_FEWEST, data.size // _MOST_PART), 1)
    count += (data.size - count) % multiple
    count = min(count, data.size - needed)
    if count < 1:
        return Part(data), None
    order = np.random.default_rng((seed, 0, _STREAM)).permutation(data.size)
    return Part(data, np.sort(order[count:])), Part(data, np.sort(order[:count]))


class PlainBatches:
    """Samples of a loader as :class:`onnx_igpc.data.batches.Data`: unlabelled, as they are, at most ``most``."""

    def __init__(
        self, data: TrainingData, loader: BatchLoader, dtypes: dict[str, np.dtype[Any]], most: int
    ) -> None:
        self._whole = data.size
        self.size = min(data.size, most)
        self.labelled = False
        self.classes: tuple[str, ...] | None = None
        self.preprocessing = data.preprocessing
        self.skipped: list[str] = []
        self._source = data.source
        self._loader = loader
        self._dtypes = dtypes

    def places(self) -> list[list[int]]:
        """The places of the samples in the data, batch by batch."""
        each = self._loader.rows or _BATCH
        # From all over the data: class folders come one after the other.
        chosen = (np.arange(self.size) * self._whole // self.size).tolist()
        return [chosen[start : start + each] for start in range(0, self.size, each)]

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader.plain(iter(self.places())):
            feeds = {
                name: tensor.numpy().astype(dtype, copy=False)
                for (name, dtype), tensor in zip(self._dtypes.items(), batch.inputs, strict=True)
            }
            yield Batch(feeds, None, batch.count)

    def describe(self) -> SourceDescription:
        """What a report says about the data."""
        return SourceDescription(self._source, self.size, False, self.preprocessing, self.skipped)


def of_another_kind(
    calibration: CalibrationReport | None, judged: DamageReport | None, on: JudgedOn
) -> str | None:
    """What to say where a run is judged by what is not like what compress was given; ``None`` where it is, or is not known.

    judged: the damage before the first step.
    """
    known = calibration.confidence if calibration is not None else None
    here = judged.confidence if judged is not None else None
    if known is None or here is None or here >= _SAME_KIND * known:
        return None
    return (
        f"the original is far less sure of its answers on the {on} samples than on those that compress was given "
        f"(its highest class probability is {here:.0%} on average, not {known:.0%}): they are of another kind, and a "
        "gain there can be a loss on what the model will see"
    )
