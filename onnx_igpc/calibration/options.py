"""The data that a rewrite is fitted to, and how."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_igpc.data.batches import Data
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.sources import Arrays, as_data
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel, PathLike

DEFAULT_SAMPLES = 512
_BATCH = 16


@dataclass(frozen=True, eq=False)
class Calibration:
    """Unlabelled data to fit the weights to, and to measure the damage on.

    Args:
        data: a folder of images, tar shards, files of arrays (see
            :func:`~onnx_igpc.data.sources.open_data`), an array or arrays by the name of their input, or
            opened data.
        preprocessing: how images become inputs of the model.
        samples: at most so many of a data source that is not opened already.
        sequential: fit each site on what the rewritten sites before it make of the data, towards what
            the original computes; ``False`` fits all on the original's activations.
    """

    data: PathLike | Arrays | Data
    preprocessing: Preprocessing | None = None
    samples: int = DEFAULT_SAMPLES
    sequential: bool = True

    def open(self, model: OpenModel) -> Data:
        """The data as batches for the model.

        Raises:
            DataError: the data is missing, empty, or does not fit the model's inputs.
            UsageError: options that cannot be used for it.
        """
        return as_data(
            self.data,
            model_inputs(model.proto),
            self.preprocessing,
            samples=self.samples,
            batch_size=_BATCH,
        )
