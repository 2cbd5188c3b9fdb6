"""Every way in which one layer may be rewritten, with its error: what a budget chooses from.

Dense, the published V2 at several sizes of group, low rank, and the extended family at a dozen sizes
with the number of groups that suits each. The extended family is not behind its corners: where a
published layout or low rank is best at its size, it is itself the candidate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from onnx_igpc.fitting.output_metric import OutputMetric, fit_in_metric
from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.layout.extended import dense_layout
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.planning.clustering import Clustering
from onnx_igpc.planning.extended_search import ExtendedSearch, Trial
from onnx_igpc.planning.grouping import Grouping, learned_published

SIZES = (0.04, 0.06, 0.08, 0.12, 0.16, 0.2, 0.25, 0.33, 0.4, 0.5, 0.6, 0.75)
"""Parts of C F at which the extended family offers a member."""

CHANNELS_PER_GROUP = (4, 8, 12, 16, 24, 32, 64, 128)
"""Sizes of group at which published V2 is offered, besides those that suit the sizes asked for."""

K_GROUPS = (2, 4, 8)

_ROUGH_TOLERANCE = 3e-2


class _Limits(NamedTuple):
    """How far behind the extended family rough fits of a published layout may be.

    A rough fit's error is up to 30 % above that of the full one. Groups are learned where contiguous
    ones are not further behind than ``worth_learning``, and the better grouping is fitted in full
    where it is not further than ``promising``; both of them where they are as near to one another as
    ``close``.
    """

    worth_learning: float
    promising: float
    close: float


_SMALL_LIMITS = _Limits(2.0, 1.35, 1.1)
# A layer with more channels or filters than this takes longer: published layouts are held against
# what the extended family would have at just their size.
_MEDIUM = 64
_MEDIUM_LIMITS = _Limits(1.5, 1.12, 1.0)
# Still longer: fitted less closely.
_LARGE = 192
_LARGE_LIMITS = _Limits(1.25, 1.08, 1.0)
_TOLERANCE_LARGE = 4e-3
# A layer that takes long has no more of them tried after so many that are behind.
_MOST_BEHIND = 2
# A trial that leaves more than this times the error of the best one is not polished.
_WORTH_POLISHING = 1.1
# Groups of fewer channels than this part leave so much error that a rough fit says enough.
_MOST_GROUPS = 32
# Below this part of C F, no further sizes of V2 are tried than those asked for.
_LEAST_WITH_SUM = 0.2


class FittedLayout(NamedTuple):
    """One way to rewrite a layer.

    ``weights`` are float64; for the kept dense layer, W itself. ``error`` is the fitted objective,
    relative, see
    :meth:`~onnx_igpc.fitting.output_metric.OutputMetric.error`.
    """

    layout: GroupLayout
    weights: IgpcWeights
    error: float


def candidate_layouts(
    weight: np.ndarray,
    moments: np.ndarray | None = None,
    filter_scale: np.ndarray | OutputMetric | None = None,
    sizes: Sequence[float] = SIZES,
    *,
    grouping: Grouping = "learned",
    channels_per_group: Sequence[int] = CHANNELS_PER_GROUP,
    tolerance: float = 1e-3,
) -> list[FittedLayout]:
    """Ways to rewrite a layer, from few weights to many; the last is the dense layer.

    Each has less error than all before it: what others are better than at equal or fewer weights is
    left out, as is a published layout that a rough fit shows to be far behind. Deterministic.

    Args:
        weight: W, shape (F, C).
        moments: S, shape (C, C), symmetric and positive semi-definite; the identity if ``None``.
        filter_scale: d, shape (F,), how much an error in each filter counts; ones if ``None``. Or a
            metric in which errors in different filters matter together.
        sizes: numbers of weights to offer, as parts of C F.
        grouping: ``"learned"`` chooses the channels of each group; this needs a Gather, in front of
            the layer or taken over by its producer. ``"contiguous"`` leaves them in order.
        channels_per_group: where to offer published V2, besides at the given sizes.
        tolerance: of the fits, see :func:`~onnx_igpc.fitting.fit.fit_layout`.

    Raises:
        ValueError: shapes that do not belong together.
    """
    F, C = weight.shape
    if moments is not None and moments.shape != (C, C):
        raise ValueError(f"moments have shape {moments.shape}, not (C, C)")
    weight = np.asarray(weight, dtype=np.float64)
    metric = filter_scale
    if not isinstance(metric, OutputMetric):
        metric = OutputMetric.of_scale(metric, F)
    dense = FittedLayout(dense_layout(C, F, "kept: best at this size"), IgpcWeights((weight,)), 0.0)
    budgets = sorted({int(size * C * F) for size in sizes})
    with threadpool_limits(1):
        search = ExtendedSearch(metric.whitened(weight), moments, K_GROUPS, grouping)
        if max(C, F) > _LARGE:
            tolerance = max(tolerance, _TOLERANCE_LARGE)
        layer = _Layer(weight, moments, metric, tolerance, search.clustering)
        found = _extended(search, budgets, layer)
        widths = {*channels_per_group, *_suitable_widths(C, F, budgets)}
        found += _published(layer, widths, grouping, found)
    return [*_front(each for each in found if each.layout.weights < C * F), dense]


def best_fitted(candidates: Sequence[FittedLayout], weights: int) -> FittedLayout | None:
    """The candidate of least error with at most so many weights; ``None`` if all have more."""
    within = [each for each in candidates if each.layout.weights <= weights]
    return min(within, key=lambda each: each.error, default=None)


def _extended(search: ExtendedSearch, budgets: Sequence[int], layer: _Layer) -> list[FittedLayout]:
    """The best trial of each budget."""
    found = []
    for trials in search.trials(budgets):
        ordered = sorted(trials, key=lambda trial: trial.error)
        least = ordered[0].error if ordered else 0.0
        leading = [
            trial
            for trial in ordered[: search.polished_trials]
            if trial.error <= _WORTH_POLISHING * least
        ]
        # Low rank is exact: it stays in, whatever a rough trial says.
        leading += [trial for trial in trials if _is_low_rank(trial)]
        if not leading:
            continue
        best = min(
            (search.polished(trial, layer.tolerance) for trial in leading),
            key=lambda trial: trial.error,
        )
        layout, weights = search.layout(best, layer.metric)
        found.append(FittedLayout(layout, weights, best.error / max(search.low_rank.total, 1e-300)))
    return found


def _is_low_rank(trial: Trial) -> bool:
    return len(trial.problem.columns) == 1


def _suitable_widths(C: int, F: int, budgets: Sequence[int]) -> list[int]:
    """For each budget, the most channels per group of a V2 with the sum that keeps to it.

    With the sum V2 is often ahead where many weights are left, and never where few are.
    """
    found: list[int] = []
    for budget in budgets:
        width = budget // (2 * F)
        if C >= F and budget >= _LEAST_WITH_SUM * C * F and C > 2 * width:
            while width > 1 and plan_layout(C, F, width).weights > budget:
                width -= 1
            if all(abs(width - known) > width // 8 for known in (*CHANNELS_PER_GROUP, *found)):
                found.append(max(width, 1))
    return found


def _published(
    layer: _Layer,
    channels_per_group: Collection[int],
    grouping: Grouping,
    extended: Sequence[FittedLayout],
) -> list[FittedLayout]:
    """Published V2 wherever the extended family is not far ahead of it.

    In layers that take long, neither where V2 would be far smaller than its smallest member.
    """
    F, C = layer.weight.shape
    larger = max(C, F)
    limits = (
        _LARGE_LIMITS if larger > _LARGE else _MEDIUM_LIMITS if larger > _MEDIUM else _SMALL_LIMITS
    )
    smallest = min((each.layout.weights for each in extended), default=0)
    found: list[FittedLayout] = []
    behind = 0
    # The likeliest first: wide groups that need no copies of channels.
    for ch in sorted(channels_per_group, key=lambda ch: (C % ch > 0, -ch)):
        layout = plan_layout(C, F, ch)
        if not layout.replaced or layout.weights >= layout.dense_weights:
            continue
        if larger <= _MEDIUM:
            rival = best_fitted(extended, layout.weights)
            error = np.inf if rival is None else rival.error
        elif 2 * layout.weights < smallest:
            continue
        else:
            error = _error_between(extended, layout.weights)
        fitted = layer.promising(layout, grouping, limits, error)
        found += fitted
        behind = 0 if fitted else behind + 1
        if larger > _MEDIUM and layout.l is not None and behind == _MOST_BEHIND:
            break
    return found


def _error_between(candidates: Sequence[FittedLayout], weights: int) -> float:
    """The error of candidates at a number of weights: between theirs, and nothing, by logarithms."""
    front = _front(candidates)
    known = [0, *(each.layout.weights for each in front)]
    errors = [1.0, *(max(each.error, 1e-12) for each in front)]
    return float(np.exp(np.interp(weights, known, np.log(errors))))


@dataclass(frozen=True)
class _Layer:
    """What layouts are fitted to, and how well."""

    weight: np.ndarray
    moments: np.ndarray | None
    metric: OutputMetric
    tolerance: float
    clustering: Clustering

    def fitted(self, layout: GroupLayout, tolerance: float) -> FittedLayout:
        given = (self.weight, self.moments, self.metric)
        return self.candidate(layout, fit_in_metric(layout, *given, tolerance=tolerance))

    def candidate(self, layout: GroupLayout, weights: IgpcWeights) -> FittedLayout:
        error = self.metric.error(layout, weights, self.weight, self.moments)
        return FittedLayout(layout, weights, error)

    def promising(
        self, layout: GroupLayout, grouping: Grouping, limits: _Limits, rival: float
    ) -> list[FittedLayout]:
        """The better grouping of a published layout, fitted; both where it is not clear which it is.

        None where rough fits are too far behind an error of ``rival``.
        """
        rough = [self.fitted(layout, _ROUGH_TOLERANCE)]
        if grouping == "learned" and rough[0].error <= limits.worth_learning * rival:
            given = (self.weight, self.moments, self.metric.scale)
            learned = learned_published(layout, *given, self.clustering)
            rough.append(self.fitted(learned, _ROUGH_TOLERANCE))
        least = min(each.error for each in rough)
        most = min(limits.close * least, limits.promising * rival)
        near = [each for each in rough if each.error <= most]
        if layout.l is None or layout.k.groups > _MOST_GROUPS:
            return near
        return [self.fitted(each.layout, self.tolerance) for each in near]


def _front(candidates: Iterable[FittedLayout]) -> list[FittedLayout]:
    """Without those that another one is not worse than, at no more weights."""
    kept: list[FittedLayout] = []
    for each in sorted(candidates, key=lambda each: (each.layout.weights, each.error)):
        if not kept or each.error < kept[-1].error:
            kept.append(each)
    return kept
