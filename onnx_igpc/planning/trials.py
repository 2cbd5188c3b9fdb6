"""Whole plans tried out: fitted to some of the data and measured on what was left out of the fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from onnx_igpc.calibration.graph_cuts import DenseWeight
from onnx_igpc.calibration.held_samples import Part
from onnx_igpc.calibration.known_moments import KnownMoments
from onnx_igpc.calibration.options import Fit, Metric
from onnx_igpc.calibration.plan_fits import FittedSites, fit_sites
from onnx_igpc.calibration.tails import Tail, tail_from
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.fitting.moments import Moments
from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.planning.sensitivity import Changes, ChangingSites, Damage, DamageProbe
from onnx_igpc.sites.find import FoundSites, Rewritable

Layouts = Mapping[str, GroupLayout]

FOLDS = 4
"""Parts that the data is divided into: each is measured by a fit to the others."""

# At most so many of all parts together are measured on. What is fitted to is not limited.
_MOST_SAMPLES = 400

FEW = 12
"""Samples of each part that are enough for what is measured again with the whole."""

# Trials are compared with one another: closer fits would move all of them alike.
_TOLERANCE = 3e-3
# Places, evenly over the sites, from which trials can begin.
_CUTS = 6


@dataclass(frozen=True)
class Trial:
    """A plan fitted once for each part of the data, without it, and measured on the parts.

    ``changes``: what its sites apply, fitted without each part; ``changing`` measures them.
    """

    damage: Damage
    changes: Sequence[Changes]
    changing: ChangingSites


@dataclass(eq=False)
class Trials:
    """Tries plans out on the parts of some data; :meth:`close` lets go of what is kept.

    Args:
        model: the model, which is not changed.
        found: its sites.
        part: the data to choose by.
        fisher: the Fisher information of the sites' outputs by name, where it is known.
    """

    model: OpenModel
    found: FoundSites
    part: Part
    fisher: Mapping[str, np.ndarray] = field(default_factory=dict)
    _probe: DamageProbe | None = None
    _moments: KnownMoments | None = None
    _folds: list[Part] = field(default_factory=list)
    _tails: dict[int, tuple[Trials, Tail] | None] = field(default_factory=dict)
    _known: dict[object, Damage] = field(default_factory=dict)

    def close(self) -> None:
        """Let go of the data behind all cuts."""
        for kept in self._tails.values():
            if kept is not None:
                kept[1].held.close()
        self._tails.clear()

    @property
    def folds(self) -> list[Part]:
        """The parts; a single one where there is but one sample, which leaves nothing to measure on."""
        if not self._folds:
            self._folds = self.part.folds(FOLDS)
        return self._folds

    @property
    def possible(self) -> bool:
        """Whether a fit can be measured on something that it was not fitted to."""
        return len(self.folds) > 1

    @property
    def probe(self) -> DamageProbe:
        """Measures the sites of the main graph on each of the parts."""
        if self._probe is None:
            self._probe = DamageProbe(self.model, self._main, self.folds, _MOST_SAMPLES // FOLDS)
        return self._probe

    @property
    def moments(self) -> KnownMoments:
        """Of the inputs of all sites, kept for each of the parts."""
        if self._moments is None:
            self._moments = KnownMoments(self.model, self.found.rewritable, self.folds)
        return self._moments

    def without_part(self, number: int) -> Part:
        """All samples but those of one part."""
        return self.part.without(self.folds[number])

    @property
    def _main(self) -> list[Rewritable]:
        return [site for site in self.found.rewritable if site.ref.scope.is_main]

    def behind(self, names: AbstractSet[str]) -> Trials:
        """The same in the part of the model where the sites of these names lie, if it can stand alone.

        There are few cuts, so that what arrives at each is kept.
        """
        main = self._main
        places = [number for number, site in enumerate(main) if site.name in names]
        known = {site.name for site in main}
        if not places or not names <= known:
            return self
        step = -(-len(main) // _CUTS)
        number = min(places) // step * step
        if not number:
            return self
        if number not in self._tails:
            self._tails[number] = self._behind(main[number].ref.index)
        kept = self._tails[number]
        return self if kept is None else kept[0]

    def _behind(self, position: int) -> tuple[Trials, Tail] | None:
        tail = tail_from(self.model, self.found, self.part, position)
        if tail is None:
            return None
        folds = [tail.part(self.part, fold) for fold in self.folds]
        part = Part(tail.held, range(len(tail.held)))
        return Trials(tail.model, tail.found, part, self.fisher, _folds=folds), tail

    def run(
        self, layouts: Layouts, fit: Fit, starts: Mapping[str, IgpcWeights] | None = None
    ) -> Trial:
        """Fit the plan without each part in turn, and measure it there.

        Raises:
            DataError: activations that are not finite.
            ModelError: the model cannot run on the data.
        """
        replaced = {name for name, layout in layouts.items() if layout.replaced}
        place = self.behind(replaced)
        changes = []
        for number in range(len(place.folds)):
            done = fit_sites(
                place.model,
                place.found,
                layouts,
                place.without_part(number),
                fit,
                fisher=self.fisher,
                starts=starts,
                tolerance=_TOLERANCE,
                moments=partial(self._moments_without, number),
            )
            changes.append(_measurable(place.found, done))
        changing = place.probe.changing({name for part in changes for name in part})
        damage = self._known[_key(layouts, fit)] = changing.damage(changes)
        return Trial(damage, changes, changing)

    def _moments_without(self, number: int) -> dict[Tap, Moments]:
        return self.moments.of(self.without_part(number))

    def won(self, trial: Trial, names: Sequence[str]) -> dict[str, float]:
        """By how much the damage of a trial is less where one of these sites is as in the original.

        Measured on a few samples of each part.
        """

        def damage(without: str | None) -> float:
            parts = [
                {name: change for name, change in part.items() if name != without}
                for part in trial.changes
            ]
            return trial.changing.damage(parts, FEW).value

        whole = damage(None)
        return {name: whole - damage(name) for name in names}

    def choose_fit(
        self,
        layouts: Layouts,
        allowed: Sequence[bool],
        starts: Mapping[str, IgpcWeights] | None = None,
    ) -> tuple[Fit, dict[str, Damage]]:
        """The fit that does least damage to what it was not fitted to, and the damage of all tried.

        First the metric, then whether sites are fitted in sequence, then how far such a fit relies on what
        the sites before make of the data.

        Args:
            layouts: the plan.
            allowed: whether sites may be fitted in sequence (``True``) or each by itself (``False``).
            starts: weights by site that are near already.
        """
        first = Fit(sequential=False not in allowed, metric=self.metric)
        replaced = [each for each in layouts.values() if each.kept_reason is None]
        if not self.possible or not replaced:
            return Fit(sequential=allowed[0], metric=self.metric), {}
        tried: dict[Fit, Damage] = {}

        def best() -> Fit:
            return min(tried, key=lambda fit: tried[fit].value)

        def attempt(fit: Fit) -> None:
            if fit not in tried:
                known = self._known.get(_key(layouts, fit))
                tried[fit] = known or self.run(layouts, fit, starts).damage

        attempt(first)
        if self.fisher:
            attempt(replace(first, metric="batch-norm"))
        if True in allowed:
            attempt(replace(best(), sequential=True))
            if best().sequential:
                half = best()
                attempt(replace(half, blend=0.25))
                # Less was better: still less; otherwise more.
                attempt(replace(half, blend=0.75 if best() == half else 0.0))
        return best(), {fit.label: damage for fit, damage in tried.items()}

    @property
    def metric(self) -> Metric:
        """The best metric that is known."""
        return "fisher" if self.fisher else "batch-norm"


def _key(layouts: Layouts, fit: Fit) -> object:
    replaced = {name: layout for name, layout in layouts.items() if layout.replaced}
    return fit, frozenset(replaced.items())


def _measurable(found: FoundSites, done: FittedSites) -> dict[str, DenseWeight]:
    """What the sites of the main graph apply."""
    main = {site.name for site in found.rewritable if site.ref.scope.is_main}
    return {name: each for name, each in done.applied.items() if name in main}
