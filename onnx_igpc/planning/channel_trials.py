"""Channels between convolutions left out, as a trial: what that does to the model's answers, measured by fits that
had no part in what they are measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_igpc.calibration.graph_cuts import DenseWeight
from onnx_igpc.calibration.narrow_fits import fit_narrowings
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.fitting.moments import SiteStatistics
from onnx_igpc.fitting.narrowing import NarrowWeights, Ranking, fit_without_each, rank_channels
from onnx_igpc.graph.model import OpenModel, snapshot
from onnx_igpc.passes.narrow_channels import NarrowChannels
from onnx_igpc.planning.knapsack import interpolate_damage
from onnx_igpc.planning.sensitivity import Changes, ChangingSites, Damage
from onnx_igpc.planning.trials import FEW, Trials
from onnx_igpc.sites.find import Rewritable
from onnx_igpc.sites.inner_channels import InnerChannels

# Parts of the channels that may stay.
_PARTS = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4)
# Samples of each part of the data that a whole choice is measured on, and that it is fitted to for that.
_SAMPLES = 50
_FITTED = 200

Widths = Mapping[str, int]
"""How many channels stay, by the name of their reader; where none is given all do."""


@dataclass
class Place:
    """The channels of one reader: which stay longest, how many may, and what each width does and saves.

    ``measured`` has damages by width, ``saved`` is what one channel less saves.
    """

    inner: InnerChannels
    ranking: Ranking
    widths: list[int]
    measured: dict[int, float] = field(default_factory=dict)
    saved: float = 0.0

    @property
    def name(self) -> str:
        """That of the reader."""
        return self.inner.name

    def nearest(self, part: float) -> int:
        """The width that is nearest to a part of the channels."""
        return min(self.widths, key=lambda width: abs(width - part * self.inner.channels))

    def damages(self) -> list[float]:
        """Of all channels, and of each of ``widths``."""
        errors = self.ranking.errors
        points = [(float(errors[width]), value) for width, value in self.measured.items()]
        between = interpolate_damage([float(errors[width]) for width in self.widths], points)
        known = zip(self.widths, between, strict=True)
        return [0.0, *(self.measured.get(width, value) for width, value in known)]

    def savings(self) -> list[float]:
        """Of all channels, and of each of ``widths``."""
        return [0.0, *(self.saved * (self.inner.channels - width) for width in self.widths)]


class ChannelTrials:
    """Tries widths out.

    Args:
        trials: the model, and the data in parts.
        inner: channels of the model; :attr:`places` leaves out those that cannot be observed or are too few.
    """

    def __init__(self, trials: Trials, inner: Sequence[InnerChannels]) -> None:
        self.trials = trials
        self._changing: dict[str, ChangingSites] = {}
        self.places: list[Place] = []
        for each in inner:
            widths, parts = possible_widths(each.channels), self._statistics(each.reader)
            if widths and len(parts) == len(trials.folds):
                second = SiteStatistics.joined(parts).second
                ranking = rank_channels(each.reader.weight_matrix(), second, min(widths))
                self.places.append(Place(each, ranking, widths))

    def measure(self, place: Place, width: int) -> None:
        """The damage of one place alone, on a few samples of each part, if it is not known.

        Raises:
            DataError: activations that are not finite.
            ModelError: the model cannot run on the data.
        """
        if width in place.measured:
            return
        reader, kept = place.inner.reader, place.ranking.kept(width)
        parts = self._statistics(reader)
        fits = fit_without_each(reader.weight_matrix(), _bias(reader), kept, parts)
        if place.name not in self._changing:
            around = self.trials.behind({place.name})
            self._changing[place.name] = around.probe.changing({place.name})
        damage = self._changing[place.name].damage(
            [{place.name: _applied(reader, fit)} for fit in fits], FEW
        )
        place.measured[width] = damage.value

    def _statistics(self, reader: Rewritable) -> list[SiteStatistics]:
        """Of its input on each part of the data that holds anything."""
        parts = [self.trials.moments.of_part(number) for number in range(len(self.trials.folds))]
        found = [part.get(Tap.of(reader)) for part in parts]
        return [SiteStatistics.unchanged(each) for each in found if each is not None]

    def whole(self, widths: Widths) -> Damage:
        """The damage of all places together; raises as :meth:`measure`."""
        trials, kept = self.trials, self.kept(widths)
        readers = [place.inner.reader for place in self.places if place.name in kept]
        changes: list[Changes] = []
        for number in range(len(trials.folds)):
            data = trials.without_part(number).take(_FITTED)
            fits = fit_narrowings(trials.model, readers, kept, data)
            changes.append({each.name: _applied(each, fits[each.name]) for each in readers})
        return trials.probe.changing(kept).damage(changes, _SAMPLES)

    def kept(self, widths: Widths) -> dict[str, tuple[int, ...]]:
        """The channels that stay."""
        narrow = [place for place in self.places if place.name in widths]
        return {place.name: place.ranking.kept(widths[place.name]) for place in narrow}

    def narrowed(self, widths: Widths) -> OpenModel:
        """A copy of the model with so many channels, whose new weights are zeros."""
        copy, weights = snapshot(self.trials.model), {}
        made = {place.name: place.inner.reader.out_channels for place in self.places}
        for name, kept in self.kept(widths).items():
            zeros = np.zeros((made[name], len(kept)))
            weights[name] = NarrowWeights(kept, zeros, np.zeros(made[name]), 0.0)
        NarrowChannels(weights).run(copy)
        return copy


def possible_widths(channels: int) -> list[int]:
    """How many of these channels may stay, most first: whole vectors, which convolutions are computed in."""
    step = 16 if channels >= 64 else 8 if channels >= 16 else 1
    rounded = {round(part * channels / step) * step for part in _PARTS}
    return sorted((width for width in rounded if 0 < width < channels), reverse=True)


def _bias(reader: Rewritable) -> np.ndarray | None:
    return None if reader.bias is None else reader.bias.values()


def _applied(reader: Rewritable, fit: NarrowWeights) -> DenseWeight:
    """What the reader does then, as a layer of all channels."""
    return DenseWeight(fit.dense(reader.in_channels), fit.bias, reader.spatial_rank)
