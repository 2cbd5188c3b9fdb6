"""Data by its name, and how it is read: opened when the model is known."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_igpc.data.batches import Data
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.sources import Arrays
from onnx_igpc.errors import UsageError
from onnx_igpc.graph.model import PathLike


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data to train, verify or race with, and how it is read; a path alone stands for ``Dataset(path)``.

    Args:
        source: a folder of images, tar shards, files of arrays (see
            :func:`~onnx_igpc.data.sources.open_data`), an array or arrays by the name of their input, or
            opened data; ``None`` for seeded random inputs where no answers are needed.
        preprocessing: how images become inputs of the model.
        samples: at most so many, evenly spaced and balanced over the classes; ``None`` for all.
        label_offset: added to every label: 1 for a model with a background class in front.

    Raises:
        UsageError: fewer than one sample.
    """

    source: PathLike | Arrays | Data | None = None
    preprocessing: Preprocessing | None = None
    samples: int | None = None
    label_offset: int | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"samples must be at least 1, not {self.samples}")

    @classmethod
    def of(cls, given: Dataset | PathLike | Arrays | Data | None) -> Dataset:
        """What a caller gives as data: a dataset as it is, anything else as the source of one."""
        return given if isinstance(given, Dataset) else cls(given)
