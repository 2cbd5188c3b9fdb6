"""Races with made-up times: what a graph costs is counted on its nodes, so that choices are certain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import pytest

from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering import latency
from onnx_igpc.lowering import selection as select
from onnx_igpc.lowering import site_races as choose
from onnx_igpc.lowering.cache import RaceCache
from onnx_igpc.lowering.options import Precision
from onnx_igpc.runtime.setting import Setting

Price = Callable[[onnx.ModelProto], float]


def by_operator(prices: Mapping[str, float], weight: float = 0.0) -> Price:
    """A price for each node by its operator (1 for others), and for each weight of a convolution."""

    def price(model: onnx.ModelProto) -> float:
        sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
        total = 0.0
        for node in model.graph.node:
            total += prices.get(node.op_type, 1.0)
            if node.op_type in ("Conv", "MatMul") and len(node.input) > 1:
                total += weight * max(sizes.get(name, 0) for name in node.input[:2])
        return 1e-6 * total

    return price


class Prices:
    """Races that cost nothing; ``sites`` and ``wholes`` count them. Times vary by no noise at all."""

    def __init__(self, site: Price, whole: Price | None = None) -> None:
        self.site = site
        self.whole = whole or site
        self.sites = 0
        self.wholes = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Prices:
        monkeypatch.setattr(choose, "race_site", self._race_site)
        monkeypatch.setattr(latency, "race_all", self._race_site)
        for module in (choose, latency):
            monkeypatch.setattr(module, "race_models", self._race_models)
        monkeypatch.setattr(select, "check_provider_runs", lambda model, setting: None)
        return self

    def _race_site(
        self,
        contenders: Mapping[str, OpenModel],
        setting: Setting,
        cache: RaceCache,
        precision: Precision = "float32",
    ) -> dict[str, float]:
        self.sites += 1
        return {name: self.site(model.proto) for name, model in contenders.items()}

    def _race_models(
        self, models: Sequence[OpenModel], setting: Setting, rounds: int
    ) -> np.ndarray:
        self.wholes += 1
        return np.tile([self.whole(model.proto) for model in models], (rounds, 1))


def race_by_macs(models: Sequence[OpenModel], setting: Setting, rounds: int) -> np.ndarray:
    """A race in which a model takes as long as it has multiply-accumulates."""
    return np.ones((rounds, 1)) * np.array([1e-9 * count(each).macs for each in models])
