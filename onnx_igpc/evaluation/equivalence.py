"""Checking that a model computes what it did before its channels were reordered, or a pass ran."""

from __future__ import annotations

import numpy as np

from onnx_igpc.data.random_inputs import random_inputs
from onnx_igpc.errors import CheckFailedError, IgpcError, MissingExtraError, with_flags
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.runtime.session import import_onnxruntime, make_session, run_session, session_inputs

# Sums may be added up in another order, which a deep network can amplify; channels that were
# mistaken for others deviate by about the whole value.
TOLERANCE = 1e-2
# Sigmoid and Softmax round what they make to parts of 1 in float32, however small it is: a saturated output
# of 1e-8 says nothing.
ROUNDING = 4 * float(np.finfo(np.float32).eps)


def check_reordered(before: OpenModel, after: OpenModel) -> str:
    """As :func:`check_same_outputs`, where it is this tool that reordered channels."""
    step, advice = "the reordering of channels", "please report this"
    return check_same_outputs(before, after, step, advice, "as in the original order")


def check_same_outputs(
    before: OpenModel, after: OpenModel, step: str, advice: str, same: str = "as before"
) -> str:
    """Run both models on the same random inputs and compare all outputs of floats; says so in words.

    A model that onnxruntime cannot run on random inputs is not compared. ``step`` is what lies between
    the two, ``advice`` what an error ends with, ``same`` what the outputs are as.

    Raises:
        CheckFailedError: an output deviates by more than 1e-2 of its largest value, and by more than
            rounding.
    """
    try:
        import_onnxruntime("comparing two models")
        first = make_session(before, threads=1)
        feeds = random_inputs(session_inputs(first))
        expected = run_session(first, feeds)
    except MissingExtraError:
        return "not run: onnxruntime is not installed"
    except IgpcError as reason:
        return with_flags(f"not run: {reason}")
    try:
        found = run_session(make_session(after, threads=1), feeds)
    except IgpcError as problem:
        raise CheckFailedError(
            f"the model cannot be run after {step} ({problem}): {advice}"
        ) from problem
    worst = 0.0
    for name, values in expected.items():
        if name not in found:
            raise CheckFailedError(f"output {name!r} is not there after {step}: {advice}")
        deviation = _deviation(np.asarray(values), np.asarray(found[name]))
        if not deviation <= TOLERANCE:
            raise CheckFailedError(
                f"output {name!r} deviates by {deviation:.1e} after {step}: {advice}"
            )
        worst = max(worst, deviation)
    bound = 10.0 ** np.ceil(np.log10(max(worst, 1e-12)))
    return f"same outputs {same} (deviation below {bound:.0e})"


def _deviation(expected: np.ndarray, found: np.ndarray) -> float:
    """max |found - expected| / max |expected| where both are finite; infinite for another shape.

    Differences up to :data:`ROUNDING` are none.
    """
    if expected.dtype.kind != "f":
        return 0.0
    if expected.shape != found.shape:
        return float("inf")
    seen = np.isfinite(expected) & np.isfinite(found)
    if not seen.any():
        return 0.0
    wide = expected[seen].astype(np.float64)
    scale = float(np.abs(wide).max()) or 1.0
    difference = float(np.abs(found[seen].astype(np.float64) - wide).max())
    return difference / scale if difference > ROUNDING else 0.0
