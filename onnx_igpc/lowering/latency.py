"""A budget of time: what each layout of each site costs on this machine, and whether the sum holds.

A candidate's cost is the time of its fastest lowering in the site's cut-out, with random weights. The
model's time is predicted as that of the dense model, with the dense time of every site replaced by
its candidate's: what the cut-outs have around the site cancels out. Where the model will run in int8,
all of these are times of quantized forms. The prediction is then checked on
the whole model with the chosen layouts, and the budget is moved until the measured time fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.lowering.cache import RaceCache
from onnx_igpc.lowering.cut_out import UnknownShapeError
from onnx_igpc.lowering.options import FLOAT32, Precision
from onnx_igpc.lowering.preparation import prepare
from onnx_igpc.lowering.race import as_run, race_all, race_models, structure
from onnx_igpc.lowering.selection import CHOSEN, FINAL_ROUNDS, Selection, select
from onnx_igpc.lowering.site_races import (
    DENSE,
    contenders_of,
    lowered,
    surroundings_of,
    uniform_choices,
)
from onnx_igpc.planning.knapsack import Choice, Options, Target, best_within, least_choice
from onnx_igpc.report.selection import LatencyReport, TriedShare
from onnx_igpc.runtime.setting import Setting
from onnx_igpc.sites.find import FoundSites, Rewritable
from onnx_igpc.sites.rewrite import kept_layout
from onnx_igpc.sites.subgraph import RewrittenModel

# Candidates of a site that are timed, from few weights to many.
_TIMED = 6
_CHECKS = 4
# Below this part of the target there is room for less damage.
_ROOM = 0.95

# Given a layout for every site, a copy of the model rewritten so, with random weights.
RandomRewrite = Callable[[Mapping[str, GroupLayout]], RewrittenModel]


@dataclass
class LatencyBudget:
    """Prices candidates in seconds (:meth:`priced`) and finds a choice whose measured time fits.

    ``summary`` is what the report says of it.
    """

    found: FoundSites
    setting: Setting
    cache: RaceCache
    rewrite: RandomRewrite
    progress: Progress | None = None
    precision: Precision = FLOAT32
    summary: LatencyReport | None = None
    dense: float = 0.0
    aim: float | None = None
    """The predicted share at which the measured one was within the target, once it is known."""

    def priced(self, planned: Sequence[Options], owners: Mapping[str, str]) -> list[Options]:
        """The sites with those of their candidates that were timed; the first is dense.

        ``owners`` maps each site to the one whose layout it shares: their times are added up.

        Raises:
            CheckFailedError: the provider is missing or fell back.
            ModelError: the model cannot be run.
        """
        picked = {site.name: _picked(site) for site in planned}
        layouts = {name: [each.layout for each in site.candidates] for name, site in picked.items()}
        times = self._times(layouts, owners)
        priced = []
        for site in picked.values():
            own = [times.get((site.name, index)) for index in range(len(site.candidates))]
            timed = [
                replace(each, seconds=seconds)
                for each, seconds in zip(site.candidates, own, strict=True)
                if seconds is not None
            ]
            if own[0] is None or len(timed) == 1:
                timed = [replace(site.candidates[0], seconds=0.0)]
            priced.append(replace(site, candidates=tuple(timed)))
        return priced

    def predicted(self, planned: Sequence[Options], target: Target) -> Choice:
        """The choice of least damage whose predicted time is within the target, or the fastest."""
        fixed = self.dense - sum(site.cost(0, target) for site in planned)
        try:
            return best_within(
                planned, replace(target, share=min(self.aim or target.share, 1.0)), fixed
            )
        except CheckFailedError:
            return least_choice(planned, target)

    def choose(
        self,
        planned: Sequence[Options],
        target: Target,
        layouts: Callable[[Choice], Mapping[str, GroupLayout]],
    ) -> Choice:
        """The choice of least damage whose measured time is within the target.

        Raises:
            CheckFailedError: there is none; the message says what was reached.
        """
        fixed = self.dense - sum(site.cost(0, target) for site in planned)
        share, best, before = self.aim or target.share, None, None
        tried: list[TriedShare] = []
        for _ in range(_CHECKS):
            try:
                choice = best_within(planned, replace(target, share=min(share, 1.0)), fixed)
                last = False
            except CheckFailedError:
                choice, last = least_choice(planned, target), True
            if before is not None and choice.indices == before.indices:
                break
            before = choice
            predicted = (choice.cost + fixed) / self.dense
            measured = self._measured(layouts(choice))
            tried.append(TriedShare(predicted=predicted, measured=measured, damage=choice.damage))
            fits = measured <= target.share
            if fits and (best is None or choice.damage < best[0].damage):
                best, self.aim = (choice, tried[-1]), share
            if (last and not fits) or (fits and measured >= _ROOM * target.share) or share > 1.0:
                break
            share = predicted * target.share / measured
        if best is None:
            least = min(each.measured for each in tried)
            raise CheckFailedError(
                f"`target` {target} cannot be reached on {self.setting.label}: the least that was "
                f"measured is {100 * least:.1f}%"
            )
        choice, taken = best
        self.summary = LatencyReport(
            precision=None if self.precision == FLOAT32 else self.precision,
            predicted=taken.predicted,
            measured=taken.measured,
            damage=taken.damage,
            dense_seconds=self.dense,
            tried=[*(self.summary.tried if self.summary else ()), *tried],
        )
        return choice

    def _times(
        self, layouts: Mapping[str, Sequence[GroupLayout]], owners: Mapping[str, str]
    ) -> dict[tuple[str, int], float]:
        """Seconds by site and candidate: the fastest lowering, sites that share it added up."""
        cuts: dict[str, dict[str, OpenModel]] = {}
        for index in range(1, max((len(each) for each in layouts.values()), default=1)):
            self._cut(layouts, owners, index, cuts)
        times: dict[tuple[str, int], float] = {}
        for done, (name, contenders) in enumerate(cuts.items()):
            if self.progress is not None:
                self.progress(done, len(cuts), f"racing layouts of {name}")
            seconds = race_all(contenders, self.setting, self.cache, self.precision)
            for index, value in _by_candidate(seconds).items():
                key = owners.get(name, name), index
                times[key] = times.get(key, 0.0) + value
        return times

    def _cut(
        self,
        layouts: Mapping[str, Sequence[GroupLayout]],
        owners: Mapping[str, str],
        index: int,
        cuts: dict[str, dict[str, OpenModel]],
    ) -> None:
        """Add the cut-outs of every site's candidate ``index`` to those of the site."""

        def layout(site: Rewritable) -> GroupLayout:
            own = layouts.get(owners.get(site.name, site.name))
            if own:
                return own[min(index, len(own) - 1)]
            return kept_layout(site, "not a candidate")

        model = self._prepared({site.name: layout(site) for site in self.found.rewritable})
        if model is None:
            return
        surroundings, sites = surroundings_of(model, self.setting)
        if not self.dense:
            dense = lowered(model, uniform_choices(sites, DENSE))
            dense = as_run(dense, self.setting, self.precision)
            seconds = race_models([dense], self.setting, FINAL_ROUNDS)
            self.dense = float(np.median(seconds))
        for site in sites:
            own = layouts.get(owners.get(site.name, site.name), ())
            if index >= len(own):
                continue
            try:
                contenders, _ = contenders_of(surroundings, site)
            except UnknownShapeError:
                continue
            known = cuts.setdefault(site.name, {})
            dense = contenders.pop(DENSE)
            reference = known.setdefault(f"0:{DENSE}", dense)
            if structure(dense.proto) != structure(reference.proto):
                known[f"{index}:{DENSE}"] = dense
            known.update((f"{index}:{label}", cut) for label, cut in contenders.items())

    def _prepared(self, layouts: Mapping[str, GroupLayout]) -> RewrittenModel | None:
        """The model rewritten with random weights, BatchNormalization folded."""
        tried = self.rewrite(layouts)
        if not tried.records:
            return None
        prepare(tried)
        return tried

    def _measured(self, layouts: Mapping[str, GroupLayout]) -> float:
        """The time of the whole model with these layouts, as a share of the dense model's."""
        model = self._prepared(layouts)
        if model is None:
            return 1.0
        selection: Selection = select(
            model, self.setting, self.cache, precision=self.precision, progress=self.progress
        )
        if selection.whole is None:
            return 1.0
        return selection.whole.seconds[CHOSEN] / selection.whole.seconds[DENSE]


def _by_candidate(seconds: Mapping[str, float]) -> dict[int, float]:
    """The least time of each candidate, of ``{index}:{lowering}``, in the surroundings of the first.

    What stands around a site depends on its neighbours' layouts, which change with the candidate.
    Where they do, the dense form was raced in both surroundings, and the difference is taken off.
    """
    least: dict[int, float] = {}
    for name, value in seconds.items():
        index, label = name.split(":")
        if label != DENSE:
            around = seconds.get(f"{index}:{DENSE}", seconds[f"0:{DENSE}"])
            value = max(value - around + seconds[f"0:{DENSE}"], 0.0)
        elif int(index):
            continue
        least[int(index)] = min(value, least.get(int(index), value))
    return least


def _picked(site: Options) -> Options:
    """Dense and at most six others, spread evenly from few weights to many."""
    others = sorted(site.candidates[1:], key=lambda each: each.weights)
    if not others:
        return site
    picks = np.unique(np.linspace(0, len(others) - 1, _TIMED).round().astype(int))
    return replace(site, candidates=(site.candidates[0], *(others[int(i)] for i in picks)))
