"""Random layers, and what a layout computes from its definition, for the tests of fits."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from onnx_igpc.fitting.weights import (
    IgpcWeights,
)
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.layout.schemes import plan_layout

SMALL = settings(deadline=None, max_examples=40)


SCHEMES = st.sampled_from(["v1", "v2"])


def dense(F: int, C: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((F, C))


def moments_of(C: int, seed: int = 0, rank: int | None = None) -> np.ndarray:
    """Second moments of correlated inputs; of lower rank if asked."""
    samples = np.random.default_rng([seed, 1]).standard_normal((C, rank or 2 * C))
    samples *= np.linspace(0.2, 3, C)[:, None]
    moments: np.ndarray = samples @ samples.T / samples.shape[1]
    return moments


def replaced(C: int, F: int, ch: int, scheme: str = "v2") -> GroupLayout:
    layout = plan_layout(C, F, ch, scheme)
    assert layout.replaced
    return layout


def weighted_error(
    weight: np.ndarray,
    matrix: np.ndarray,
    moments: np.ndarray | None = None,
    scale: np.ndarray | None = None,
) -> float:
    difference = weight - matrix
    S = np.eye(weight.shape[1]) if moments is None else moments
    d = np.ones(len(weight)) if scale is None else scale
    return float(np.einsum("f,fc,ce,fe->", d**2, difference, S, difference))


def support(stage: GroupedStage) -> np.ndarray:
    """Where the matrix of a stage may be other than zero, from the definition of its paths."""
    mask = np.zeros((stage.out_channels, stage.in_channels), dtype=bool)
    row = 0
    for path in stage.paths:
        for group in range(path.groups):
            start = group * path.channels_per_group
            columns = path.inputs[start : start + path.channels_per_group]
            for _ in range(path.filters_per_group):
                mask[row, list(columns)] = True
                row += 1
    return mask


def apply_stage(stage: GroupedStage, weights: tuple[np.ndarray, ...], x: np.ndarray) -> np.ndarray:
    """The stage on one pixel, filter by filter, as a grouped convolution computes it."""
    out = []
    for path, kernel in zip(stage.paths, weights, strict=True):
        gathered = x[list(path.inputs)]
        for row in range(path.filters):
            start = row // path.filters_per_group * path.channels_per_group
            out.append(kernel[row] @ gathered[start : start + path.channels_per_group])
    return np.array(out)


def apply_layout(layout: GroupLayout, weights: IgpcWeights, x: np.ndarray) -> np.ndarray:
    """What the rewritten layer computes for one pixel, step by step."""
    k = apply_stage(layout.k, weights.k, x)
    y = k
    if layout.l is not None:
        assert weights.l
        order = range(len(k)) if layout.interleave is None else layout.interleave
        y = apply_stage(layout.l, weights.l, k[list(order)]) + k
    return y if layout.output_interleave is None else y[list(layout.output_interleave)]
