"""A budget spent on residual blocks: whole blocks collapsed, every other convolution as it is."""

from __future__ import annotations

from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering.auto import LoweringRun
from onnx_igpc.lowering.block_prices import CountedBlocks, RacedBlocks
from onnx_igpc.lowering.options import FLOAT32
from onnx_igpc.planning.block_choice import BlockChoice, choose_blocks
from onnx_igpc.planning.options import Budget
from onnx_igpc.planning.search import Plan
from onnx_igpc.planning.trials import Trials
from onnx_igpc.report.sections import LatencyReport, SelectionReport, TriedPlan, TriedShare
from onnx_igpc.sites.find import FoundSites
from onnx_igpc.sites.residual_blocks import find_blocks
from onnx_igpc.sites.rewrite import kept_layout

LESS_DAMAGE = "collapsing residual blocks does less damage"


def plan_blocks(
    model: OpenModel,
    found: FoundSites,
    trials: Trials,
    budget: Budget,
    speed: LoweringRun | None,
    progress: Progress | None = None,
) -> Plan:
    """The residual blocks with which a budget is kept, every site as it is.

    Args:
        model: the model as it is.
        found: its sites.
        trials: the data to choose by.
        budget: of latency, which ``speed`` measures, or of all MACs.
        progress: as compress has it.

    Raises:
        CheckFailedError: there are none, or not enough.
        DataError: activations that are not finite.
        ModelError: the model cannot run on the data, or not where it is raced.
    """
    target, blocks = budget.quantity, find_blocks(found)
    failed = f"`target` {target} cannot be reached by collapsing residual blocks:"
    if not blocks:
        raise CheckFailedError(f"{failed} there are none that could be")
    outputs = {output.name for output in model.proto.graph.output}
    if not trials.possible or not outputs.issuperset(trials.probe.outputs):
        raise CheckFailedError(f"{failed} what they do to the model's answer cannot be measured")
    raced = None
    if target.is_latency:
        assert speed is not None, "a budget of latency comes with what measures it"
        raced = RacedBlocks(model, speed.setting, speed.precision)
    prices = raced or CountedBlocks(model)
    try:
        choice = choose_blocks(trials, blocks, target.share, prices, progress)
    except CheckFailedError as error:
        raise CheckFailedError(f"{failed} {error}") from error
    layouts = {site.name: kept_layout(site, LESS_DAMAGE) for site in found.rewritable}
    summary = _summary(choice, budget, trials, raced)
    return Plan(layouts, summary, blocks=tuple(block.name for block in choice.blocks))


def _summary(
    choice: BlockChoice, budget: Budget, trials: Trials, raced: RacedBlocks | None
) -> SelectionReport:
    damage, predicted = choice.damage, choice.steps[-1][0]
    agreeing = damage.agreeing
    tried = TriedPlan(
        share=choice.share,
        predicted=damage.value,
        measured=damage.value,
        agreement=None if agreeing is None else agreeing / damage.samples,
    )
    latency = None
    if raced is not None:
        latency = LatencyReport(
            precision=None if raced.precision == FLOAT32 else raced.precision,
            predicted=predicted,
            measured=choice.share,
            damage=damage.value,
            dense_seconds=raced.dense_seconds,
            tried=[TriedShare(predicted=predicted, measured=choice.share, damage=damage.value)],
        )
    return SelectionReport(
        target=str(budget.quantity),
        family=budget.family,
        grouping=budget.grouping,
        measure=trials.probe.measure,
        samples=damage.samples,
        predicted_damage=damage.value,
        measured_damage=damage.value,
        curve=[*reversed(choice.steps), (1.0, 0.0)],
        chosen=(choice.share, damage.value),
        of_blocks=True,
        damage_by_site={},
        tried=[tried],
        latency=latency,
    )
