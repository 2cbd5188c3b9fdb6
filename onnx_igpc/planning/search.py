"""What a search for the layouts of a whole model knows: candidates of every site, their damage, the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import isqrt
from typing import Protocol

import numpy as np

from onnx_igpc.calibration.collect import untapped_reason
from onnx_igpc.calibration.options import Fit
from onnx_igpc.data.progress import Progress
from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.graph.cost import ModelCost
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.planning.candidates import SIZES, candidate_layouts
from onnx_igpc.planning.knapsack import Choice, Options, Target, best_within, trade_off
from onnx_igpc.planning.options import Budget, Keep
from onnx_igpc.planning.sensitivity_file import Sensitivity, save_sensitivity, weight_digest
from onnx_igpc.planning.site_damages import Fitted, SiteCandidates, SiteDamages, measure_choice
from onnx_igpc.planning.trials import Trial, Trials
from onnx_igpc.report.selection import LatencyReport, SelectionReport, TriedPlan
from onnx_igpc.sites.find import FoundSites, Rewritable
from onnx_igpc.sites.rewrite import kept_layout

# Candidates are measured one by one for at most so many choices in turn.
_CHOICES = 2
# A single site's correction is at most so much in either direction.
_MOST_CORRECTION = 4.0
STANDS_FOR_BLOCK = "it stands for a residual block"
FEWER_CHANNELS = "the budget is kept by leaving out channels between convolutions"
_UNOBSERVED = "it cannot be observed on the data, so that it stays dense under a budget"


class Pricing(Protocol):
    """What measures candidates in seconds, for a budget of time; lowering has it."""

    summary: LatencyReport | None
    aim: float | None
    dense: float

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

    ``starts``: weights by site that are near what a fit will find. ``slower``: sites that were to be rewritten
    and stay dense, since they would be slower. ``blocks``: names of residual blocks to collapse first, whose
    sites are gone then. ``channels``: those that stay of what some sites read, by the site's name; others are left
    out first.
    """

    layouts: dict[str, GroupLayout]
    summary: SelectionReport | None = None
    starts: dict[str, IgpcWeights] | None = None
    slower: int = 0
    blocks: tuple[str, ...] = ()
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def for_sites(self, found: FoundSites) -> dict[str, GroupLayout]:
        """The layouts of these sites; what stands for a block, or has fewer channels, stays as it is."""
        otherwise = FEWER_CHANNELS if self.channels else STANDS_FOR_BLOCK
        return {
            site.name: self.layouts.get(site.name) or kept_layout(site, otherwise)
            for site in found.rewritable
        }

    @property
    def restructures(self) -> bool:
        """Whether blocks or channels go, instead of layouts."""
        return bool(self.blocks or self.channels)

    @property
    def changes(self) -> bool:
        """Whether anything is rewritten."""
        return self.restructures or any(layout.replaced for layout in self.layouts.values())


@dataclass
class Search:
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
        return best_within(options, self.target, self.fixed(options))

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

    def fixed(self, options: Sequence[Options]) -> float:
        """What the model costs apart from the candidates; a bias that a rewrite may add counts."""
        target, cost = self.target, self.cost
        if self.pricing is not None:
            return self.pricing.dense - dense_cost(options, target)
        if not target.whole_model:
            return 0
        whole = cost.macs if target.counts_macs else cost.parameters
        added = 0
        if not target.counts_macs:
            added = sum(site.out_channels or 0 for site in self.seen if not site.has_bias)
        return max(whole + added - dense_cost(options, target), 0)

    def measure_chosen(self, rounds: int) -> None:
        """Measure the candidates that are chosen by what is known, in so many rounds at most."""
        measure_choice(self.damages, self.planned, lambda: self.chosen(self.predicted()), rounds)

    def aim_at(self, target: Target) -> None:
        """Choose for another share from now on."""
        self.target = target
        if self.pricing is not None:
            self.pricing.aim = None

    def share(self, choice: Choice) -> float:
        """What a choice leaves of what the sites cost."""
        return choice.cost / (dense_cost(self.options(), self.target) or 1)

    def try_out(self, choice: Choice) -> tuple[Trial, TriedPlan]:
        """Fit a choice as a whole and measure it on data left out of the fits."""
        fit = Fit(sequential=False, metric=self.trials.metric)
        trial = self.trials.run(self.layouts(choice), fit, self.starts(choice))
        agreeing = trial.damage.agreeing
        tried = TriedPlan(
            share=self.share(choice),
            predicted=choice.damage,
            measured=trial.damage.value,
            agreement=None if agreeing is None else agreeing / trial.damage.samples,
        )
        return trial, tried

    def starts(self, choice: Choice) -> dict[str, IgpcWeights]:
        """Weights of the candidates that were chosen, by every site that is written so."""
        starts = {}
        for each, layout in zip(self.planned, self.chosen(choice), strict=True):
            index = each.index_of(layout)
            weights = each.fitted[index].weights if index is not None else None
            if weights is not None:
                starts.update({site.name: weights for site in each.sharing})
        return starts

    def correct(self, choice: Choice, trial: Trial) -> None:
        """Give every site the damage that it turned out to do among the others.

        A rewritten site's is what is won where it alone is as in the original; all are then brought to add
        up to the damage of the whole. The others are corrected by the whole alone.
        """
        whole = trial.damage.value
        rewritten = {
            each.name: (each, option.candidates[index].damage)
            for each, option, index in zip(
                self.planned, self.options(), choice.indices, strict=True
            )
            if index
        }
        won = self.trials.won(trial, list(rewritten))
        for name, (_, alone) in rewritten.items():
            bounds = alone / _MOST_CORRECTION, alone * _MOST_CORRECTION
            won[name] = float(np.clip(won[name], *bounds))
        total = sum(won.values())
        common = whole / max(choice.damage, 1e-12)
        for each in self.planned:
            if each.name in rewritten:
                alone = rewritten[each.name][1]
                each.factor *= won[each.name] / max(alone, 1e-12) * whole / max(total, 1e-12)
            else:
                each.factor *= common

    def plan(self, choice: Choice, budget: Budget | Keep, tried: Sequence[TriedPlan]) -> Plan:
        """A choice as a plan, with all that were tried."""
        options, probe = self.options(), self.trials.probe
        damages = {
            each.name: each.candidates[index].damage
            for each, index in zip(options, choice.indices, strict=True)
        }
        measured = [each.measured for each in tried if each.predicted == choice.damage]
        summary = SelectionReport(
            target=str(self.target),
            family=budget.family,
            grouping=budget.grouping,
            measure=probe.measure,
            samples=probe.samples,
            predicted_damage=choice.damage,
            measured_damage=measured[-1] if measured else None,
            curve=trade_off(options, self.target),
            # On the curve, which is of the damages as they are known in the end.
            chosen=(self.share(choice), sum(damages.values())),
            damage_by_site=damages,
            tried=list(tried) or None,
            latency=self.pricing.summary if self.pricing is not None else None,
        )
        return Plan(self.layouts(choice), summary, self.starts(choice))


def open_search(
    trials: Trials,
    cost: ModelCost,
    budget: Budget | Keep,
    target: Target,
    progress: Progress | None = None,
    latency: Pricing | None = None,
) -> Search:
    """The search with the candidates of all sites, those measured on which the first choices turn.

    Args:
        trials: the model before the rewrite, its sites, and the data to choose by.
        cost: of the model as it is.
        budget: family, grouping, and the files of measurements.
        target: what to choose for at first.
        progress: called with (work done, work in all, name of the next site).
        latency: what measures times, for a target of latency.

    Raises:
        CheckFailedError: the target cannot be reached.
        UsageError: measurements to reuse that belong to another model.
        DataError: data that cannot be used.
    """
    seen = [site for site in trials.found.rewritable if untapped_reason(site) is None]
    damages = SiteDamages(trials)
    seen = [site for site in seen if damages.observed(site)]
    owners = owners_of(seen)
    first = [site for site in seen if owners[site.name] == site.name]
    known = Sensitivity(budget.sensitivity) if budget.sensitivity else None
    planned: list[SiteCandidates] = []
    work = [0, *accumulate(_work(site) for site in first)]
    for number, site in enumerate(first):
        if progress is not None:
            progress(work[number], work[-1], site.name)
        sharing = [each for each in seen if owners[each.name] == site.name]
        each = SiteCandidates(site, sharing, _positions(site, cost), [])
        if known is not None:
            known.put_into(each)
        else:
            each.fitted = _candidates(damages, each, budget)
            first_pick = each.first_pick()
            if first_pick is not None:
                damages.measure(each, first_pick)
        planned.append(each)
    search = Search(trials, target, cost, seen, owners, planned, damages, latency)
    if latency is not None:
        priced = latency.priced([each.options() for each in planned], owners)
        search.seconds = {
            each.name: {c.layout: c.seconds or 0.0 for c in each.candidates} for each in priced
        }
    if known is None:
        search.measure_chosen(_CHOICES)
        if budget.save_sensitivity is not None:
            probe = trials.probe
            save_sensitivity(budget.save_sensitivity, planned, probe.measure, probe.samples)
    return search


def _candidates(damages: SiteDamages, each: SiteCandidates, budget: Budget | Keep) -> list[Fitted]:
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


def _work(site: Rewritable) -> int:
    """In proportion to the time that the candidates of a site take, roughly: layers a hundred times larger
    took ten times as long."""
    return isqrt(site.in_channels * site.out_channels)


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
