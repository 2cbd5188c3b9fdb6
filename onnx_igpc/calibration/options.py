"""The data that a rewrite is fitted to, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnx_igpc.data.batches import Data
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.sources import Arrays, as_data
from onnx_igpc.errors import UsageError
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel, PathLike

DEFAULT_SAMPLES = 1024
_BATCH = 16


Metric = Literal["batch-norm", "fisher"]
"""How much an error of a filter counts: by the scale of the BatchNorm that follows, or by the Fisher
information of the model's answer."""


@dataclass(frozen=True)
class Fit:
    """How the sites are fitted.

    Args:
        sequential: each on what the rewritten sites before it make of the data, towards what the original
            computes; ``False`` fits all on the original's activations.
        blend: share of the original's own activations in a sequential fit, in [0, 1]: see
            :meth:`~onnx_igpc.fitting.moments.SiteStatistics.blended`.
        metric: of the error.
    """

    sequential: bool = True
    blend: float = 0.5
    metric: Metric = "batch-norm"

    @property
    def label(self) -> str:
        """In words, for the report."""
        metric = "Fisher metric" if self.metric == "fisher" else "BatchNorm's scale as metric"
        if not self.sequential:
            return f"all sites on the original's activations, {metric}"
        return f"in sequence, {self.blend:.0%} of the original's activations, {metric}"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Unlabelled data to fit the weights to, and to measure the damage on.

    Args:
        data: a folder of images, tar shards, files of arrays (see
            :func:`~onnx_igpc.data.sources.open_data`), an array or arrays by the name of their input, or
            opened data.
        preprocessing: how images become inputs of the model.
        samples: at most so many of a data source that is not opened already.
        sequential: fit each site on what the rewritten sites before it make of the data; ``False`` fits
            all on the original's activations. What holds on data that was left out is chosen if ``None``.
        holdout: share of the data, in [0, 1), on which the damage is measured and which no choice sees;
            see :func:`~onnx_igpc.calibration.division.divide`.

    Raises:
        UsageError: a share that is none.
    """

    data: PathLike | Arrays | Data
    preprocessing: Preprocessing | None = None
    samples: int = DEFAULT_SAMPLES
    sequential: bool | None = None
    holdout: float | None = None

    def __post_init__(self) -> None:
        if self.holdout is not None and not 0 <= self.holdout < 1:
            raise UsageError(f"`holdout` must lie between 0 and 1, not {self.holdout:g}")

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
