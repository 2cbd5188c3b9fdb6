"""Channels left out of a model, one reader after another in the order of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx_igpc.calibration.sequential import SequentialCalibration
from onnx_igpc.data.batches import Data
from onnx_igpc.errors import DataError
from onnx_igpc.fitting.narrowing import NarrowWeights, fit_narrow
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.sites.find import Rewritable

MOST_FITTED = 1000
"""Samples that are enough to fit to."""

# Parts of the data that decide how far a fit is believed.
_FOLDS = 4
# Positions of each sample that are enough: neighbours are much alike.
_POSITIONS = 64


def fit_narrowings(
    model: OpenModel,
    readers: Sequence[Rewritable],
    kept: Mapping[str, Sequence[int]],
    data: Data,
) -> dict[str, NarrowWeights]:
    """What each reader makes of the channels that stay, behind those that read fewer channels already.

    Args:
        model: the model, which is not changed.
        readers: sites of the model in the order of the graph.
        kept: the channels that stay, by the names of those of which not all do.
        data: what to fit to.

    Raises:
        DataError: no sample could be read, or activations that are not finite.
        ModelError: the model cannot run on the data.
    """
    found: dict[str, NarrowWeights] = {}
    narrow = [reader for reader in readers if reader.name in kept]
    with SequentialCalibration(
        model, narrow, data, folds=_FOLDS, positions=_POSITIONS
    ) as calibration:
        for reader in narrow:
            parts = calibration.statistics_by_fold(reader)
            if not parts:
                raise DataError(f"the input of {reader.name!r} cannot be observed on the data")
            bias = None if reader.bias is None else reader.bias.values()
            fit = fit_narrow(reader.weight_matrix(), bias, kept[reader.name], parts)
            found[reader.name] = fit
            calibration.advance(reader, fit.dense(reader.in_channels), fit.bias)
    return found
