"""Random networks, rewritten and then lowered throughout: the function stays."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import assume, event, given
from hypothesis import strategies as st

from onnx_igpc import compress
from onnx_igpc.lowering.catalogue import LOWERINGS
from onnx_igpc.lowering.lower import lower_model
from onnx_igpc.lowering.options import Lowering
from onnx_igpc.planning.options import Published
from tests.compression.test_random_models import SCHEMES, look, runs
from tests.helpers import random_feeds, run
from tests.random_models import networks


@look(0.25)
@given(networks(), st.sampled_from([2, 3, 8]), SCHEMES, st.sampled_from(sorted(LOWERINGS)))
def test_lowered(before: onnx.ModelProto, ch: int, scheme: str, lowering: str) -> None:
    assume(runs(before))
    small = compress(before, Published(ch, scheme=scheme))
    assume(small.changed)
    result = lower_model(small.model, lowering=Lowering(lowering, cache=False))
    event(lowering)
    onnx.checker.check_model(result.model, full_check=True)
    feeds = random_feeds(before)
    expected, found = run(small.model, feeds), run(result.model, feeds)
    assert found.keys() == expected.keys()
    half = any(value.dtype == np.float16 for value in expected.values())
    for name, value in expected.items():
        wanted, got = value.astype(np.float64), found[name].astype(np.float64)
        if not np.isfinite(wanted).all():
            continue
        error = np.linalg.norm(got - wanted) / max(float(np.linalg.norm(wanted)), 1e-6)
        assert error < (0.05 if half else 1e-3), f"output {name!r} is {error:.1e} away"
