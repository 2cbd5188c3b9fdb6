"""A budget spent on channels between convolutions: some are left out, every other convolution is as it was."""

from __future__ import annotations

from onnx_igpc.compression.block_plan import Chosen, prices_of, selection_report
from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering.auto import LoweringRun
from onnx_igpc.planning.channel_choice import choose_channels
from onnx_igpc.planning.options import Budget
from onnx_igpc.planning.search import Plan
from onnx_igpc.planning.trials import Trials
from onnx_igpc.sites.find import FoundSites
from onnx_igpc.sites.inner_channels import find_inner_channels


def plan_channels(
    model: OpenModel,
    found: FoundSites,
    trials: Trials,
    budget: Budget,
    speed: LoweringRun | None,
    progress: Progress | None = None,
) -> Plan:
    """The channels with which a budget is kept, every site dense.

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
    failed = f"`target` {target} cannot be reached by leaving out channels:"
    inner = find_inner_channels(found)
    if not inner:
        raise CheckFailedError(f"{failed} there are none that could be")
    prices = prices_of(model, trials, budget, speed, failed)
    try:
        choice = choose_channels(trials, inner, target.share, prices, progress)
    except CheckFailedError as error:
        raise CheckFailedError(f"{failed} {error}") from error
    chosen = Chosen("channels", choice.share, choice.predicted, choice.damage, choice.curve)
    summary = selection_report(chosen, budget, trials, prices)
    return Plan({}, summary, channels=choice.kept)
