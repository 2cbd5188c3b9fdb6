"""Whole plans tried out: fitted to some of the data and measured on what was left out of the fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_igpc.calibration.graph_cuts import DenseWeight
from onnx_igpc.calibration.held_samples import Part
from onnx_igpc.calibration.options import Fit
from onnx_igpc.calibration.plan_fits import FittedSites, fit_sites
from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.planning.sensitivity import Damage, DamageProbe
from onnx_igpc.sites.find import FoundSites

Layouts = Mapping[str, GroupLayout]

FOLDS = 4
"""Parts that the data is divided into: each is measured by a fit to the others."""

# Shares of the original's activations in a sequential fit that are tried.
_BLENDS = (0.25, 0.75)


@dataclass(frozen=True)
class Trial:
    """A plan fitted once for each part of the data, without it, and measured on the parts."""

    damage: Damage
    fitted: list[FittedSites]


@dataclass
class Trials:
    """Tries plans out on the parts of some data.

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
    _folds: list[Part] = field(default_factory=list)

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
            sites = [site for site in self.found.rewritable if site.ref.scope.is_main]
            self._probe = DamageProbe(self.model, sites, self.folds)
        return self._probe

    def run(
        self, layouts: Layouts, fit: Fit, starts: Mapping[str, IgpcWeights] | None = None
    ) -> Trial:
        """Fit the plan without each part in turn, and measure it there.

        Raises:
            DataError: activations that are not finite.
            ModelError: the model cannot run on the data.
        """
        fitted, damages = [], []
        for number, fold in enumerate(self.folds):
            rest = self.part.without(fold)
            done = fit_sites(
                self.model, self.found, layouts, rest, fit, fisher=self.fisher, starts=starts
            )
            fitted.append(done)
            damages.append(self.probe.damage(_measurable(self.found, done), number))
        return Trial(Damage.joined(damages), fitted)

    def without(self, trial: Trial, name: str) -> Damage:
        """The damage of a trial but for one site, which is as in the original."""
        damages = []
        for number, done in enumerate(trial.fitted):
            changes = _measurable(self.found, done)
            changes.pop(name, None)
            damages.append(self.probe.damage(changes, number))
        return Damage.joined(damages)

    def choose_fit(
        self,
        layouts: Layouts,
        allowed: Sequence[bool],
        starts: Mapping[str, IgpcWeights] | None = None,
    ) -> tuple[Fit, dict[str, Damage]]:
        """The fit that does least damage to what it was not fitted to, and the damage of all tried.

        First the metric, then how far a fit relies on what the sites before make of the data.

        Args:
            layouts: the plan.
            allowed: whether sites may be fitted in sequence (``True``) or each by itself (``False``).
            starts: weights by site that are near already.
        """
        first = Fit(sequential=allowed[0], metric="fisher" if self.fisher else "batch-norm")
        replaced = [each for each in layouts.values() if each.kept_reason is None]
        if not self.possible or not replaced:
            return first, {}
        tried: dict[Fit, Damage] = {}

        def best() -> Fit:
            return min(tried, key=lambda fit: tried[fit].value)

        def attempt(fit: Fit) -> None:
            if fit not in tried:
                tried[fit] = self.run(layouts, fit, starts).damage

        attempt(first)
        if self.fisher:
            attempt(Fit(sequential=first.sequential))
        metric = best().metric
        if True in allowed:
            for blend in _BLENDS:
                attempt(Fit(blend=blend, metric=metric))
        if False in allowed:
            attempt(Fit(sequential=False, metric=metric))
        return best(), {fit.label: damage for fit, damage in tried.items()}


def _measurable(found: FoundSites, done: FittedSites) -> dict[str, DenseWeight]:
    """What the sites of the main graph apply."""
    main = {site.name for site in found.rewritable if site.ref.scope.is_main}
    return {name: each for name, each in done.applied.items() if name in main}
