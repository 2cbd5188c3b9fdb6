"""Which residual blocks to collapse, so that a share of what the model costs is left and the damage is least.

Blocks are taken one by one, the one that does least damage for what it saves first. Damages are measured on data
that the weights were not fitted to, and of all blocks together that are taken: those of neighbours come to
more than the sum of each alone. A set does about as much damage as its parts at least, so that few are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx

from onnx_igpc.calibration.block_fits import block_moments, collapsed, fitted
from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.fitting.moments import Moments
from onnx_igpc.graph.edit import Names
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.passes.collapse_blocks import BlockWeights
from onnx_igpc.planning.sensitivity import Damage, Feeds
from onnx_igpc.planning.trials import Trials
from onnx_igpc.runtime.session import make_session, run_session
from onnx_igpc.sites.residual_blocks import ResidualBlock

# Samples of each part of the data that a set of blocks is measured on.
_SAMPLES = 50
# A block that saves less than this share is none to take.
_LEAST_SAVED = 1e-3
# What sums in another order differ by.
_ROUNDING = 1e-9


class BlockPrices(Protocol):
    """What the model costs without blocks, as a share of what it costs."""

    def left(self, sets: Sequence[Sequence[ResidualBlock]]) -> list[float]:
        """What each of these sets of collapsed blocks leaves."""


@dataclass(frozen=True)
class BlockChoice:
    """Blocks to collapse, in the order of the graph; ``share`` is what they leave of what is counted.

    ``steps`` has share and damage of every set that was taken on the way.
    """

    blocks: tuple[ResidualBlock, ...]
    damage: Damage
    share: float
    steps: tuple[tuple[float, float], ...]


def choose_blocks(
    trials: Trials,
    blocks: Sequence[ResidualBlock],
    share: float,
    prices: BlockPrices,
    progress: Progress | None = None,
) -> BlockChoice:
    """The blocks that leave at most ``share`` and do least damage.

    Args:
        trials: the model, and the data to choose by.
        blocks: of the model, at least one.
        share: of what is counted.
        prices: count or measure.
        progress: called with (what is saved in thousandths, in all, what is done).

    Raises:
        CheckFailedError: all of them leave more; the message names the least.
        DataError: activations that are not finite.
        ModelError: the model cannot run on the data.
    """
    saved, able = _saving(blocks, prices)
    least = 1.0 - sum(saved[each.name] for each in able)
    if least > share:
        raise CheckFailedError(f"the least that is left without residual blocks is {least:.1%}")
    return _Search(BlockTrials(trials, able), saved, share, prices, progress).run()


def blocks_one_by_one(
    trials: Trials,
    blocks: Sequence[ResidualBlock],
    goes_on: Callable[[Damage], bool],
    prices: BlockPrices,
    progress: Progress | None = None,
) -> list[BlockChoice]:
    """One block, two blocks and so on, as long as the damage lets it; shares are what single ones add up to.

    Args:
        goes_on: whether with such a damage still more may be taken.

    Others, and errors, are those of :func:`choose_blocks`.
    """
    saved, able = _saving(blocks, prices)
    search = _Search(BlockTrials(trials, able), saved, 0.0, prices, progress)
    return list(search.one_by_one(goes_on))


def _saving(
    blocks: Sequence[ResidualBlock], prices: BlockPrices
) -> tuple[dict[str, float], list[ResidualBlock]]:
    """What each block saves alone, and those that save anything."""
    left = prices.left([[each] for each in blocks])
    saved = {each.name: 1.0 - own for each, own in zip(blocks, left, strict=True)}
    return saved, [each for each in blocks if saved[each.name] > _LEAST_SAVED]


@dataclass
class BlockTrials:
    """Measures sets of blocks by fits that each leave out the part of the data that is measured."""

    trials: Trials
    blocks: Sequence[ResidualBlock]
    _known: dict[frozenset[str], Damage] = field(default_factory=dict)
    _parts: list[dict[str, Moments]] = field(default_factory=list)

    def damage(self, names: frozenset[str]) -> Damage:
        """The damage of collapsing these blocks, as :class:`~onnx_igpc.planning.sensitivity.DamageProbe` has it."""
        if names not in self._known:
            self._known[names] = self._measured(names)
        return self._known[names]

    def _measured(self, names: frozenset[str]) -> Damage:
        probe, folds = self.trials.probe, self.trials.folds
        trial, inputs = self._trial(names)
        session = make_session(trial)
        parts = []
        for number in range(len(folds)):
            fed: dict[str, np.ndarray] = {}
            for block in self._in_order(names):
                weights, made = fitted(self._without(block.name, number)), inputs[block.name]
                matrix, bias = weights.matrix.astype(block.dtype), weights.bias.astype(block.dtype)
                fed[made[0]] = matrix.reshape(*matrix.shape, *[1] * block.spatial_rank)
                fed[made[1]] = bias

            def run(feeds: Feeds, fed: Mapping[str, np.ndarray] = fed) -> Mapping[str, np.ndarray]:
                return run_session(session, {**feeds, **fed}, probe.outputs)

            parts.append(probe.compared(run, number, _SAMPLES))
        return Damage.joined(parts)

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


@dataclass
class _Search:
    trials: BlockTrials
    saved: Mapping[str, float]
    share: float
    prices: BlockPrices
    progress: Progress | None

    def run(self) -> BlockChoice:
        """Blocks by what they cost in damage, until what is left, measured, is little enough.

        A measured share above what the savings add up to lowers what the next sets have to come to.
        """
        aim, least = self.share, 1.0
        while True:
            blocks, steps = self._chosen(aim)
            (left,) = self.prices.left([blocks])
            least = min(left, least)
            if left <= self.share:
                damage = self.trials.damage(frozenset(each.name for each in blocks))
                return BlockChoice(tuple(blocks), damage, left, tuple(steps))
            if len(blocks) == len(self.trials.blocks):
                break
            aim = min(self._left(blocks), aim) - (left - self.share)
        raise CheckFailedError(
            f"the least that was measured without residual blocks is {least:.1%}"
        )

    def one_by_one(self, goes_on: Callable[[Damage], bool]) -> Iterator[BlockChoice]:
        """Sets that each have one block more, as long as the damage lets it."""
        taken: list[ResidualBlock] = []
        steps: list[tuple[float, float]] = []
        while len(taken) < len(self.trials.blocks):
            self._tell(taken, self._left(self.trials.blocks))
            taken = self._next(taken)
            damage = self.trials.damage(frozenset(each.name for each in taken))
            if not goes_on(damage):
                return
            steps.append((self._left(taken), damage.value))
            found = tuple(each for each in self.trials.blocks if each in taken)
            yield BlockChoice(found, damage, self._left(taken), tuple(steps))

    def _left(self, blocks: Sequence[ResidualBlock]) -> float:
        return 1.0 - sum(self.saved[each.name] for each in blocks)

    def _chosen(self, aim: float) -> tuple[list[ResidualBlock], list[tuple[float, float]]]:
        """The set of least damage that leaves ``aim`` by what each saves alone, or all; and the way to it."""
        aim = max(aim, self._left(self.trials.blocks) + _ROUNDING)
        taken: list[ResidualBlock] = []
        steps: list[tuple[float, float]] = []
        best: tuple[float, list[ResidualBlock]] | None = None
        while len(taken) < len(self.trials.blocks):
            self._tell(taken, aim)
            last = self._completion(taken, aim, best[0] if best else np.inf)
            best = last or best
            following = self._next(taken)
            if best is not None and self._damage(following) >= best[0]:
                break
            taken = following
            steps.append((self._left(taken), self._damage(taken)))
            if self._left(taken) <= aim:
                break
        assert best is not None
        found = [each for each in self.trials.blocks if each in best[1]]
        steps = [step for step in steps if step[0] > self._left(found)]
        return found, [*steps, (self._left(found), best[0])]

    def _completion(
        self, taken: list[ResidualBlock], aim: float, most: float
    ) -> tuple[float, list[ResidualBlock]] | None:
        """The block that ends the search with least damage, if that is below ``most``."""
        found: tuple[float, list[ResidualBlock]] | None = None
        for block in sorted(self._others(taken), key=lambda each: self._damage([each])):
            ended = [*taken, block]
            if self._left(ended) > aim:
                continue
            if self._damage(taken) + self._damage([block]) >= most:
                break
            if (damage := self._damage(ended)) < most:
                most, found = damage, (damage, ended)
        return found

    def _next(self, taken: list[ResidualBlock]) -> list[ResidualBlock]:
        """With the block that does least further damage for what it saves."""

        def price(block: ResidualBlock, damage: float) -> float:
            return max(damage, 0.0) / self.saved[block.name]

        before = self._damage(taken)
        best: tuple[float, ResidualBlock] | None = None
        others = self._others(taken)
        for block in sorted(others, key=lambda each: price(each, self._damage([each]))):
            if best is not None and price(block, self._damage([block])) >= best[0]:
                break
            own = price(block, self._damage([*taken, block]) - before)
            if best is None or own < best[0]:
                best = own, block
        assert best is not None
        return [*taken, best[1]]

    def _others(self, taken: Sequence[ResidualBlock]) -> list[ResidualBlock]:
        return [each for each in self.trials.blocks if each not in taken]

    def _damage(self, blocks: Sequence[ResidualBlock]) -> float:
        if not blocks:
            return 0.0
        return self.trials.damage(frozenset(each.name for each in blocks)).value

    def _tell(self, taken: Sequence[ResidualBlock], aim: float) -> None:
        if self.progress is not None:
            wanted = max(1.0 - aim, 1e-9)
            done = round(1000 * (1.0 - self._left(taken)) / wanted)
            self.progress(min(done, 1000), 1000, "residual blocks, collapsed and measured")
