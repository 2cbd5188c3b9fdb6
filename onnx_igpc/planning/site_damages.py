"""The candidates of every site, and what each alone does to the network's answers.

A damage is measured on data that the candidate was not fitted to: for each part of the data, the
candidate is fitted to the other parts and run on that one. Only candidates that a choice may turn on
are measured; that of the others lies between, by the error of their fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_igpc.calibration.graph_cuts import DenseWeight
from onnx_igpc.calibration.site_fitter import output_metric
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.errors import DataError
from onnx_igpc.fitting.calibrated import corrected_bias, fit_calibrated
from onnx_igpc.fitting.moments import Moments, SiteStatistics
from onnx_igpc.fitting.output_metric import OutputMetric
from onnx_igpc.fitting.weights import IgpcWeights, igpc_matrix
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.planning.knapsack import Candidate, Options, interpolate_damage
from onnx_igpc.planning.trials import FEW, Trials
from onnx_igpc.sites.batch_norm import following_batch_norm
from onnx_igpc.sites.find import Rewritable
from onnx_igpc.sites.rewrite import kept_layout

# The part of the dense weights near which a candidate of each site is measured at first.
_FIRST = 0.4


@dataclass(frozen=True)
class Fitted:
    """A way to write a site: ``error`` is that of the fit, ``weights`` are known where it was made now."""

    layout: GroupLayout
    error: float
    weights: IgpcWeights | None = None


@dataclass
class SiteCandidates:
    """The candidates of one site but dense; sites that share its weight are written as it is.

    ``measured`` has damages by the index of the candidate; ``factor`` is how much more than alone a site
    does among the other rewritten ones, as far as that is known.
    """

    site: Rewritable
    sharing: list[Rewritable]
    positions: int
    fitted: list[Fitted]
    measured: dict[int, float] = field(default_factory=dict)
    factor: float = 1.0

    @property
    def name(self) -> str:
        return self.site.name

    def damages(self) -> list[float]:
        """The damage of every candidate, in the order of ``fitted``."""
        if not self.fitted or not self.measured:
            return [0.0] * len(self.fitted)
        points = [(self.fitted[index].error, value) for index, value in self.measured.items()]
        damages = interpolate_damage([each.error for each in self.fitted], points)
        for index, value in self.measured.items():
            damages[index] = value
        return [self.factor * damage for damage in damages]

    def options(self, seconds: Mapping[GroupLayout, float] | None = None) -> Options:
        """What a budget chooses from: dense first, then the candidates.

        seconds: the time of each layout for a budget of time; those without one are left out.
        """
        dense = Candidate(
            kept_layout(self.site, "dense costs least damage within the budget"), 0.0, 0.0
        )
        candidates = [
            Candidate(each.layout, each.error, damage)
            for each, damage in zip(self.fitted, self.damages(), strict=True)
        ]
        found = Options(self.name, self.positions, (dense, *candidates))
        return found if seconds is None else found.timed(seconds)

    def first_pick(self) -> int | None:
        """The candidate to measure before anything is known."""
        parts = [each.layout.weights / each.layout.dense_weights for each in self.fitted]
        return int(np.argmin(np.abs(np.array(parts) - _FIRST))) if parts else None

    def index_of(self, layout: GroupLayout) -> int | None:
        """The candidate with this layout; ``None`` for dense."""
        layouts = [each.layout for each in self.fitted]
        return layouts.index(layout) if layout in layouts else None


class SiteDamages:
    """Measures single candidates of sites.

    Args:
        trials: the data in parts, and the model.
    """

    def __init__(self, trials: Trials) -> None:
        self._trials = trials
        self._moments = [trials.moments.of_part(number) for number in range(len(trials.folds))]

    def moments(self, site: Rewritable, without: int | None = None) -> Moments:
        """Of the input of a site, over all parts or all but one."""
        tap = Tap.of(site)
        parts = [
            known[tap]
            for number, known in enumerate(self._moments)
            if number != without and tap in known
        ]
        if not parts:
            raise DataError(f"the input of {site.name!r} holds no values on the calibration data")
        return Moments.joined(parts)

    def observed(self, site: Rewritable) -> bool:
        """Whether its input holds any values, also where a part is left out."""
        tap = Tap.of(site)
        return sum(tap in known for known in self._moments) > 1 or (
            len(self._moments) == 1 and tap in self._moments[0]
        )

    def metric(self, each: SiteCandidates) -> OutputMetric:
        """How much errors of a site's filters count."""
        norm = following_batch_norm(self._trials.found.view, each.site.ref)
        fisher = [self._trials.fisher.get(site.name) for site in each.sharing]
        scale = norm.factor if norm is not None else None
        return output_metric(fisher, scale, each.site.out_channels)

    def measure(self, each: SiteCandidates, index: int) -> None:
        """Measure a candidate, if it is not yet.

        Raises:
            DataError: the output is not finite when the site is rewritten so.
        """
        if index in each.measured:
            return
        candidate = each.fitted[index]
        names = {site.name for site in each.sharing}
        place = self._trials.behind(names)
        changing = place.probe.changing(names)
        changes = [
            self._changes(each, candidate, number if place.possible else None)
            for number in range(len(place.folds))
        ]
        value = changing.damage(changes, FEW).value
        if not np.isfinite(value):
            raise DataError(f"the output is not finite when {each.name!r} is rewritten")
        each.measured[index] = value

    def _changes(
        self, each: SiteCandidates, candidate: Fitted, left_out: int | None
    ) -> dict[str, DenseWeight]:
        """The sites with this weight as the candidate makes them, fitted without one part of the data."""
        statistics = SiteStatistics.unchanged(self.moments(each.site, left_out))
        weight = each.site.weight_matrix().astype(np.float64)
        fit = fit_calibrated(
            candidate.layout,
            weight,
            None,
            statistics,
            self.metric(each),
            start=candidate.weights,
        )
        matrix = igpc_matrix(candidate.layout, fit.weights)
        changes = {}
        for site in each.sharing:
            own = SiteStatistics.unchanged(self.moments(site, left_out))
            before = site.bias.values() if site.bias is not None else None
            bias = corrected_bias(weight, matrix, before, own)
            changes[site.name] = DenseWeight(matrix, bias, site.spatial_rank)
        return changes


Choose = Callable[[], Sequence[GroupLayout]]


def measure_choice(
    damages: SiteDamages, planned: Sequence[SiteCandidates], choose: Choose, rounds: int
) -> None:
    """Measure the candidates that are chosen, and choose again, until all that are chosen are measured.

    choose: gives the layout of each site by what is known so far.
    """
    for _ in range(rounds):
        fresh = False
        for each, layout in zip(planned, choose(), strict=True):
            index = each.index_of(layout)
            if index is not None and index not in each.measured:
                damages.measure(each, index)
                fresh = True
        if not fresh:
            return
