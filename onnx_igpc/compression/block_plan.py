"""A budget spent on residual blocks: whole blocks collapsed, every other convolution as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering.auto import LoweringRun
from onnx_igpc.lowering.block_prices import CountedBlocks, RacedBlocks
from onnx_igpc.lowering.options import FLOAT32
from onnx_igpc.planning.block_choice import BlockChoice, Measured, blocks_one_by_one, choose_blocks
from onnx_igpc.planning.options import Budget, Keep
from onnx_igpc.planning.search import Plan
from onnx_igpc.planning.sensitivity import Damage
from onnx_igpc.planning.trials import Trials
from onnx_igpc.report.selection import (
    LatencyReport,
    SelectedUnit,
    SelectionReport,
    TriedPlan,
    TriedShare,
)
from onnx_igpc.sites.find import FoundSites
from onnx_igpc.sites.residual_blocks import ResidualBlock, find_blocks
from onnx_igpc.sites.rewrite import kept_layout

INSTEAD = "the budget is kept by collapsing residual blocks"


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
    target = budget.quantity
    failed = f"`target` {target} cannot be reached by collapsing residual blocks:"
    blocks, prices = _able(model, found, trials, budget, speed, failed)
    try:
        choice = choose_blocks(trials, blocks, target.share, prices, progress)
    except CheckFailedError as error:
        raise CheckFailedError(f"{failed} {error}") from error
    return _plan(found, choice, trials, budget, prices)


def block_plans_that_keep(
    model: OpenModel,
    found: FoundSites,
    trials: Trials,
    keep: Keep,
    samples: int,
    speed: LoweringRun | None,
    progress: Progress | None = None,
) -> Iterator[Plan]:
    """Plans of residual blocks that are likely to keep a promise, the shortest first.

    Args:
        samples: on which it will be measured. Others are those of :func:`plan_blocks`.

    Raises:
        CheckFailedError: there are no blocks, or none is likely to keep it. Others as :func:`plan_blocks`.
    """
    failed = f"{keep.kept} cannot be kept by collapsing residual blocks:"
    blocks, prices = _able(model, found, trials, keep, speed, failed)

    def goes_on(damage: Damage) -> bool:
        return keep.kept.likely(damage, samples)

    choices = blocks_one_by_one(trials, blocks, goes_on, prices, progress)
    if not choices:
        raise CheckFailedError(f"{failed} no single one is likely to")
    for choice in reversed(choices):
        (left,) = prices.left([choice.blocks])
        yield _plan(found, replace(choice, share=left), trials, keep, prices)


def _able(
    model: OpenModel,
    found: FoundSites,
    trials: Trials,
    wanted: Budget | Keep,
    speed: LoweringRun | None,
    failed: str,
) -> tuple[list[ResidualBlock], CountedBlocks | RacedBlocks]:
    """The blocks that could be collapsed, and what prices them; CheckFailedError, which begins with
    ``failed``, where there are none."""
    blocks = find_blocks(found)
    if not blocks:
        raise CheckFailedError(f"{failed} there are none that could be")
    return blocks, prices_of(model, trials, wanted, speed, failed)


def prices_of(
    model: OpenModel,
    trials: Trials,
    wanted: Budget | Keep,
    speed: LoweringRun | None,
    failed: str,
) -> CountedBlocks | RacedBlocks:
    """What prices versions of the model; CheckFailedError, which begins with ``failed``, where what they do cannot be
    measured."""
    outputs = {output.name for output in model.proto.graph.output}
    if not trials.possible or not outputs.issuperset(trials.probe.outputs):
        raise CheckFailedError(f"{failed} what they do to the model's answer cannot be measured")
    if not wanted.quantity.is_latency:
        return CountedBlocks(model)
    assert speed is not None, "a budget of latency comes with what measures it"
    return RacedBlocks(model, speed.setting, speed.precision)


def _plan(
    found: FoundSites,
    choice: BlockChoice,
    trials: Trials,
    wanted: Budget | Keep,
    prices: CountedBlocks | RacedBlocks,
) -> Plan:
    taken = choice.tried[-1]
    predicted = (taken.share, taken.predicted)
    chosen = Chosen("blocks", choice.share, predicted, choice.damage, choice.curve)
    summary = selection_report(chosen, wanted, trials, prices)
    summary.tried = [_tried(each) for each in choice.tried]
    layouts = {site.name: kept_layout(site, INSTEAD) for site in found.rewritable}
    return Plan(layouts, summary, blocks=tuple(block.name for block in choice.blocks))


@dataclass(frozen=True)
class Chosen:
    """What a budget chose: what of (``of``), the share that it leaves, measured as a whole, the share and damage that
    were ``predicted``, the damage measured, and the curve of what was predicted of all shares."""

    of: SelectedUnit
    share: float
    predicted: tuple[float, float]
    damage: Damage
    curve: tuple[tuple[float, float], ...]


def selection_report(
    chosen: Chosen, wanted: Budget | Keep, trials: Trials, prices: CountedBlocks | RacedBlocks
) -> SelectionReport:
    """What the report says of it."""
    damage, latency = chosen.damage, None
    if isinstance(prices, RacedBlocks):
        share = chosen.predicted[0]
        latency = LatencyReport(
            precision=None if prices.precision == FLOAT32 else prices.precision,
            predicted=share,
            measured=chosen.share,
            damage=damage.value,
            dense_seconds=prices.dense_seconds,
            tried=[TriedShare(predicted=share, measured=chosen.share, damage=damage.value)],
        )
    return SelectionReport(
        target=str(
            replace(wanted.quantity, share=chosen.share)
            if isinstance(wanted, Keep)
            else wanted.quantity
        ),
        family=wanted.family,
        grouping=wanted.grouping,
        measure=trials.probe.measure,
        samples=damage.samples,
        predicted_damage=chosen.predicted[1],
        measured_damage=damage.value,
        curve=list(chosen.curve),
        chosen=chosen.predicted,
        unit=chosen.of,
        damage_by_site={},
        latency=latency,
    )


def _tried(measured: Measured) -> TriedPlan:
    damage = measured.damage
    return TriedPlan(
        share=measured.share,
        predicted=measured.predicted,
        measured=damage.value,
        agreement=None if damage.agreeing is None else damage.agreeing / damage.samples,
    )
