"""Random networks fitted to data, with learned groups or under a budget: the same promises hold."""

from __future__ import annotations

import onnx
from hypothesis import assume, event, given
from hypothesis import strategies as st

from onnx_igpc import compress
from onnx_igpc.compression.pipeline import CompressResult
from onnx_igpc.data.batches import Data, random_data
from onnx_igpc.errors import CheckFailedError, DataError
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.planning.options import Budget, Published
from tests.compression.test_random_models import assert_equivalent, look, runs
from tests.helpers import run
from tests.random_models import networks
from tests.untouched import assert_untouched


def _data(model: onnx.ModelProto) -> Data:
    return random_data(model_inputs(model), samples=6, batch_size=2, seed=3)


def _fixed_batch(model: onnx.ModelProto) -> bool:
    """Whether all inputs of the model are maps, which can be stacked to batches."""
    return all(len(spec.shape) == 4 for spec in model_inputs(model))


def _check(before: onnx.ModelProto, result: CompressResult) -> None:
    report, after = result.report, result.model
    rewritten = len(report.rewritten)
    event(f"{min(rewritten, 3)} sites or more rewritten, {min(len(report.permuted), 1)} permuted")
    assert not rewritten or report.checks["sites"].startswith(f"{rewritten} of {rewritten} compute")
    onnx.checker.check_model(after, full_check=True)
    if not report.permuted:
        assert_untouched(before, after, report)
    assert [value.SerializeToString() for value in after.graph.output] == [
        value.SerializeToString() for value in before.graph.output
    ]
    expected, found = run(before), run(after)
    assert {name: (v.shape, v.dtype) for name, v in found.items()} == {
        name: (v.shape, v.dtype) for name, v in expected.items()
    }
    assert report.totals.parameters.after == count(after).parameters


@look(0.2)
@given(networks(), st.sampled_from([2, 3, 8]), st.sampled_from(["contiguous", "learned"]))
def test_fitted_to_data(before: onnx.ModelProto, ch: int, grouping: str) -> None:
    assume(_fixed_batch(before) and runs(before))
    try:
        result = compress(before, Published(ch, grouping=grouping), calibration=_data(before))
    except DataError as error:
        # Half precision overflows in some of them.
        if "finite" not in str(error):
            raise
        return
    _check(before, result)
    if not result.report.permuted:
        assert_equivalent(before, result.model, result.report, own_biases=True)


@look(0.1)
@given(networks(), st.sampled_from(["60%", "40%"]), st.sampled_from(["extended", "published"]))
def test_under_a_budget(before: onnx.ModelProto, share: str, family: str) -> None:
    assume(_fixed_batch(before) and runs(before))
    target = f"pointwise-parameters={share}"
    try:
        result = compress(before, Budget(target, family=family), calibration=_data(before))
    except (CheckFailedError, DataError) as error:
        if not any(text in str(error) for text in ("finite", "cannot be reached")):
            raise
        return
    _check(before, result)
    # The share is that of the sites that the budget may choose for: not of heads, nor of what no data
    # reaches.
    assert result.report.selection is not None
    assert result.report.selection.chosen[0] <= float(share.strip("%")) / 100 + 1e-9
