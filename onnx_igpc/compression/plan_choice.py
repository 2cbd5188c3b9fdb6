"""The plan of a rewrite, and its damage on held-out data: one that a budget asks for, or the first that keeps a promise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace

from onnx_igpc.calibration.fitters import RandomFitter
from onnx_igpc.compression.basis import Basis, HeldOutMeasure
from onnx_igpc.compression.block_plan import block_plans_that_keep, plan_blocks
from onnx_igpc.compression.channel_plan import plan_channels
from onnx_igpc.compression.job import Job
from onnx_igpc.compression.rewrite import Rewriter
from onnx_igpc.compression.summary import Original
from onnx_igpc.data.progress import Progress, portion
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.evaluation.damage import joined_damage
from onnx_igpc.graph.cost import ModelCost, count
from onnx_igpc.graph.model import OpenModel, snapshot
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.lowering.auto import LoweringRun
from onnx_igpc.lowering.latency import LatencyBudget
from onnx_igpc.lowering.options import LITERAL
from onnx_igpc.planning.keep import plans_that_keep
from onnx_igpc.planning.options import Budget, Keep
from onnx_igpc.planning.planners import plan_sites
from onnx_igpc.planning.search import Plan
from onnx_igpc.planning.trials import Trials
from onnx_igpc.report.damage import figure_text, ruined
from onnx_igpc.report.sections import DamageReport
from onnx_igpc.sites.find import FoundSites
from onnx_igpc.sites.subgraph import RewrittenModel

# Of the time of planning, choosing how to fit, and measuring: where the second and the third begin.
_CHOOSING_FIT, _MEASURING = 0.75, 0.88
# Of the time of planning, for blocks and channels where they can help.
_TRYING_BLOCKS = 0.2


@dataclass(frozen=True)
class Planning:
    """What it takes to plan: the sites, what is asked for, the data, and what measures times."""

    found: FoundSites
    opened: OpenModel
    job: Job
    basis: Basis | None
    original: Original
    progress: Progress | None
    speed: LoweringRun | None

    def plans(self) -> Iterator[Plan]:
        """One plan, or those that are likely to keep a promise, the smallest first."""
        pricing, progress = None, portion(self.progress, 0.0, _CHOOSING_FIT)
        if self.speed is not None and self.job.times:
            pricing = self.speed.pricing(self.found, self._trial)
        trials = self.basis.trials if self.basis is not None else None
        cost = count(self.opened)
        if isinstance(self.job.plan, Keep) and trials is not None and self.basis is not None:
            samples = self.basis.held_out_size
            plans = plans_that_keep(trials, cost, self.job.plan, samples, progress, pricing)
            if self.job.plan.collapses:
                plans = self._blocks_first(self.job.plan, trials, samples, plans)
        else:
            assert not isinstance(self.job.plan, Keep), "a promise is checked to have data before"
            plans = iter([self._planned(trials, cost, pricing, progress)])
        for planned in plans:
            if self.speed is not None and not planned.restructures:
                wanted = sum(layout.replaced for layout in planned.layouts.values())
                planned.layouts = self.speed.keep_dense(self.found, planned.layouts, self._trial)
                left = sum(layout.replaced for layout in planned.layouts.values())
                planned.slower = wanted - left
            yield planned

    def _blocks_first(
        self, keep: Keep, trials: Trials, samples: int, others: Iterator[Plan]
    ) -> Iterator[Plan]:
        """Plans of residual blocks that are likely to keep a promise; if none does, and they may, of sites."""
        trying = portion(self.progress, 0.0, _TRYING_BLOCKS)
        try:
            yield from block_plans_that_keep(
                self.opened, self.found, trials, keep, samples, self.speed, trying
            )
        except CheckFailedError:
            if keep.blocks == "only":
                raise
        if keep.blocks != "only":
            yield from others

    def _planned(
        self,
        trials: Trials | None,
        cost: ModelCost,
        pricing: LatencyBudget | None,
        progress: Progress | None,
    ) -> Plan:
        """The plan of least damage: of residual blocks, of channels, or of sites where neither is asked for alone.

        For a budget of time what blocks or channels keep is taken at once: a rewritten site saves less time than
        MACs, so that sites did more damage wherever both were tried, and take minutes to plan.
        """
        job = self.job
        assert not isinstance(job.plan, Keep)
        plans: list[Plan] = []
        failed: CheckFailedError | None = None
        restructures = isinstance(job.plan, Budget) and (job.plan.collapses or job.plan.narrows)
        if isinstance(job.plan, Budget) and restructures and trials is not None:
            plans, failed = self._restructured(job.plan, trials, progress)
            if plans and (job.times or job.plan.restructures_only):
                return min(plans, key=_damage)
            if failed is not None and job.plan.restructures_only:
                raise failed
            progress = portion(progress, _TRYING_BLOCKS, 1.0)
        try:
            plans.append(plan_sites(self.found, job.plan, trials, cost, pricing, progress))
        except CheckFailedError:
            if not plans:
                raise
        return min(plans, key=_damage)

    def _restructured(
        self, budget: Budget, trials: Trials, progress: Progress | None
    ) -> tuple[list[Plan], CheckFailedError | None]:
        """The plans of blocks and of channels that keep a budget, as far as they may be tried, and why one does not."""
        planners = [
            *([plan_blocks] if budget.collapses else []),
            *([plan_channels] if budget.narrows else []),
        ]
        found: list[Plan] = []
        failed = None
        for number, plan in enumerate(planners):
            step = _TRYING_BLOCKS / len(planners)
            trying = portion(progress, number * step, (number + 1) * step)
            try:
                found.append(plan(self.opened, self.found, trials, budget, self.speed, trying))
            except CheckFailedError as error:
                failed = error
        return found, failed

    @property
    def exchanges(self) -> bool:
        """Whether everything is chosen once more with the parts of the data exchanged."""
        plan = self.job.plan
        known = isinstance(plan, Budget) and plan.sensitivity is not None
        exchangeable = self.basis is not None and self.basis.exchangeable
        return exchangeable and not known and not isinstance(plan, Keep)

    def part(self, begin: float, end: float) -> Planning:
        """The same, as a part of all that is done."""
        return replace(self, progress=portion(self.progress, begin, end))

    def damage(self, planned: Plan, measure: HeldOutMeasure) -> DamageReport:
        """The damage of a plan on held-out data, once it is chosen how to fit it."""
        assert self.basis is not None
        self.basis.choose_fit(planned, portion(self.progress, _CHOOSING_FIT, _MEASURING))
        return measure.damage(self.basis, planned, portion(self.progress, _MEASURING, 1.0))

    def _trial(self, layouts: Mapping[str, GroupLayout]) -> RewrittenModel:
        """A copy of the model rewritten with random weights, as fast as with any others."""
        rewriter = Rewriter(snapshot(self.opened), self.original.digest)
        published = self.job.published
        rewriter.rewrite(
            rewriter.find(self.job.sites),
            layouts,
            RandomFitter(published.seed, published.form == "paper"),
            published.form,
        )
        rewriter.settle(checked=False)
        if self.job.plan.grouping == "learned":
            rewriter.absorb(checked=False)
        return rewriter.result()


def choose_plan(planning: Planning, measure: HeldOutMeasure) -> tuple[Plan, DamageReport | None]:
    """The plan, and its damage on held-out data; where a promise is asked for, the first that keeps it.

    Raises:
        CheckFailedError: no plan keeps the promise, and the message names the nearest; or a budget of time ruins
            what is written to be final.
    """
    basis, plan = planning.basis, planning.job.plan
    first = planning.part(0.0, 0.5) if planning.exchanges else planning
    nearest = "nothing was rewritten"
    for planned in first.plans():
        if basis is None:
            return planned, None
        damage = first.damage(planned, measure)
        if not isinstance(plan, Keep):
            damage = _with_parts_exchanged(planning, planned, measure, damage)
            _refuse_ruin(planning.job, planned, damage)
            return planned, damage
        if plan.kept.holds(damage):
            return planned, damage
        share = planned.summary.chosen[0] if planned.summary else 1.0
        nearest = f"{plan.kept.told(damage)}, with {share:.0%} of {plan.minimize} left"
    assert isinstance(plan, Keep)
    raise CheckFailedError(
        f"nothing that was tried keeps {plan.kept} on {basis.held_out_size if basis else 0} held-out "
        f"samples; the nearest: {nearest}"
    )


def _damage(planned: Plan) -> float:
    """What a plan does to data that it was not fitted to, measured as a whole where it was."""
    summary = planned.summary
    if summary is None:
        return 0.0
    measured = summary.measured_damage
    return summary.predicted_damage if measured is None else measured


def _refuse_ruin(job: Job, planned: Plan, damage: DamageReport) -> None:
    """Refuse what a budget of time would make of the model where that is of no use and final.

    Raises:
        CheckFailedError: the model would be ruined, and be lowered, so that it cannot be trained.
    """
    final = job.lowering is not None and job.lowering.kind != LITERAL and not planned.restructures
    if isinstance(job.plan, Budget) and job.times and final and ruined(damage):
        raise CheckFailedError(
            f"`target` {job.plan.quantity} would ruin the model: {figure_text(damage)} on "
            f"{damage.samples} samples not used for the fit, and what is lowered cannot be trained; give a "
            "larger share, or `lowering` literal to finetune it, then lower"
        )


def _with_parts_exchanged(
    planning: Planning, planned: Plan, measure: HeldOutMeasure, damage: DamageReport
) -> DamageReport:
    """The damage on all samples where few are held out: each part by a plan and fits that the other one made.

    What is measured on the part that the plan was chosen by is another plan, of the same procedure.
    """
    basis, job = planning.basis, planning.job
    if basis is None or not planning.exchanges:
        return damage
    other = basis.exchanged()
    second = replace(planning.part(0.5, 1.0), basis=other)
    try:
        if job.plans_with_data:
            asked = job.plan
            if isinstance(asked, Budget):
                asked = replace(asked, save_sensitivity=None)
            speed = copy(planning.speed)
            again = replace(second, job=replace(job, plan=asked), speed=speed)
            planned = next(again.plans())
        if not planned.changes:
            return damage
        return joined_damage([damage, second.damage(planned, measure)])
    finally:
        other.trials.close()
