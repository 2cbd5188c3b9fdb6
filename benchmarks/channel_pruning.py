"""Whole channels pruned from an ONNX graph by onnxsim, for comparison; `pip install 'onnx-igpc[clients]'`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnx_igpc.data.batches import Data
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import find_sites

METHODS = (
    "channels-l2",
    "channels-l2-global",
    "channels-wanda",
    "channels-wanda-global",
)
_STEPS = 9


@dataclass(frozen=True)
class Pruned:
    """What is left of the pointwise weights, by the name of the layer, and the sparsity asked for."""

    weights: dict[str, int]
    sparsity: float


def prune(model: Path, method: str, weights: int, data: Data, path: Path) -> Pruned:
    """Prune until no more than so many pointwise weights are left, and write the result to ``path``.

    The least sparsity that does is found by halving: onnxsim takes a part of the channels, of each layer or of
    all, and finds channels only where BatchNormalization is folded, so that its simplifier runs first.
    Importance is the L2 norm of a filter, or that times the norm of what it makes of the data ("wanda").
    """
    import onnxsim

    simplified, _ = onnxsim.simplify(onnx.load(model))
    shared: dict[str, Any] = {"global_sparsity": method.endswith("-global")}
    run: Callable[..., onnx.ModelProto] = onnxsim.apply_structured_pruning
    if "wanda" in method:
        run = onnxsim.apply_structured_wanda_pruning
        shared["calibration_data"] = [batch.feeds for batch in data]
    low, high = 0.0, 0.95
    best = run(simplified, sparsity=high, **shared)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tried = run(simplified, sparsity=middle, **shared)
        if sum(_pointwise_weights(tried).values()) <= weights:
            best, high = tried, middle
        else:
            low = middle
    onnx.save(best, path)
    return Pruned(_pointwise_weights(best), high)


def _pointwise_weights(model: onnx.ModelProto) -> dict[str, int]:
    sites = find_sites(GraphView(OpenModel(model))).rewritable
    return {site.name: site.in_channels * site.out_channels for site in sites}
