"""Whatever the network: valid, loadable, the same interface, every site right, the rest untouched."""

from __future__ import annotations

import os
from typing import Literal

import onnx
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from onnx_igpc import compress, inspect
from onnx_igpc.cost import count
from tests.helpers import run
from tests.random_models import networks
from tests.untouched import assert_untouched

# More of them can be asked for, to look for what a short run does not meet.
EXAMPLES = int(os.environ.get("ONNX_IGPC_EXAMPLES", "40"))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    networks(),
    st.sampled_from([1, 2, 2, 3, 4, 5, 8, 16]),
    st.sampled_from(["v1", "v2"]),
    st.sampled_from(["linear", "linear", "paper"]),
    st.booleans(),
    st.booleans(),
)
def test_any_network(
    before: onnx.ModelProto,
    ch: int,
    scheme: str,
    form: Literal["linear", "paper"],
    fold: bool,
    heads: bool,
) -> None:
    result = compress(
        before,
        channels_per_group=ch,
        scheme=scheme,
        form=form,
        fold_batch_norm=fold,
        include_heads=heads,
    )
    report, after = result.report, result.model
    rewritten = len(report.rewritten)
    event(f"{min(rewritten, 3)} sites or more rewritten")
    assert not rewritten or report.checks["sites"].startswith(f"{rewritten} of {rewritten} compute")
    onnx.checker.check_model(after, full_check=True)
    assert_untouched(before, after, report)
    expected, found = run(before), run(after)
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in expected.items()
    }
    cost, dense = count(after), count(before)
    totals = report.totals
    assert (totals.parameters.before, totals.macs.before) == (dense.parameters, dense.macs)
    assert (totals.parameters.after, totals.macs.after) == (cost.parameters, cost.macs)
    convolutions = [node.name for node in before.graph.node if node.op_type == "Conv"]
    assert len(report.sites) == sum(not name.startswith("dw") for name in convolutions)
    if form == "linear" and not fold:
        plan = inspect(before, channels_per_group=ch, scheme=scheme, include_heads=heads)
        assert plan.totals.parameters == totals.parameters
        assert plan.totals.macs == totals.macs
        assert [(s.name, s.status, s.parameters, s.macs) for s in plan.sites] == [
            (s.name, s.status, s.parameters, s.macs) for s in report.sites
        ]


@settings(max_examples=EXAMPLES // 4, deadline=None, derandomize=EXAMPLES <= 100)
@given(networks(), st.integers(1, 8), st.sampled_from(["v1", "v2"]), st.booleans())
def test_a_second_run_changes_nothing(
    before: onnx.ModelProto, ch: int, scheme: str, fold: bool
) -> None:
    def again(model: onnx.ModelProto) -> onnx.ModelProto:
        return compress(model, channels_per_group=ch, scheme=scheme, fold_batch_norm=fold).model

    once = again(before)
    assert again(before).SerializeToString() == once.SerializeToString()
    assert again(once).SerializeToString() == once.SerializeToString()
