"""The node tests of the onnx package, run against the bridge."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from onnx.backend.test.case.test_case import TestCase

import onnx_igpc.torch_bridge.operators  # noqa: F401
from onnx_igpc.errors import ModelError
from onnx_igpc.torch_bridge import to_torch
from onnx_igpc.torch_bridge.registry import registered_operators
from onnx_igpc.torch_bridge.tensors import COMPUTE_TYPES, HALF_TYPES, from_array

PINNED = Path(__file__).with_name("passing_node_cases.txt")
NOT_COMPARABLE = {
    "test_batchnorm_epsilon_training_mode": "the module decides about training, not the graph",
    "test_batchnorm_example_training_mode": "the module decides about training, not the graph",
    "test_bitwise_not_3d": "uint16 is computed in int32, whose complement is negative",
    **dict.fromkeys(
        (
            "test_resize_downsample_scales_cubic_align_corners",
            "test_resize_downsample_scales_linear_align_corners",
        ),
        "the case takes a fractional size for the length; onnxruntime and the bridge do not",
    ),
}
"""Cases whose expectation contradicts what the bridge promises, and why."""


@cache
def node_cases() -> list[TestCase]:
    """Every node test of the installed onnx package."""
    from onnx.backend.test.loader import load_node_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(load_node_model_tests())


def outcomes() -> Iterator[tuple[TestCase, str, str]]:
    """(case, "passed" | "failed" | "not applicable", why) for every node test."""
    known = {(operator.domain, operator.name) for operator in registered_operators()}
    known.add(("", "Constant"))  # read while the graph is read
    for case in node_cases():
        outcome, why = _outcome(case, known)
        yield case, outcome, why


def _outcome(case: TestCase, known: set[tuple[str, str]]) -> tuple[str, str]:
    model = case.model
    assert model is not None
    assert case.data_sets is not None
    if case.name in NOT_COMPARABLE:
        return "not applicable", NOT_COMPARABLE[case.name]
    if "training_dropout" in case.name or "dropout_random" in case.name:
        return "not applicable", "the module decides about training, not the graph"
    if not known.issuperset((node.domain, node.op_type) for node in model.graph.node):
        return "not applicable", "operator is not registered"
    values = [*model.graph.input, *model.graph.output]
    if any(v.type.tensor_type.elem_type not in COMPUTE_TYPES for v in values):
        return "not applicable", "element type that PyTorch cannot hold"
    try:
        for inputs, expected in case.data_sets:
            _compare(model, inputs, expected, case)
    except ModelError as error:
        return "not applicable", str(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}".splitlines()[0]
    return "passed", ""


def _compare(model: onnx.ModelProto, inputs: Any, expected: Any, case: TestCase) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = to_torch(model).eval()
    tensors = [
        from_array(_array(value), COMPUTE_TYPES[info.type.tensor_type.elem_type])
        for value, info in zip(inputs, model.graph.input, strict=True)
    ]
    with torch.no_grad():
        results = module(*tensors)
    results = results if isinstance(results, tuple) else (results,)
    for result, value, info in zip(results, expected, model.graph.output, strict=True):
        onnx_type = info.type.tensor_type.elem_type
        want = _array(value)
        got = result.numpy()
        assert tuple(got.shape) == tuple(want.shape), f"shape {got.shape}, not {want.shape}"
        assert result.dtype == COMPUTE_TYPES[onnx_type], f"type {result.dtype}"
        coarse = onnx_type in HALF_TYPES
        rtol, atol = (1e-2, 1e-2) if coarse else (case.rtol or 1e-3, case.atol or 1e-7)
        np.testing.assert_allclose(
            got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=max(atol, 1e-6)
        )


def _array(value: Any) -> np.ndarray:
    if isinstance(value, TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, (list, dict)) or value is None:
        raise ModelError("sequences and optional values are not supported")
    return np.asarray(value)


def main() -> None:
    """Print the counts, the failures, and why cases were left out; ``--pin`` pins what passes."""
    counts, reasons, passed = Counter[str](), Counter[str](), []
    for case, outcome, why in outcomes():
        counts[outcome] += 1
        if outcome == "passed":
            passed.append(case.name)
        elif outcome == "failed":
            print(f"FAILED {case.name}: {why[:150]}")
        else:
            reasons[why[:70]] += 1
    print(dict(counts))
    for why, count in reasons.most_common():
        print(f"{count:5d}  {why}")
    if "--pin" in sys.argv:
        PINNED.write_text("".join(f"{name}\n" for name in sorted(passed)))


if __name__ == "__main__":
    main()
