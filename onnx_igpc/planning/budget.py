"""Planning a whole model under a budget: candidates of every site, their damage, the best choice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnx_igpc.calibration.collect import collect_moments, untapped_reason
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.data.batches import Data
from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import DataError, UsageError
from onnx_igpc.fitting.calibrated import corrected_bias
from onnx_igpc.fitting.moments import Moments, SiteStatistics
from onnx_igpc.fitting.weights import igpc_matrix
from onnx_igpc.graph.cost import ModelCost
from onnx_igpc.graph.model import OpenModel, PathLike, write_atomically
from onnx_igpc.graph.view import GraphView
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.planning.candidates import SIZES, FittedLayout, candidate_layouts
from onnx_igpc.planning.grouping import better_grouping, learned_published
from onnx_igpc.planning.knapsack import (
    Candidate,
    Choice,
    Options,
    Target,
    best_within,
    interpolate_damage,
    trade_off,
)
from onnx_igpc.planning.options import Budget
from onnx_igpc.planning.sensitivity import DamageProbe
from onnx_igpc.report.sections import LatencyReport, SelectionReport
from onnx_igpc.sites.batch_norm import following_batch_norm
from onnx_igpc.sites.find import FoundSites, Rewritable
from onnx_igpc.sites.rewrite import kept_layout

SENSITIVITY_VERSION = 1
# Candidates of a site whose damage is measured; that of the others lies between.
_MEASURED = 4
_UNOBSERVED = "it cannot be observed on the data, so that it stays dense under a budget"


class Pricing(Protocol):
    """What measures candidates in seconds, for a budget of time; lowering has it."""

    summary: LatencyReport | None

    def priced(self, planned: Sequence[Options], owners: Mapping[str, str]) -> list[Options]:
        """The sites with those of their candidates that were timed; the first is dense."""

    def choose(
        self,
        planned: Sequence[Options],
        target: Target,
        layouts: Callable[[Choice], Mapping[str, GroupLayout]],
    ) -> Choice:
        """The choice of least damage whose measured time is within the target."""


@dataclass
class Plan:
    """A layout for every site by name, and what the report says of how it was chosen."""

    layouts: dict[str, GroupLayout]
    summary: SelectionReport | None = None


def plan_budget(
    model: OpenModel,
    found: FoundSites,
    data: Data,
    cost: ModelCost,
    budget: Budget,
    progress: Progress | None = None,
    latency: Pricing | None = None,
) -> Plan:
    """Choose a layout for every site so that the target holds and the predicted damage is least.

    Args:
        model: the model before the rewrite, which is not changed.
        found: the sites of the model.
        data: calibration data.
        cost: of the model as it is.
        budget: target, family, grouping.
        progress: called with (sites done, sites in all, name of the next).
        latency: what measures times, for a target of latency.

    Raises:
        CheckFailedError: the target cannot be reached.
        UsageError: measurements to reuse that belong to another model.
        DataError: data that cannot be used.
    """
    sites, target = found.rewritable, budget.quantity
    seen = [site for site in sites if untapped_reason(site) is None]
    owners = _owners(seen)
    first = [site for site in seen if owners[site.name] == site.name]
    known = _load(budget.sensitivity) if budget.sensitivity else {}
    moments = collect_moments(model, [Tap.of(site) for site in first], data)
    probe = None if budget.sensitivity else DamageProbe(model, first, data)
    planned: list[Options] = []
    measured: dict[str, Any] = {}
    for number, site in enumerate(first):
        if progress is not None:
            progress(number, len(first), site.name)
        fitted = _candidates(found.view, site, moments[Tap.of(site)], budget)
        entry = known.get(site.name) if probe is None else None
        points = _points(site, fitted, moments[Tap.of(site)], probe, entry)
        measured[site.name] = {"weight": _digest(site), "points": points}
        planned.append(_options(site, fitted, points, cost))
    if budget.save_sensitivity is not None and probe is not None:
        _save(Path(budget.save_sensitivity), probe, measured)

    def layouts(choice: Choice) -> dict[str, GroupLayout]:
        chosen = {
            each.name: each.candidates[index].layout
            for each, index in zip(planned, choice.indices, strict=True)
        }
        result = {site.name: chosen[owners[site.name]] for site in seen}
        return {
            site.name: result.get(site.name) or kept_layout(site, _UNOBSERVED) for site in sites
        }

    if latency is not None:
        planned = latency.priced(planned, owners)
        choice = latency.choose(planned, target, layouts)
    else:
        choice = best_within(planned, target, _fixed(planned, seen, cost, target))
    summary = SelectionReport(
        target=str(target),
        family=budget.family,
        grouping=budget.grouping,
        measure=probe.measure if probe else "read from a file",
        samples=probe.samples if probe else None,
        predicted_damage=choice.damage,
        curve=trade_off(planned, target),
        chosen=(choice.cost / (_dense_cost(planned, target) or 1), choice.damage),
        damage_by_site={
            each.name: each.candidates[index].damage
            for each, index in zip(planned, choice.indices, strict=True)
        },
        latency=latency.summary if latency is not None else None,
    )
    return Plan(layouts(choice), summary)


def learned_layouts(
    model: OpenModel,
    found: FoundSites,
    data: Data,
    layouts: Mapping[str, GroupLayout],
) -> dict[str, GroupLayout]:
    """The planned layouts by site, their groups made of channels that belong together where that fits
    better; as planned where the site cannot be observed.

    Raises:
        DataError: data that cannot be used.
    """
    layouts = dict(layouts)
    seen = [
        site
        for site in found.rewritable
        if untapped_reason(site) is None and layouts[site.name].kept_reason is None
    ]
    owners = _owners(seen)
    first = [site for site in seen if owners[site.name] == site.name]
    moments = collect_moments(model, [Tap.of(site) for site in first], data)
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


def _candidates(
    view: GraphView, site: Rewritable, moments: Moments, budget: Budget
) -> list[FittedLayout]:
    """Everything but dense, fitted; only what no other beats in weights and error."""
    norm = following_batch_norm(view, site.ref)
    found = candidate_layouts(
        site.weight_matrix().astype(np.float64),
        moments.second,
        norm.factor if norm is not None else None,
        SIZES if budget.family == "extended" else (),
        grouping=budget.grouping,
    )
    return [each for each in found if each.layout.kept_reason is None]


def _points(
    site: Rewritable,
    fitted: Sequence[FittedLayout],
    moments: Moments,
    probe: DamageProbe | None,
    known: Mapping[str, Any] | None,
) -> list[list[float]]:
    """(error, damage) of a few candidates, measured now or read."""
    if probe is None:
        if not isinstance(known, dict) or known.get("weight") != _digest(site):
            raise UsageError(
                f"`sensitivity` has no measurement of {site.name!r} as it is in this model: "
                "measure again with `save_sensitivity`"
            )
        return _stated_points(site, known.get("points"))
    ordered = sorted(fitted, key=lambda each: each.error)
    picks = np.unique(np.linspace(0, len(ordered) - 1, _MEASURED).round().astype(int))
    statistics = SiteStatistics.unchanged(moments)
    bias = site.bias.values() if site.bias is not None else None
    points = []
    for pick in picks if ordered else ():
        each = ordered[int(pick)]
        matrix = igpc_matrix(each.layout, each.weights)
        offset = corrected_bias(site.weight_matrix(), matrix, bias, statistics)
        damage = probe.damage(site, matrix, offset)
        if not np.isfinite(damage):
            raise DataError(f"the output is not finite when {site.name!r} is rewritten")
        points.append([each.error, damage])
    return points


def _stated_points(site: Rewritable, stated: object) -> list[list[float]]:
    """The pairs of a file of measurements, which must be finite numbers, at least one."""
    try:
        points = np.asarray(stated, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise UsageError(
            f"`sensitivity` holds no pairs of error and damage for {site.name!r}: measure again"
        )
    return [[float(error), float(damage)] for error, damage in points]


def _options(
    site: Rewritable,
    fitted: Sequence[FittedLayout],
    points: Sequence[Sequence[float]],
    cost: ModelCost,
) -> Options:
    """The site's candidates with dense first, whose error and damage are zero."""
    dense = Candidate(kept_layout(site, "dense costs least damage within the budget"), 0.0, 0.0)
    damages = [0.0] * len(fitted)
    if fitted:
        pairs = [(error, damage) for error, damage in points]
        damages = interpolate_damage([each.error for each in fitted], pairs)
    candidates = [
        Candidate(each.layout, each.error, damage)
        for each, damage in zip(fitted, damages, strict=True)
        if each.layout.weights < dense.weights
    ]
    node = cost.nodes.get(site.ref.proto.output[0])
    positions = 1
    if node is not None and node.macs:
        positions = max(round(node.macs / dense.weights), 1)
    return Options(site.name, positions, (dense, *candidates))


def _dense_cost(planned: Sequence[Options], target: Target) -> float:
    return sum(each.cost(0, target) for each in planned)


def _fixed(
    planned: Sequence[Options], sites: Sequence[Rewritable], cost: ModelCost, target: Target
) -> float:
    """What the model costs apart from the candidates; a bias that a rewrite may add counts."""
    if not target.whole_model:
        return 0
    whole = cost.macs if target.counts_macs else cost.parameters
    added = 0
    if not target.counts_macs:
        added = sum(site.out_channels or 0 for site in sites if not site.has_bias)
    return max(whole + added - _dense_cost(planned, target), 0)


def _owners(sites: Sequence[Rewritable]) -> dict[str, str]:
    """The first site with the same weight, by name: sites that share a weight share the layout."""
    first: dict[tuple[int, str], str] = {}
    owners = {}
    for site in sites:
        owners[site.name] = first.setdefault((id(site.weight.root), _digest(site)), site.name)
    return owners


def _digest(site: Rewritable) -> str:
    return hashlib.sha256(np.ascontiguousarray(site.weight_matrix()).tobytes()).hexdigest()[:16]


def _save(path: Path, probe: DamageProbe, measured: Mapping[str, Any]) -> None:
    data = {
        "version": SENSITIVITY_VERSION,
        "measure": probe.measure,
        "samples": probe.samples,
        "sites": measured,
    }
    write_atomically(path, lambda file: file.write(json.dumps(data, indent=2).encode()))


def _load(path: PathLike) -> Mapping[str, Any]:
    """The measurements in a file by site.

    Raises:
        UsageError: the file cannot be read or is of another kind.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["version"] != SENSITIVITY_VERSION:
            raise UsageError(f"`sensitivity` {path} is of version {data['version']}: measure again")
        sites: Mapping[str, Any] = data["sites"]
        if not isinstance(sites, dict):
            raise TypeError("sites is not an object")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"`sensitivity` {path} cannot be read: {error}") from error
    return sites
