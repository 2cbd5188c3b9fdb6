"""The check of the written model against the module, where a network amplifies rounding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch

from onnx_igpc.errors import CheckFailedError, ModelError
from onnx_igpc.torch_bridge.training.loader import TensorBatch
from onnx_igpc.torch_bridge.training.output import check_written
from tests.helpers import GraphBuilder

SIZE = 512
GENERATOR = np.random.default_rng(0)
LARGE = GENERATOR.standard_normal((SIZE, 8)).astype(np.float32)
# The difference of the two products is a thousand times smaller than they are.
CLOSE = (LARGE * (1 + 1e-3 * GENERATOR.standard_normal(LARGE.shape))).astype(np.float32)
BATCH = GENERATOR.standard_normal((4, SIZE)).astype(np.float32)


class Difference(torch.nn.Module):
    """x A - x B, summed in the order of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.from_numpy(LARGE))
        self.b = torch.nn.Parameter(torch.from_numpy(CLOSE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a - x @ self.b


def the_same_in_another_order(wrong: float = 0.0) -> onnx.ModelProto:
    """The module's graph with its channels shuffled; ``wrong`` is added to one weight."""
    order = np.random.default_rng(1).permutation(SIZE)
    other = CLOSE[order].copy()
    other[0, 0] += np.float32(wrong)
    graph = GraphBuilder()
    x = graph.input("x", ["n", SIZE])
    shuffled = graph.add("Gather", [x, graph.initializer("order", order)], "shuffled", axis=1)
    a = graph.add("MatMul", [shuffled, graph.initializer("a", LARGE[order])], "xa")
    b = graph.add("MatMul", [shuffled, graph.initializer("b", other)], "xb")
    graph.output(graph.add("Sub", [a, b], "y"), ["n", 8])
    return graph.model()


def check(model: onnx.ModelProto, module: torch.nn.Module) -> dict[str, Any]:
    networks = cast(Any, SimpleNamespace(whole=module, outputs=["y"]))
    batch = cast(TensorBatch, SimpleNamespace(inputs=[torch.from_numpy(BATCH)], count=len(BATCH)))
    return check_written(networks, model, batch)


def test_rounding_that_the_network_amplifies_is_no_difference() -> None:
    module = Difference()
    found = check(the_same_in_another_order(), module)
    assert 1e-4 < found.relative <= found.bound < 1e-2
    assert module.a.dtype == torch.float32


def test_a_wrong_weight_is_found_all_the_same() -> None:
    with pytest.raises(CheckFailedError, match="away from what the trained module computes"):
        check(the_same_in_another_order(0.01), Difference())


def test_a_module_that_float64_does_not_fit_is_held_to_the_usual_bound() -> None:
    class Single(Difference):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.float() @ self.a - x.float() @ self.b

    with pytest.raises(CheckFailedError, match=r"more than 0\.0001"):
        check(the_same_in_another_order(), Single())


def test_what_is_finite_in_neither_is_the_models_fault() -> None:
    module = Difference()
    damaged = module.b.detach().clone()
    damaged[0, 0] = float("nan")
    module.b = torch.nn.Parameter(damaged)
    with pytest.raises(ModelError, match="look for weights that are not finite"):
        check(the_same_in_another_order(float("nan")), module)
    with pytest.raises(CheckFailedError, match="away from"):
        check(the_same_in_another_order(), module)
