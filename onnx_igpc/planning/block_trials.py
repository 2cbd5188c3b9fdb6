"""Sets of residual blocks tried out: collapsed by fits that each leave out what is then measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_igpc.calibration.block_fits import block_moments, collapsed, fitted
from onnx_igpc.fitting.moments import Moments
from onnx_igpc.graph.edit import Names
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.passes.collapse_blocks import BlockWeights
from onnx_igpc.planning.sensitivity import Damage, Run
from onnx_igpc.planning.trials import Trials
from onnx_igpc.runtime.session import run_session
from onnx_igpc.sites.residual_blocks import ResidualBlock

# Samples of each part of the data that a set is measured on that may be taken.
_SAMPLES = 50


@dataclass
class BlockTrials:
    """Measures sets of blocks by fits that each leave out the part of the data that is measured."""

    trials: Trials
    blocks: Sequence[ResidualBlock]
    _known: dict[tuple[frozenset[str], int], Damage] = field(default_factory=dict)
    _parts: list[dict[str, Moments]] = field(default_factory=list)

    def damage(self, names: frozenset[str], samples: int = _SAMPLES) -> Damage:
        """The damage of collapsing these blocks, as :class:`~onnx_igpc.planning.sensitivity.DamageProbe` has it.

        samples: of each part that are enough.
        """
        if (names, samples) not in self._known:
            self._known[names, samples] = self._measured(names, samples)
        return self._known[names, samples]

    def _measured(self, names: frozenset[str], samples: int) -> Damage:
        probe, folds = self.trials.probe, self.trials.folds
        trial, inputs = self._trial(names)
        session = probe.session(trial)

        def run_of(number: int) -> Run:
            fed: dict[str, np.ndarray] = {}
            for block in self._in_order(names):
                weights, made = fitted(self._without(block.name, number)), inputs[block.name]
                matrix, bias = weights.matrix.astype(block.dtype), weights.bias.astype(block.dtype)
                fed[made[0]] = matrix.reshape(*matrix.shape, *[1] * block.spatial_rank)
                fed[made[1]] = bias

            return lambda feeds: run_session(session, {**feeds, **fed}, probe.outputs)

        return probe.compared([run_of(number) for number in range(len(folds))], samples)

    def _in_order(self, names: frozenset[str]) -> list[ResidualBlock]:
        return [each for each in self.blocks if each.name in names]

    def _without(self, name: str, number: int) -> Moments:
        """Of one block, without one part of the data where there are others."""
        if not self._parts:
            self._parts = [
                block_moments(self.trials.model, self.blocks, fold) for fold in self.trials.folds
            ]
        others = [part[name] for index, part in enumerate(self._parts) if index != number]
        return Moments.joined(others or [self._parts[number][name]])

    def _trial(self, names: frozenset[str]) -> tuple[OpenModel, dict[str, tuple[str, str]]]:
        """The model with these blocks collapsed and their weights as inputs, whose names it gives."""
        weights = {each.name: identity(each) for each in self._in_order(names)}
        model = collapsed(self.trials.model, weights)
        proto = model.proto
        unique = Names(proto).unique
        makers = {output: node for node in proto.graph.node for output in node.output}
        inputs: dict[str, tuple[str, str]] = {}
        for block in self._in_order(names):
            node = makers[block.output]
            kind = onnx.helper.np_dtype_to_tensor_dtype(block.dtype)
            given = unique("block_weight"), unique("block_bias")
            shape = [block.channels, block.channels, *[1] * block.spatial_rank]
            for name, dims in zip(given, (shape, [block.channels]), strict=True):
                proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, dims))
            del node.input[1:]
            node.input.extend(given)
            inputs[block.name] = given
        return model, inputs


def identity(block: ResidualBlock) -> BlockWeights:
    """Weights that leave out what a block adds."""
    return BlockWeights(np.eye(block.channels), np.zeros(block.channels))
