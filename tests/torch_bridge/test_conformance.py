"""The node tests of the onnx package: the set that passes is pinned and cannot shrink."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from onnx.backend.test import loader

from tests.torch_bridge.node_cases import PINNED, node_cases, outcomes

pytestmark = pytest.mark.skipif(
    not hasattr(loader, "load_node_model_tests"),
    reason="before 1.23, onnx has its node tests as files only",
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pinned_node_cases_pass(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    results = {case.name: (outcome, why) for case, outcome, why in outcomes()}
    counts = Counter(outcome for outcome, _ in results.values())
    with capsys.disabled():
        print(f"\nonnx node tests: {dict(counts)}")
    pinned = PINNED.read_text().split()
    lost = {n: results[n] for n in pinned if n in results and results[n][0] != "passed"}
    assert not lost
    # Another release of onnx may rename a few cases, not most of them.
    assert sum(name in results for name in pinned) > 0.9 * len(pinned)
    failed = {name: why for name, (outcome, why) in results.items() if outcome == "failed"}
    assert not failed


def test_pinned_names_are_sorted_and_unique() -> None:
    pinned = PINNED.read_text().split()
    assert pinned == sorted(set(pinned))
    assert len(pinned) <= len(node_cases())
