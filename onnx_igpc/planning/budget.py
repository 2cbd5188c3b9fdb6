"""Planning a whole model under a budget: candidates of every site, their damage, the best choice.

Single damages are added up to predict that of the whole. What is chosen is then fitted and measured as
a whole, the single damages are corrected by what came out, and the choice is made again, until
prediction and measurement agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnx_igpc.calibration.collect import collect_moments, untapped_reason
from onnx_igpc.calibration.options import Fit
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.data.progress import Progress
from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.graph.cost import ModelCost
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.planning.candidates import SIZES, candidate_layouts
from onnx_igpc.planning.grouping import better_grouping, learned_published
from onnx_igpc.planning.knapsack import Choice, Options, Target, best_within, trade_off
from onnx_igpc.planning.options import Budget
from onnx_igpc.planning.sensitivity_file import Sensitivity, save_sensitivity, weight_digest
from onnx_igpc.planning.site_damages import Fitted, SiteCandidates, SiteDamages, measure_choice
from onnx_igpc.planning.trials import Trial, Trials
from onnx_igpc.report.sections import LatencyReport, SelectionReport, TriedPlan
from onnx_igpc.sites.batch_norm import following_batch_norm
from onnx_igpc.sites.find import Rewritable
from onnx_igpc.sites.rewrite import kept_layout

# Choices that are measured candidate by candidate, and whole plans that are tried.
_CHOICES, _TRIALS = 6, 3
# How far a prediction may be from what is measured.
_AGREES = 0.25
# A single site's correction is at most so much in either direction.
_MOST_CORRECTION = 4.0
_UNOBSERVED = "it cannot be observed on the data, so that it stays dense under a budget"


class Pricing(Protocol):
    """What measures candidates in seconds, for a budget of time; lowering has it."""

    summary: LatencyReport | None

    def priced(self, planned: Sequence[Options], owners: Mapping[str, str]) -> list[Options]:
        """The sites with those of their candidates that were timed; the first is dense."""

    def predicted(self, planned: Sequence[Options], target: Target) -> Choice:
        """The choice of least damage whose predicted time is within the target, or the fastest."""

    def choose(
        self,
        planned: Sequence[Options],
        target: Target,
        layouts: Callable[[Choice], Mapping[str, GroupLayout]],
    ) -> Choice:
        """The choice of least damage whose measured time is within the target."""


@dataclass
class Plan:
    """A layout for every site by name, how they were found to be fitted best, and what the report says.

    ``starts``: weights by site that are near what a fit will find.
    """

    layouts: dict[str, GroupLayout]
    summary: SelectionReport | None = None
    starts: dict[str, IgpcWeights] | None = None


@dataclass
class _Search:
    """What a search under a budget knows.

    ``seconds`` by site and layout for a budget of time.
    """

    trials: Trials
    target: Target
    cost: ModelCost
    seen: list[Rewritable]
    owners: dict[str, str]
    planned: list[SiteCandidates]
    damages: SiteDamages
    pricing: Pricing | None
    seconds: dict[str, dict[GroupLayout, float]] | None = None

    def options(self) -> list[Options]:
        """The candidates with their damages as they are known now."""
        if self.seconds is None:
            return [each.options() for each in self.planned]
        return [each.options(self.seconds[each.name]) for each in self.planned]

    def predicted(self) -> Choice:
        """The choice by what is known, without racing a whole model."""
        options = self.options()
        if self.pricing is not None:
            return self.pricing.predicted(options, self.target)
        return best_within(options, self.target, self._fixed(options))

    def choose(self) -> Choice:
        """The choice of least damage within the target, measured where the target is one of time."""
        if self.pricing is None:
            return self.predicted()
        return self.pricing.choose(self.options(), self.target, self.layouts)

    def chosen(self, choice: Choice) -> list[GroupLayout]:
        """The layout of each planned site."""
        return [
            each.candidates[index].layout
            for each, index in zip(self.options(), choice.indices, strict=True)
        ]

    def layouts(self, choice: Choice) -> dict[str, GroupLayout]:
        """The layout of every site of the model, those that share a weight sharing it."""
        chosen = dict(zip((each.name for each in self.planned), self.chosen(choice), strict=True))
        result = {site.name: chosen[self.owners[site.name]] for site in self.seen}
        return {
            site.name: result.get(site.name) or kept_layout(site, _UNOBSERVED)
            for site in self.trials.found.rewritable
        }

    def _fixed(self, options: Sequence[Options]) -> float:
        """What the model costs apart from the candidates; a bias that a rewrite may add counts."""
        target, cost = self.target, self.cost
        if not target.whole_model:
            return 0
        whole = cost.macs if target.counts_macs else cost.parameters
        added = 0
        if not target.counts_macs:
            added = sum(site.out_channels or 0 for site in self.seen if not site.has_bias)
        return max(whole + added - dense_cost(options, target), 0)


def plan_budget(
    trials: Trials,
    cost: ModelCost,
    budget: Budget,
    progress: Progress | None = None,
    latency: Pricing | None = None,
) -> Plan:
    """Choose a layout for every site so that the target holds and the damage is least.

    Args:
        trials: the model before the rewrite, its sites, and the data to choose by.
        cost: of the model as it is.
        budget: target, family, grouping.
        progress: called with (sites done, sites in all, name of the next).
        latency: what measures times, for a target of latency.

    Raises:
        CheckFailedError: the target cannot be reached.
        UsageError: measurements to reuse that belong to another model.
        DataError: data that cannot be used.
    """
    search = _open(trials, cost, budget, progress, latency)
    if budget.save_sensitivity is not None and not budget.sensitivity:
        save_sensitivity(
            budget.save_sensitivity, search.planned, trials.probe.measure, trials.probe.samples
        )
    choice, tried = _settled(search, progress)
    options = search.options()
    chosen = {
        each.name: each.candidates[index]
        for each, index in zip(options, choice.indices, strict=True)
    }
    summary = SelectionReport(
        target=str(search.target),
        family=budget.family,
        grouping=budget.grouping,
        measure=trials.probe.measure,
        samples=trials.probe.samples,
        predicted_damage=choice.damage,
        measured_damage=tried[-1].measured if tried else None,
        curve=trade_off(options, search.target),
        chosen=(choice.cost / (dense_cost(options, search.target) or 1), choice.damage),
        damage_by_site={name: candidate.damage for name, candidate in chosen.items()},
        tried=tried or None,
        latency=latency.summary if latency is not None else None,
    )
    return Plan(search.layouts(choice), summary, _starts(search, choice))


def _open(
    trials: Trials,
    cost: ModelCost,
    budget: Budget,
    progress: Progress | None,
    latency: Pricing | None,
) -> _Search:
    """The search with the candidates of all sites, those measured on which the first choices turn."""
    seen = [site for site in trials.found.rewritable if untapped_reason(site) is None]
    damages = SiteDamages(trials, seen)
    seen = [site for site in seen if damages.observed(site)]
    owners = owners_of(seen)
    first = [site for site in seen if owners[site.name] == site.name]
    known = Sensitivity(budget.sensitivity) if budget.sensitivity else None
    planned: list[SiteCandidates] = []
    for number, site in enumerate(first):
        if progress is not None:
            progress(number, len(first), site.name)
        sharing = [each for each in seen if owners[each.name] == site.name]
        each = SiteCandidates(site, sharing, _positions(site, cost), [])
        if known is not None:
            known.put_into(each)
        else:
            each.fitted = _candidates(damages, each, budget)
            for index in each.first_picks():
                damages.measure(each, index)
        planned.append(each)
    search = _Search(trials, budget.quantity, cost, seen, owners, planned, damages, latency)
    if latency is not None:
        priced = latency.priced([each.options() for each in planned], owners)
        search.seconds = {
            each.name: {c.layout: c.seconds or 0.0 for c in each.candidates} for each in priced
        }
    if known is None:
        measure_choice(damages, planned, lambda: search.chosen(search.predicted()), _CHOICES)
    return search


def _settled(search: _Search, progress: Progress | None) -> tuple[Choice, list[TriedPlan]]:
    """The choice whose measured damage is least among those that were tried, which is the last."""
    trials = search.trials
    if not trials.possible:
        return search.choose(), []
    fit = Fit(metric="fisher" if trials.fisher else "batch-norm")
    tried: list[tuple[Choice, TriedPlan]] = []
    seen: list[tuple[int, ...]] = []
    for number in range(_TRIALS):
        choice = search.choose()
        if choice.indices in seen:
            break
        seen.append(choice.indices)
        if progress is not None:
            progress(number, _TRIALS, "the whole plan, fitted and measured")
        trial = trials.run(search.layouts(choice), fit, _starts(search, choice))
        measured = trial.damage.value
        share = choice.cost / (dense_cost(search.options(), search.target) or 1)
        tried.append(
            (
                choice,
                TriedPlan(
                    share=share,
                    predicted=choice.damage,
                    measured=measured,
                    agreement=_agreement(trial),
                ),
            )
        )
        if abs(choice.damage - measured) <= _AGREES * max(measured, 1e-12):
            break
        _correct(search, choice, trial)
        measure_choice(search.damages, search.planned, lambda: search.chosen(search.predicted()), 2)
    tried.sort(key=lambda each: -each[1].measured)
    best = tried[-1]
    return best[0], [plan for _, plan in tried]


def _correct(search: _Search, choice: Choice, trial: Trial) -> None:
    """Give every site the damage that it turned out to do among the others.

    A rewritten site's is what is won where it alone is as in the original; all are then brought to add
    up to the damage of the whole. The others are corrected by the whole alone.
    """
    whole = trial.damage.value
    rewritten = {
        each.name: (each, option.candidates[index].damage)
        for each, option, index in zip(
            search.planned, search.options(), choice.indices, strict=True
        )
        if index
    }
    won: dict[str, float] = {}
    for name, (_, alone) in rewritten.items():
        without = search.trials.without(trial, name).value
        won[name] = float(
            np.clip(whole - without, alone / _MOST_CORRECTION, alone * _MOST_CORRECTION)
        )
    total = sum(won.values())
    common = whole / max(choice.damage, 1e-12)
    for each in search.planned:
        if each.name in rewritten:
            alone = rewritten[each.name][1]
            each.factor *= won[each.name] / max(alone, 1e-12) * whole / max(total, 1e-12)
        else:
            each.factor *= common


def _agreement(trial: Trial) -> float | None:
    agreeing = trial.damage.agreeing
    return None if agreeing is None else agreeing / trial.damage.samples


def _starts(search: _Search, choice: Choice) -> dict[str, IgpcWeights]:
    """Weights of the candidates that were chosen, by every site that is written so."""
    starts = {}
    for each, layout in zip(search.planned, search.chosen(choice), strict=True):
        index = each.index_of(layout)
        weights = each.fitted[index].weights if index is not None else None
        if weights is not None:
            starts.update({site.name: weights for site in each.sharing})
    return starts


def _candidates(damages: SiteDamages, each: SiteCandidates, budget: Budget) -> list[Fitted]:
    """Everything but dense, fitted; only what no other beats in weights and error."""
    site = each.site
    found = candidate_layouts(
        site.weight_matrix().astype(np.float64),
        damages.moments(site).second,
        damages.metric(each),
        SIZES if budget.family == "extended" else (),
        grouping=budget.grouping,
    )
    return [
        Fitted(each.layout, each.error, each.weights)
        for each in found
        if each.layout.kept_reason is None and each.layout.weights < each.layout.dense_weights
    ]


def _positions(site: Rewritable, cost: ModelCost) -> int:
    """How often the matrix of a site is applied (batch 1)."""
    node = cost.nodes.get(site.ref.proto.output[0])
    if node is None or not node.macs:
        return 1
    return max(round(node.macs / (site.in_channels * site.out_channels)), 1)


def dense_cost(planned: Sequence[Options], target: Target) -> float:
    """What the sites cost as they are."""
    return sum(each.cost(0, target) for each in planned)


def owners_of(sites: Sequence[Rewritable]) -> dict[str, str]:
    """The first site with the same weight, by name: sites that share a weight share the layout."""
    first: dict[tuple[int, str], str] = {}
    owners = {}
    for site in sites:
        owners[site.name] = first.setdefault((id(site.weight.root), weight_digest(site)), site.name)
    return owners


def learned_layouts(trials: Trials, layouts: Mapping[str, GroupLayout]) -> dict[str, GroupLayout]:
    """The planned layouts by site, their groups made of channels that belong together where that fits
    better; as planned where the site cannot be observed.

    Raises:
        DataError: data that cannot be used.
    """
    layouts, found = dict(layouts), trials.found
    seen = [
        site
        for site in found.rewritable
        if untapped_reason(site) is None and layouts[site.name].kept_reason is None
    ]
    owners = owners_of(seen)
    first = [site for site in seen if owners[site.name] == site.name]
    moments = collect_moments(trials.model, [Tap.of(site) for site in first], trials.part)
    for site in first:
        planned = layouts[site.name]
        norm = following_batch_norm(found.view, site.ref)
        scale = norm.factor if norm is not None else None
        weight = site.weight_matrix().astype(np.float64)
        second = moments[Tap.of(site)].second
        learned = learned_published(planned, weight, second, scale)
        layouts[site.name], _, _ = better_grouping([planned, learned], weight, second, scale)
    for site in seen:
        layouts[site.name] = layouts[owners[site.name]]
    return layouts
