"""Which residual blocks to collapse, so that a share of what the model costs is left and the damage is least.

What a set does is predicted from its blocks, each measured alone, and from pairs of near ones, which together do more
than the sum of both. The sets that are likely to do least are then measured as a whole. All damages are of data
that the weights were not fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Protocol

import numpy as np

from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.planning.block_trials import BlockTrials
from onnx_igpc.planning.sensitivity import Damage
from onnx_igpc.planning.trials import FEW, Trials
from onnx_igpc.sites.residual_blocks import ResidualBlock

# Blocks that are at most so far from each other are measured in pairs.
_NEAR = 3
# Blocks whose every subset is looked at; of more, the likeliest are taken for certain.
_ENUMERATED = 14
_CURVE_POINTS = 24
# Sets that are measured for one share, and shares that are tried.
_MEASURED = 6
_ROUNDS = 2
_LEAST_STEP = 5e-3
# A block that saves less than this share is none to take.
_LEAST_SAVED = 1e-3
# What sums in another order differ by.
_ROUNDING = 1e-9


class BlockPrices(Protocol):
    """What the model costs without blocks, as a share of what it costs."""

    def left(self, sets: Sequence[Sequence[ResidualBlock]]) -> list[float]:
        """What each of these sets of collapsed blocks leaves."""


@dataclass(frozen=True)
class Measured:
    """A set of blocks: what it leaves by what each saves alone, its damage as predicted, and measured."""

    share: float
    predicted: float
    damage: Damage


@dataclass(frozen=True)
class BlockChoice:
    """Blocks to collapse, in the order of the graph; ``share`` is what they leave of what is counted.

    ``tried`` are the sets that were measured, the chosen one last; ``curve`` has the shares that can be left and the
    least predicted damage of each.
    """

    blocks: tuple[ResidualBlock, ...]
    share: float
    tried: tuple[Measured, ...]
    curve: tuple[tuple[float, float], ...]

    @property
    def damage(self) -> Damage:
        """That of the chosen set, measured."""
        return self.tried[-1].damage


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
        progress: called with (sets of blocks measured, in all, what is done).

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
class _Search:
    trials: BlockTrials
    saved: Mapping[str, float]
    share: float
    prices: BlockPrices
    progress: Progress | None

    def run(self) -> BlockChoice:
        """The best of the likely sets that are measured to leave little enough.

        While a better one leaves too much, the next sets have to come to so much less.
        """
        aim = self.share
        tried: dict[frozenset[str], Measured] = {}
        lefts: dict[frozenset[str], float] = {}
        for number in count():
            likely = self._likely(aim, tried.keys())
            tried |= likely.measured
            sets = [self._in_order(names) for names in likely.measured]
            lefts |= zip(likely.measured, self.prices.left(sets), strict=True)
            by_damage = sorted(lefts, key=lambda each: tried[each].damage.value)
            over = [lefts[names] - self.share for names in by_damage]
            if over[0] <= 0 or not sets or (number >= _ROUNDS and min(over) <= 0):
                break
            # What does less damage than the best that fits leaves a little too much: so may others.
            aim -= max(min(each for each in over if each > 0), _LEAST_STEP)
        found = self._confirmed([names for names in by_damage if lefts[names] <= self.share], lefts)
        told = (*(each for names, each in tried.items() if names != found), tried[found])
        return BlockChoice(self._in_order(found), lefts[found], told, likely.curve)

    def _confirmed(
        self, fitting: Sequence[frozenset[str]], lefts: dict[frozenset[str], float]
    ) -> frozenset[str]:
        """The first of these sets that leaves little enough when it is measured once more, which is put into ``lefts``:
        what it was chosen by flatters."""
        for found in fitting:
            (lefts[found],) = self.prices.left([self._in_order(found)])
            if lefts[found] <= self.share:
                return found
        least = min(lefts.values())
        raise CheckFailedError(
            f"the least that was measured without residual blocks is {least:.1%}"
        )

    def _in_order(self, names: frozenset[str]) -> tuple[ResidualBlock, ...]:
        return tuple(each for each in self.trials.blocks if each.name in names)

    def _likely(self, aim: float, known: Collection[frozenset[str]]) -> _Likely:
        """The sets, but those that are ``known``, that leave ``aim`` by what each block saves alone and are predicted to
        do least damage; all blocks where nothing else leaves so little."""
        single, together = self._interactions
        saved = np.array([self.saved[each.name] for each in self.trials.blocks])
        aim = max(aim, 1.0 - saved.sum() + _ROUNDING)
        order = np.argsort(single / saved).tolist()
        certain: list[int] = []
        while 1.0 - saved[certain + order[:_ENUMERATED]].sum() > aim:
            certain.append(order.pop(0))
        free = order[:_ENUMERATED]
        taken = np.zeros((2 ** len(free), len(saved)))
        taken[:, certain] = 1
        taken[:, free] = np.arange(len(taken))[:, np.newaxis] >> np.arange(len(free)) & 1
        left = 1.0 - taken @ saved
        predicted = taken @ single + np.einsum("si,ij,sj->s", taken, together, taken) / 2
        predicted = np.maximum(
            predicted, (taken * single).max(axis=1)
        )  # no set does less than its worst
        names = [each.name for each in self.trials.blocks]
        measured = {}
        fitting = np.flatnonzero(left <= aim)
        for number in fitting[np.argsort(predicted[fitting], kind="stable")].tolist():
            found = frozenset(names[i] for i in np.flatnonzero(taken[number]))
            if found not in known:
                damage = self.trials.damage(found)
                measured[found] = Measured(float(left[number]), float(predicted[number]), damage)
            if len(measured) == _MEASURED:
                break
        return _Likely(measured, _front(left, predicted))

    @cached_property
    def _interactions(self) -> tuple[np.ndarray, np.ndarray]:
        """The damages of single blocks, (n,), and what near ones do together beyond their sum, (n, n)."""
        names = [each.name for each in self.trials.blocks]
        many = len(names)
        pairs = [(i, j) for i in range(many) for j in range(i + 1, min(i + 1 + _NEAR, many))]
        single, together = np.zeros(many), np.zeros((many, many))
        for number, name in enumerate(names):
            self._tell(number, many + len(pairs))
            single[number] = self.trials.damage(frozenset([name]), FEW).value
        for number, (i, j) in enumerate(pairs):
            self._tell(many + number, many + len(pairs))
            both = self.trials.damage(frozenset([names[i], names[j]]), FEW).value
            together[i, j] = together[j, i] = both - single[i] - single[j]
        return single, together

    def one_by_one(self, goes_on: Callable[[Damage], bool]) -> Iterator[BlockChoice]:
        """Sets that each have one block more, as long as the damage lets it."""
        taken: list[ResidualBlock] = []
        tried: list[Measured] = []
        while len(taken) < len(self.trials.blocks):
            self._tell(len(taken), len(self.trials.blocks))
            taken = self._next(taken)
            damage = self.trials.damage(frozenset(each.name for each in taken))
            if not goes_on(damage):
                return
            tried.append(Measured(self._left(taken), damage.value, damage))
            found = tuple(each for each in self.trials.blocks if each in taken)
            curve = [(each.share, each.damage.value) for each in reversed(tried)]
            yield BlockChoice(found, self._left(taken), tuple(tried), (*curve, (1.0, 0.0)))

    def _left(self, blocks: Sequence[ResidualBlock]) -> float:
        return 1.0 - sum(self.saved[each.name] for each in blocks)

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

    def _tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total, "residual blocks, collapsed and measured")


@dataclass(frozen=True)
class _Likely:
    """Sets that are likely to do least damage, and the curve of all that were looked at."""

    measured: dict[frozenset[str], Measured]
    curve: tuple[tuple[float, float], ...]


def _front(left: np.ndarray, damage: np.ndarray) -> tuple[tuple[float, float], ...]:
    """What can be left, from little to much, and the least damage of it, thinned out."""
    order = np.lexsort((left, damage))
    lowest = np.minimum.accumulate(left[order])
    front = order[np.concatenate([[True], lowest[1:] < lowest[:-1]])][::-1]
    picks = np.unique(np.linspace(0, len(front) - 1, _CURVE_POINTS).round().astype(int))
    return tuple((float(left[i]), float(damage[i])) for i in front[picks])
