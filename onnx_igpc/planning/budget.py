"""Planning a whole model under a budget: the least damage within the target.

Single damages are added up to predict that of the whole. What is chosen is then fitted and measured as
a whole, the single damages are corrected by what came out, and the choice is made again, until
prediction and measurement agree.
"""

from __future__ import annotations

from onnx_igpc.data.progress import Progress, portion
from onnx_igpc.graph.cost import ModelCost
from onnx_igpc.planning.knapsack import Choice
from onnx_igpc.planning.options import Budget
from onnx_igpc.planning.search import Plan, Pricing, Search, open_search
from onnx_igpc.planning.trials import Trials
from onnx_igpc.report.selection import TriedPlan

# Of the time, for the candidates of single sites; the rest is for whole plans.
_SINGLE = 0.7
# Whole plans that are tried.
_TRIALS = 3
# How far a prediction may be from what is measured.
_AGREES = 0.25


def plan_budget(
    trials: Trials,
    cost: ModelCost,
    budget: Budget,
    progress: Progress | None = None,
    latency: Pricing | None = None,
) -> Plan:
    """Choose a layout for every site so that the target holds and the damage is least.

    Arguments and errors are those of :func:`~onnx_igpc.planning.search.open_search`.
    """
    singly = portion(progress, 0.0, _SINGLE)
    search = open_search(trials, cost, budget, budget.quantity, singly, latency)
    choice, tried = _settled(search, portion(progress, _SINGLE, 1.0))
    return search.plan(choice, budget, tried)


def _settled(search: Search, progress: Progress | None) -> tuple[Choice, list[TriedPlan]]:
    """The choice whose measured damage is least among those that were tried, which is the last."""
    if not search.trials.possible:
        return search.choose(), []
    found: list[tuple[Choice, TriedPlan]] = []
    for number in range(_TRIALS):
        choice = search.choose()
        if any(choice.indices == earlier.indices for earlier, _ in found):
            break
        if progress is not None:
            progress(number, _TRIALS, "the whole plan, fitted and measured")
        trial, tried = search.try_out(choice)
        found.append((choice, tried))
        if abs(tried.predicted - tried.measured) <= _AGREES * tried.measured:
            break
        search.correct(choice, trial)
        search.measure_chosen(1)
    found.sort(key=lambda each: -each[1].measured)
    return found[-1][0], [tried for _, tried in found]
