"""Whatever the network: valid, loadable, the same interface, every site right, the rest untouched."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from onnx_igpc import compress, inspect
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.traversal import scopes
from onnx_igpc.planning.options import Published
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.sites.find import SiteFilter
from tests.dense_twin import dense_twin
from tests.helpers import run
from tests.random_models import networks
from tests.untouched import assert_untouched

# More of them can be asked for, to look for what a short run does not meet.
EXAMPLES = int(os.environ.get("ONNX_IGPC_EXAMPLES", "40"))
LONG = EXAMPLES > 100
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
CHANNELS = st.sampled_from([1, 2, 2, 3, 4, 5, 8, 16])
SCHEMES = st.sampled_from(["v1", "v2"])


def look(share: float = 1.0) -> Any:
    """Settings for a share of the examples."""
    return settings(
        max_examples=max(int(EXAMPLES * share), 5),
        deadline=None,
        derandomize=not LONG,
        suppress_health_check=QUIET,
    )


def assert_equivalent(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    report: RewriteReport,
    own_biases: bool = False,
) -> None:
    """The original, each site having the matrix that was written for it, computes the same."""
    if not runs(before):
        return
    expected, found = run(dense_twin(before, after, report, own_biases)), run(after)
    half = any(value.dtype == np.float16 for value in expected.values())
    for name, value in expected.items():
        wanted, got = value.astype(np.float64), found[name].astype(np.float64)
        assert wanted.shape == got.shape
        if not np.isfinite(wanted).all():
            continue
        error = np.linalg.norm(got - wanted) / max(float(np.linalg.norm(wanted)), 1e-6)
        assert error < (0.05 if half else 1e-3), f"output {name!r} is {error:.1e} away"


@look()
@given(
    networks(),
    CHANNELS,
    SCHEMES,
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
        Published(ch, scheme=scheme, form=form),
        sites=SiteFilter(include_heads=heads),
        fold_batch_norm=fold,
    )
    report, after = result.report, result.model
    rewritten = len(report.rewritten)
    event(f"{min(rewritten, 3)} sites or more rewritten")
    assert not rewritten or report.checks["sites"].startswith(f"{rewritten} of {rewritten} compute")
    onnx.checker.check_model(after, full_check=True)
    assert_untouched(before, after, report)
    if form == "linear" and not fold:
        assert_equivalent(before, after, report)
    elif runs(before):
        expected, found = run(before), run(after)
        assert {name: value.shape for name, value in found.items()} == {
            name: value.shape for name, value in expected.items()
        }
    cost, dense = count(after), count(before)
    totals = report.totals
    assert (totals.parameters.before, totals.macs.before) == (dense.parameters, dense.macs)
    assert (totals.parameters.after, totals.macs.after) == (cost.parameters, cost.macs)
    assert len(report.sites) == len(_pointwise(before))
    if form == "linear" and not fold:
        plan = inspect(before, Published(ch, scheme=scheme), sites=SiteFilter(include_heads=heads))
        assert plan.totals.parameters == totals.parameters
        assert plan.totals.macs == totals.macs
        assert [(s.name, s.status, s.parameters, s.macs) for s in plan.sites] == [
            (s.name, s.status, s.parameters, s.macs) for s in report.sites
        ]


@look(0.25)
@given(networks(), st.integers(1, 8), SCHEMES, st.booleans())
def test_a_second_run_changes_nothing(
    before: onnx.ModelProto, ch: int, scheme: str, fold: bool
) -> None:
    def again(model: onnx.ModelProto) -> onnx.ModelProto:
        return compress(model, Published(ch, scheme=scheme), fold_batch_norm=fold).model

    once = again(before)
    assert again(before).SerializeToString() == once.SerializeToString()
    assert again(once).SerializeToString() == once.SerializeToString()


@look(0.25)
@given(networks(), SCHEMES, st.booleans())
def test_nothing_to_rewrite_is_the_same_file(
    before: onnx.ModelProto, scheme: str, heads: bool
) -> None:
    """Every layer has fewer channels than two groups need; the file is written by other hands."""
    data = before.SerializeToString() + b"\xb8\x3e\x07"  # field 999: of a newer format
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "a.onnx", Path(folder) / "b.onnx"
        source.write_bytes(data)
        result = compress(
            source, Published(500, scheme=scheme), sites=SiteFilter(include_heads=heads)
        )
        result.save(target)
        assert not result.changed
        assert target.read_bytes() == data


def runs(model: onnx.ModelProto) -> bool:
    """Whether the installed onnxruntime takes the model at all.

    It refuses operator sets that are newer than it, and some models whose nodes share a name.
    """
    refusals = (
        "Current official support for domain ai.onnx is till",
        "two nodes with same node name",
    )
    try:
        run(model)
    except Exception as error:
        if any(text in str(error) for text in refusals):
            return False
        raise
    return True


def _pointwise(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The convolutions that must be in the report."""
    return [
        node
        for scope in scopes(model)
        for node in scope.holder.node
        if node.op_type == "Conv" and not node.output[0].rpartition("_")[2].startswith("dw")
    ]
