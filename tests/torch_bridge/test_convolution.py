"""Depthwise convolutions whose pads differ in front and behind, which are computed without padding the input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch.nn import functional

from onnx_igpc.torch_bridge import to_torch
from tests.torch_bridge.graphs import make_model, random, run_onnx, run_torch

# Begin and end of each axis, in ONNX's order.
PADS = [[0, 0, 1, 1], [1, 1, 0, 0], [2, 0, 1, 1], [0, 3, 2, 0]]


def depthwise(filters: int = 1, **attributes: Any) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], group=4, **attributes)]
    tensors = {"w": random(4 * filters, 1, 3, 3), "b": random(4 * filters)}
    return make_model(nodes, tensors, {"x": ["n", 4, 8, 9]}, ["y"])


@pytest.mark.parametrize(
    "attributes",
    [
        *({"pads": pads, "strides": [2, 1]} for pads in PADS),
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"pads": PADS[0], "dilations": [2, 1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("filters", [1, 2])
def test_what_comes_out(attributes: dict[str, Any], filters: int) -> None:
    model, x = depthwise(filters, **attributes), random(2, 4, 8, 9, seed=1)
    (wanted,) = run_onnx(model, x)
    (made,) = run_torch(to_torch(model), x)
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-5)


def test_what_flows_back() -> None:
    module, x = (
        to_torch(depthwise(pads=PADS[2], strides=[2, 2])),
        torch.from_numpy(random(2, 4, 8, 9)),
    )
    x.requires_grad_(True)
    module(x).square().sum().backward()
    weight, bias = module.get_parameter("w"), module.get_parameter("b")
    assert weight.grad is not None
    found = [x.grad, weight.grad.clone(), bias.grad]
    made = functional.conv2d(functional.pad(x, (0, 1, 2, 1)), weight, bias, stride=2, groups=4)
    wanted = torch.autograd.grad(made.square().sum(), [x, weight, bias])
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
