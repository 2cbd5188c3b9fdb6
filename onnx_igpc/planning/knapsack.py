"""Choosing a layout for every site under a budget: what costs least and hurts least.

Each site has candidates with a cost and a damage; one of each site is chosen so that the costs stay
within the budget and the sum of damages is least: a multiple-choice knapsack, see
:mod:`onnx_igpc.planning.multiple_choice`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_igpc.errors import CheckFailedError, UsageError, did_you_mean
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.planning.multiple_choice import least_damage

TARGETS = ("pointwise-parameters", "pointwise-macs", "parameters", "macs", "latency")
_CURVE_POINTS = 24


@dataclass(frozen=True)
class Target:
    """A budget: ``quantity`` is one of :data:`TARGETS`, ``share`` of what it is before, 0 to 1."""

    quantity: str
    share: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``pointwise-parameters=40%``.

        Raises:
            UsageError: an unknown quantity, or a share that is not between 0 and 100 %.
        """
        found = re.fullmatch(r"\s*([a-z-]+)\s*=\s*([0-9.]+)\s*%\s*", text)
        if found is None or found[1] not in TARGETS:
            quantity = text.partition("=")[0].strip()
            raise UsageError(
                f"`target` {text!r} is not understood: say QUANTITY=SHARE%, as in "
                f"pointwise-parameters=40%, with one of {', '.join(TARGETS)}"
                f"{did_you_mean(quantity, TARGETS) if quantity not in TARGETS else ''}"
            )
        try:
            share = float(found[2]) / 100.0
        except ValueError:
            share = -1.0
        if not 0.0 < share <= 1.0:
            raise UsageError(f"`target` {text!r}: the share must lie between 0 and 100 %")
        return cls(found[1], share)

    @property
    def counts_macs(self) -> bool:
        return self.quantity.endswith("macs")

    @property
    def is_latency(self) -> bool:
        """Whether the costs are measured seconds."""
        return self.quantity == "latency"

    @property
    def whole_model(self) -> bool:
        return not self.quantity.startswith("pointwise")

    def __str__(self) -> str:
        return f"{self.quantity}={100 * self.share:g}%"


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to write a site; ``layout.kept_reason`` is set where it stays dense.

    ``error`` is the site's relative error, ``damage`` what the network's output suffers when this
    site alone is written so, ``seconds`` its measured time where the budget is one of time.
    """

    layout: GroupLayout
    error: float
    damage: float
    seconds: float | None = None

    @property
    def weights(self) -> int:
        return self.layout.weights


@dataclass(frozen=True, eq=False)
class Options:
    """The candidates of one site; ``positions`` is how often its matrix is applied (batch 1)."""

    name: str
    positions: int
    candidates: tuple[Candidate, ...]

    def timed(self, seconds: Mapping[GroupLayout, float]) -> Options:
        """Those of the candidates whose time is known, dense first."""
        kept = self.candidates[0]
        own = [replace(kept, seconds=seconds.get(kept.layout, 0.0))]
        own += [
            replace(each, seconds=seconds[each.layout])
            for each in self.candidates[1:]
            if each.layout in seconds
        ]
        return replace(self, candidates=tuple(own))

    def cost(self, index: int, target: Target) -> float:
        """Weights, multiply-accumulates or seconds of a candidate."""
        if target.is_latency:
            seconds = self.candidates[index].seconds
            assert seconds is not None
            return seconds
        return self.candidates[index].weights * (self.positions if target.counts_macs else 1)


@dataclass(frozen=True)
class Choice:
    """A candidate of every site: indices, the sum of their costs and of their damages."""

    indices: tuple[int, ...]
    cost: float
    damage: float


def choose(sites: Sequence[Options], target: Target, budget: float) -> Choice | None:
    """The choice of least damage whose costs are within ``budget``; ``None`` if there is none."""
    indices = least_damage(
        [[site.cost(i, target) for i in range(len(site.candidates))] for site in sites],
        [[candidate.damage for candidate in site.candidates] for site in sites],
        budget,
    )
    if indices is None:
        return None
    cost = sum(site.cost(index, target) for site, index in zip(sites, indices, strict=True))
    damage = sum(site.candidates[index].damage for site, index in zip(sites, indices, strict=True))
    return Choice(tuple(indices), cost, damage)


def best_within(sites: Sequence[Options], target: Target, fixed: float) -> Choice:
    """The choice for ``target``; ``fixed`` is the cost of everything that is no candidate.

    Raises:
        CheckFailedError: no choice is within the target; the message names the least there is.
    """
    dense = sum(_dense_cost(site, target) for site in sites)
    total = dense + (fixed if target.whole_model else 0)
    budget = target.share * total - (fixed if target.whole_model else 0)
    choice = choose(sites, target, budget)
    if choice is None:
        least = sum(min(s.cost(i, target) for i in range(len(s.candidates))) for s in sites)
        reachable = (least + (fixed if target.whole_model else 0)) / (total or 1)
        raise CheckFailedError(
            f"`target` {target} cannot be reached: the least is {100 * reachable:.1f}%"
        )
    return choice


def least_choice(sites: Sequence[Options], target: Target) -> Choice:
    """The candidate of least cost for every site."""
    indices = tuple(
        min(range(len(site.candidates)), key=lambda i: site.cost(i, target)) for site in sites
    )
    cost = sum(site.cost(index, target) for site, index in zip(sites, indices, strict=True))
    damage = sum(site.candidates[index].damage for site, index in zip(sites, indices, strict=True))
    return Choice(indices, cost, damage)


def trade_off(sites: Sequence[Options], target: Target) -> list[tuple[float, float]]:
    """(share of the dense cost, damage) of the best choices from the least cost to dense."""
    dense = sum(_dense_cost(site, target) for site in sites)
    least = sum(min(s.cost(i, target) for i in range(len(s.candidates))) for s in sites)
    curve = []
    for budget in np.linspace(least, dense, _CURVE_POINTS):
        choice = choose(sites, target, float(budget if target.is_latency else np.ceil(budget)))
        if choice is not None:
            curve.append((choice.cost / (dense or 1), choice.damage))
    return curve


def _dense_cost(site: Options, target: Target) -> float:
    if target.is_latency:
        return site.cost(0, target)
    layout = site.candidates[0].layout
    return layout.dense_weights * (site.positions if target.counts_macs else 1)


def interpolate_damage(
    errors: Sequence[float], measured: Sequence[tuple[float, float]]
) -> list[float]:
    """Damages for ``errors`` from (error, damage) pairs measured at some of them.

    Linear between logarithms, never falling as the error grows; below the least and above the largest
    measured error the damage is in proportion to it.
    """
    known = sorted((max(e, 1e-12), max(d, 1e-15)) for e, d in measured)
    log_e = np.log([e for e, _ in known])
    log_d = np.maximum.accumulate(np.log([d for _, d in known]))
    damages = []
    for error in errors:
        if error <= 0.0:
            damages.append(0.0)
            continue
        at = float(np.log(max(error, 1e-12)))
        if not log_e[0] <= at <= log_e[-1]:
            end = 0 if at < log_e[0] else -1
            damages.append(float(np.exp(log_d[end] + at - log_e[end])))
        else:
            damages.append(float(np.exp(np.interp(at, log_e, log_d))))
    return damages
