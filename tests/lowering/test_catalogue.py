"""Every lowering on every kind of layout: the model computes what it did before."""

from __future__ import annotations

import pytest

from onnx_igpc.errors import UsageError
from onnx_igpc.lowering.catalogue import LOWERINGS, lower
from tests.lowering_cases import LAYOUTS, lowered, network, possible, rewritten


@pytest.mark.parametrize("label", LOWERINGS)
@pytest.mark.parametrize("case", LAYOUTS)
def test_every_layout(case: str, label: str) -> None:
    C, F, ch, scheme = LAYOUTS[case]
    model = rewritten(network(C, F), ch, scheme)
    able = possible(model)
    if able[label]:
        lowered(model, label)


def test_a_choice_that_cannot_be_followed_is_refused() -> None:
    model = rewritten(network(32, 32), 8)
    before = model.proto.SerializeToString()
    with pytest.raises(
        UsageError, match=r"^site 'nobody' cannot be lowered: the model has no such"
    ):
        lower(model, {"nobody": "dense"})
    with pytest.raises(UsageError, match=r"^unknown lowering 'fast': choose from literal, dense"):
        lower(model, {"conv_node": "fast"})
    assert model.proto.SerializeToString() == before
