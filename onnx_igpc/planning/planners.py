"""A layout for every site, as the options of a rewrite ask for it."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_igpc.data.progress import Progress
from onnx_igpc.graph.cost import ModelCost
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.planning.budget import plan_budget
from onnx_igpc.planning.learned import learned_layouts
from onnx_igpc.planning.options import Budget, Published
from onnx_igpc.planning.search import Plan, Pricing
from onnx_igpc.planning.trials import Trials
from onnx_igpc.sites.find import FoundSites


def plan_published(found: FoundSites, plan: Published, trials: Trials | None = None) -> Plan:
    """The published layout of every site; ``trials`` have the data by which groups are learned.

    Raises:
        DataError: data that cannot be used.
    """
    layouts: Mapping[str, GroupLayout] = {
        site.name: plan_layout(
            site.in_channels, site.out_channels, plan.channels_per_group, plan.scheme
        )
        for site in found.rewritable
    }
    if plan.grouping == "learned" and trials is not None:
        layouts = learned_layouts(trials, layouts)
    return Plan(dict(layouts))


def plan_sites(
    found: FoundSites,
    plan: Published | Budget,
    trials: Trials | None,
    cost: ModelCost,
    pricing: Pricing | None = None,
    progress: Progress | None = None,
) -> Plan:
    """A layout for every site that can be rewritten.

    Args:
        found: the sites.
        plan: a published scheme throughout, or a budget.
        trials: the model and the data to choose by, which a budget and learned groups need.
        cost: of the model as it is.
        pricing: what measures times, for a budget of latency.
        progress: called with (sites done, sites in all, name of the next).

    Raises:
        CheckFailedError: the budget cannot be reached.
        UsageError: measurements to reuse that are those of another model.
        DataError: data that cannot be used.
    """
    if isinstance(plan, Published):
        return plan_published(found, plan, trials)
    assert trials is not None, "a budget is checked to have data before"
    return plan_budget(trials, cost, plan, progress, pricing)
