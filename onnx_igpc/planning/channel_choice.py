"""Which channels between convolutions to leave out, so that a share of what the model costs is left and the damage
is least.

Of the channels of each place those that the others make up for best are left out first. What that does to the
model's answers is measured at a few widths of each place alone, and at others lies between, by the error of their
fits. The widths whose damages add up to least are priced as a whole and, while they leave too much or too little, chosen
again. All damages are of data that the weights were not fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.planning.channel_trials import ChannelTrials, Place, Widths
from onnx_igpc.planning.multiple_choice import least_damage
from onnx_igpc.planning.sensitivity import Damage
from onnx_igpc.planning.trials import Trials
from onnx_igpc.sites.inner_channels import InnerChannels

# The part of the channels of a place with which its damage is measured first, and what it saves.
_FIRST = 1 / 2
# Rounds in which the widths that were chosen are measured, and the whole is priced.
_MEASURING, _PRICING = 2, 5
# What is left may be so much less than what is wanted.
_CLOSE = 0.01
# Parts of the channels of a place that are to stay at least: with little left of a few places damages are least as
# they add up, but do more together than much of more places.
_FEWEST = (1 / 4, 1 / 2)
# What a channel saves at least, as a part of the model: measured times are not that exact.
_LEAST_SAVED = 1e-6
# What sums in another order differ by.
_ROUNDING = 1e-9
_CURVE_POINTS = 16


class ModelPrices(Protocol):
    """What versions of the model cost, as shares of what it costs."""

    def of_models(self, models: Iterable[Callable[[], OpenModel]]) -> list[float]:
        """What each costs; they are made one after another."""


@dataclass(frozen=True)
class ChannelChoice:
    """The channels that stay, by reader; ``share`` is what they leave of what is counted.

    ``predicted``: share and damage as single places add up to; ``damage`` is that of the whole, measured. ``curve``
    has shares that can be left, and the least predicted damage of each.
    """

    kept: dict[str, tuple[int, ...]]
    share: float
    predicted: tuple[float, float]
    damage: Damage
    curve: tuple[tuple[float, float], ...]


def choose_channels(
    trials: Trials,
    inner: Sequence[InnerChannels],
    share: float,
    prices: ModelPrices,
    progress: Progress | None = None,
) -> ChannelChoice:
    """The channels to keep that leave at most ``share`` and do least damage.

    Args:
        trials: the model, and the data to choose by.
        inner: of the model.
        share: of what is counted.
        prices: count or measure.
        progress: called with (what is done, in all, what it is).

    Raises:
        CheckFailedError: the narrowest leave more; the message names the least.
        DataError: activations that are not finite.
        ModelError: the model cannot run on the data.
    """
    tried = ChannelTrials(trials, inner)
    if not tried.places:
        raise CheckFailedError("there are none that could be left out")
    return _Search(tried, prices, progress).run(share)


@dataclass
class _Search:
    trials: ChannelTrials
    prices: ModelPrices
    progress: Progress | None
    fewest: float = 0.0
    """The least part of the channels of a place that is to stay."""

    @property
    def places(self) -> list[Place]:
        return self.trials.places

    def run(self, share: float) -> ChannelChoice:
        """The choice of least damage whose price, of the whole, is within ``share``."""
        self._price_places()
        for number, place in enumerate(self.places):
            self._tell(number)
            self.trials.measure(place, place.nearest(_FIRST))
        self._tell(len(self.places))
        tried, failed = [], None
        for self.fewest in _FEWEST:
            try:
                widths, left = self._within(share)
            except CheckFailedError as error:
                failed = failed or error
                continue
            tried.append((self.trials.whole(widths), widths, left))
        if not tried:
            assert failed is not None
            raise failed
        damage, widths, left = min(tried, key=lambda each: each[0].value)
        self.fewest = min(_FEWEST)
        own = self._sums(self._indices(widths))
        return ChannelChoice(self.trials.kept(widths), left, own, damage, self._curve())

    def _price_places(self) -> None:
        """What a channel less of each place saves, from the MACs of the model with half of them.

        Of time, too: that of a single place is too short to be told from the noise of a race, and its share of the time is
        near to that of the MACs. What the whole comes to is raced.
        """
        halves = [{place.name: place.nearest(_FIRST)} for place in self.places]
        whole = max(count(self.trials.trials.model).macs, 1)
        lefts = [count(self.trials.narrowed(each)).macs / whole for each in halves]
        for place, left in zip(self.places, lefts, strict=True):
            gone = place.inner.channels - place.nearest(_FIRST)
            place.saved = max((1.0 - left) / gone, _LEAST_SAVED)

    def _within(self, share: float) -> tuple[Widths, float]:
        """Widths that leave little enough, and what they leave."""
        aim, least = 1.0 - share, 1.0
        best: tuple[float, Widths] | None = None
        for _ in range(_PRICING):
            widths = self._chosen(aim)
            left = self._left(widths)
            least = min(least, left)
            if left <= share and (best is None or left > best[0]):
                best = left, widths
            if share - _CLOSE < left <= share or (left > share and aim >= self._most):
                break
            # Savings of places do not add up, where one makes what the next one reads.
            aim = min(aim * (1.0 - share + _CLOSE / 4) / max(1.0 - left, aim / 4), self._most)
        if best is None:
            raise CheckFailedError(
                f"the least that was measured with fewer channels is {least:.1%}"
            )
        return best[1], best[0]

    def _left(self, widths: Widths) -> float:
        """What they leave; of time the longer of two that are raced, since what a choice is taken for flatters it."""
        return max(self.prices.of_models([partial(self.trials.narrowed, widths)] * 2))

    def _chosen(self, saved: float) -> Widths:
        """The widths that save so much, as places alone do, with the least sum of damages, which are measured."""
        for _ in range(_MEASURING):
            for name, width in self._widths(self._solved(saved)).items():
                place = next(each for each in self.places if each.name == name)
                self.trials.measure(place, width)
        return self._widths(self._solved(saved))

    @property
    def _most(self) -> float:
        return sum(max(own) for own, _ in self._options())

    def _options(self) -> list[tuple[list[float], list[float]]]:
        """Of each place what its widths save, and their damages, as far as enough stays."""
        several = []
        for place in self.places:
            widths = [w for w in place.widths if w >= self.fewest * place.inner.channels]
            count = len(widths) + 1
            several.append((place.savings()[:count], place.damages()[:count]))
        return several

    def _solved(self, saved: float) -> list[int]:
        """Of each place 0 for all channels, or the number of a width, from 1."""
        options = self._options()
        costs = [[max(own) - each for each in own] for own, _ in options]
        budget = max(self._most - saved, 0.0) + _ROUNDING
        found = least_damage(costs, [damages for _, damages in options], budget)
        return found or [int(np.argmin(cost)) for cost in costs]

    def _widths(self, indices: Sequence[int]) -> dict[str, int]:
        chosen = zip(self.places, indices, strict=True)
        return {place.name: place.widths[index - 1] for place, index in chosen if index}

    def _indices(self, widths: Widths) -> list[int]:
        return [
            place.widths.index(widths[place.name]) + 1 if place.name in widths else 0
            for place in self.places
        ]

    def _sums(self, indices: Sequence[int]) -> tuple[float, float]:
        """The share that is left, and the damage, as places alone add up to."""
        chosen = list(zip(self.places, indices, strict=True))
        saved = sum(place.savings()[index] for place, index in chosen)
        return 1.0 - saved, sum(place.damages()[index] for place, index in chosen)

    def _curve(self) -> tuple[tuple[float, float], ...]:
        parts = np.linspace(1.0, 0.0, _CURVE_POINTS + 1)
        points = {self._sums(self._solved(float(part) * self._most)) for part in parts}
        return tuple(sorted(points))

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.places) + 1, "channels left out, and measured")
