"""What a model costs without residual blocks, or in any other version: raced, or its multiply-accumulates counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnx_igpc.calibration.block_fits import collapsed
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering.options import Precision
from onnx_igpc.lowering.race import as_run, race_models
from onnx_igpc.planning.block_trials import identity
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.sites.residual_blocks import ResidualBlock

_ROUNDS = 21
# Models that take turns in one race: each holds its weights, and what is compared is the model itself.
_AT_ONCE = 6


def _without(model: OpenModel, blocks: Sequence[ResidualBlock]) -> OpenModel:
    return collapsed(model, {block.name: identity(block) for block in blocks}) if blocks else model


@dataclass(frozen=True)
class CountedBlocks:
    """By multiply-accumulates."""

    model: OpenModel

    def left(self, sets: Sequence[Sequence[ResidualBlock]]) -> list[float]:
        """What each set of collapsed blocks leaves, as a share of the model's."""
        return self.of_models([partial(_without, self.model, blocks) for blocks in sets])

    def of_models(self, models: Iterable[Callable[[], OpenModel]]) -> list[float]:
        """What each version of the model costs, as a share of what it costs."""
        whole = max(count(self.model).macs, 1)
        return [count(make()).macs / whole for make in models]


@dataclass
class RacedBlocks:
    """By measured time: the collapsed model raced with the model itself, in the same rounds.

    ``dense_seconds`` is what the model itself took last.
    """

    model: OpenModel
    setting: Setting
    precision: Precision
    dense_seconds: float = 0.0

    def left(self, sets: Sequence[Sequence[ResidualBlock]]) -> list[float]:
        """What each set of collapsed blocks leaves, as a share of the model's time.

        Raises:
            CheckFailedError: the provider is missing or fell back.
            ModelError: the model cannot be run.
        """
        return self.of_models([partial(_without, self.model, blocks) for blocks in sets])

    def of_models(self, models: Iterable[Callable[[], OpenModel]]) -> list[float]:
        """What each version of the model costs, as a share of its time; raises as :meth:`left`."""
        return list(self._raced(list(models)))

    def _raced(self, models: Sequence[Callable[[], OpenModel]]) -> Iterator[float]:
        whole = as_run(self.model, self.setting, self.precision)
        for start in range(0, len(models), _AT_ONCE):
            several = [
                as_run(make(), self.setting, self.precision)
                for make in models[start : start + _AT_ONCE]
            ]
            seconds = race_models([whole, *several], self.setting, _ROUNDS)
            medians = np.median(seconds, axis=0)
            self.dense_seconds = float(medians[0])
            yield from (float(each / medians[0]) for each in medians[1:])
