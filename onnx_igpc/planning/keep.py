"""Planning for a promise: the least of what is minimised with which it is likely to hold.

The share that is left is searched for by trials: whole plans, fitted and measured on data left out of the
fits. What then comes out on held-out data is measured by the caller, plan by plan, until one holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.graph.cost import ModelCost
from onnx_igpc.planning.knapsack import Choice, least_choice
from onnx_igpc.planning.options import Keep
from onnx_igpc.planning.search import Plan, Pricing, Search, open_search
from onnx_igpc.planning.trials import Trials
from onnx_igpc.report.selection import TriedPlan

# Trials that halve the range of shares, and plans that are offered after them, nearer to dense each.
_TRIALS = 6
_OFFERS = 4
# A range of shares that is not worth halving again.
_CLOSE = 0.015


def plans_that_keep(
    trials: Trials,
    cost: ModelCost,
    keep: Keep,
    samples: int,
    progress: Progress | None = None,
    latency: Pricing | None = None,
) -> Iterator[Plan]:
    """Plans from the smallest that is likely to keep the promise on, each nearer to dense.

    Args:
        trials: the model, its sites, and the data to choose by.
        cost: of the model as it is.
        keep: the promise, and what is made least.
        samples: on which it will be measured.
        progress: called with (trials done, trials in all, what is done).
        latency: what measures times, where time is made least.

    Raises:
        CheckFailedError: nothing that was tried is likely to keep it. Others as
            :func:`~onnx_igpc.planning.search.open_search`.
    """
    search = open_search(trials, cost, keep, keep.quantity, progress, latency)
    least = least_choice(search.options(), search.target)
    low, high = _whole_share(search, least), 1.0
    tried: list[TriedPlan] = []
    holding: list[Choice] = []
    share = low
    for number in range(_TRIALS):
        if progress is not None:
            progress(number, _TRIALS, f"{keep.kept} at {share:.0%} of {keep.minimize}")
        choice = _chosen(search, share)
        trial, plan = search.try_out(choice)
        tried.append(plan)
        if keep.kept.likely(trial.damage, samples):
            high = share
            holding.append(choice)
        else:
            low = share
            search.correct(choice, trial)
        if high - low <= _CLOSE:
            break
        share = (low + high) / 2
    ordered = sorted(tried, key=lambda each: -each.measured)
    search.aim_at(replace(search.target, share=high))
    if not holding:
        raise CheckFailedError(_nothing(keep, max(tried, key=lambda each: each.share)))
    yield search.plan(holding[-1], keep, ordered)
    for _ in range(1, _OFFERS):
        # A third of the way to dense each time: where the promise nearly held, little is given up.
        high += (1.0 - high) / 3
        choice = _chosen(search, high)
        if not any(choice.indices):
            return
        yield search.plan(choice, keep, ordered)


def _nothing(keep: Keep, nearest: TriedPlan) -> str:
    measured = f"damage {nearest.measured:.3g}"
    if nearest.agreement is not None:
        measured = f"agreement {nearest.agreement:.1%}"
    return (
        f"nothing that was tried keeps {keep.kept}: the nearest has {measured} on data left out of its "
        f"fits, with {nearest.share:.1%} of {keep.minimize} left"
    )


def _chosen(search: Search, share: float) -> Choice:
    search.aim_at(replace(search.target, share=share))
    search.measure_chosen(2)
    # Times are those that single layers add up to: the whole is raced when it is written.
    return search.predicted()


def _whole_share(search: Search, choice: Choice) -> float:
    """The share of the target's quantity that a choice leaves, the rest of the model counted as it is."""
    options = search.options()
    fixed = search.fixed(options)
    dense = sum(each.cost(0, search.target) for each in options)
    return min((choice.cost + fixed) / max(dense + fixed, 1e-300) + 1e-6, 1.0)
