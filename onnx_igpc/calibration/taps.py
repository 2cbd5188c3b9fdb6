"""What a pointwise convolution reads of its input: channels by the positions that count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_igpc.errors import DataError
from onnx_igpc.sites.find import Rewritable


@dataclass(frozen=True)
class Tap:
    """A tensor and the positions at which a kernel of 1 reads it.

    strides: one a spatial dimension, none for 1 throughout. pads: as in ``Conv``, the begins, then the
    ends. Padding itself is not read: there the layer's output is its bias whatever the weights are.

    channels: what the layer's weight takes, 0 where any number will do. onnxruntime looks only where it
    runs the layer itself, which it does not for the inputs of a model that are read as they are fed.
    """

    tensor: str
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    channels: int = 0

    @classmethod
    def of(cls, site: Rewritable) -> Tap:
        """Where ``site`` reads. With ``auto_pad`` a kernel of 1 is never padded."""
        strides = tuple(int(each) for each in site.ref.attribute("strides", ()))
        pads = tuple(int(each) for each in site.ref.attribute("pads", ()))
        return cls(
            str(site.ref.proto.input[0]),
            strides if any(each != 1 for each in strides) else (),
            pads if any(pads) else (),
            site.in_channels,
        )

    def read(self, values: np.ndarray, rows: int, count: int) -> np.ndarray:
        """The positions as columns: shape (C, positions), float32, or float64 if ``values`` are.

        Args:
            values: the tensor, shape (N, C, ...).
            rows: samples that were fed, those that only fill up a fixed batch among them.
            count: samples that are to be counted; the last ``rows - count`` are not.

        Raises:
            DataError: a value is NaN or infinite, or the channels are not those of the weight; the
                message names the tensor.
        """
        if self.channels and values.shape[1] != self.channels:
            raise DataError(
                f"tensor {self.tensor!r} has {values.shape[1]} channels on the calibration data, the "
                f"convolution behind it takes {self.channels}: give data of the model's own shape"
            )
        # A tensor can have several rows a sample, where a model folds another dimension into them.
        if count < rows and len(values) % rows == 0:
            values = values[: len(values) // rows * count]
        rank = values.ndim - 2
        strides = self.strides or (1,) * rank
        pads = self.pads or (0,) * (2 * rank)
        # Position i of the output reads i * stride - pad: the first one inside the tensor begins.
        steps = tuple(slice(-pads[i] % strides[i], None, strides[i]) for i in range(rank))
        read = values[(slice(None), slice(None), *steps)]
        columns = np.ascontiguousarray(np.moveaxis(read, 1, 0)).reshape(values.shape[1], -1)
        if not np.isfinite(columns).all():
            what = "NaN" if np.isnan(columns).any() else "infinite values"
            raise DataError(
                f"tensor {self.tensor!r} holds {what} on the calibration data: check the data, "
                "their preprocessing, and what the model makes of them"
            )
        return columns if columns.dtype == np.float64 else columns.astype(np.float32, copy=False)
