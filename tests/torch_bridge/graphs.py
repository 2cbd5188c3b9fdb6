"""Small graphs and comparisons that the tests of the bridge share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper


def make_model(
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    inputs: dict[str, Sequence[int | str]],
    outputs: Sequence[str],
    *,
    opset: int = 17,
    input_type: int = TensorProto.FLOAT,
    output_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of float inputs and outputs; shapes of outputs are left open."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(n, input_type, shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info(name, output_type, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_cnn() -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, grouped Conv behind a Gather, pooling, Gemm."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem.weight"], ["a"], "stem", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", *(f"bn.{n}" for n in BN)], ["b"], "bn", momentum=0.8),
        node("Relu", ["b"], ["c"]),
        node("Gather", ["c", "order"], ["d"], "shuffle", axis=1),
        node("Conv", ["d", "point.weight", "point.bias"], ["e"], "point", group=2),
        node("GlobalAveragePool", ["e"], ["f"]),
        node("Flatten", ["f"], ["g"]),
        node("Gemm", ["g", "head.weight", "head.bias"], ["y"], "head", transB=1),
    ]
    tensors = {
        "stem.weight": random(8, 3, 3, 3) / 4,
        "bn.weight": random(8, seed=1),
        "bn.bias": random(8, seed=2),
        "bn.running_mean": random(8, seed=3) / 4,
        "bn.running_var": np.abs(random(8, seed=4)) + 0.5,
        "order": np.array([0, 4, 1, 5, 2, 6, 3, 7]),
        "point.weight": random(6, 4, 1, 1, seed=5),
        "point.bias": random(6, seed=6),
        "head.weight": random(5, 6, seed=7),
        "head.bias": random(5, seed=8),
    }
    return make_model(nodes, tensors, {"x": ["batch", 3, "h", "w"]}, ["y"])


BN = ("weight", "bias", "running_mean", "running_var")


def run_onnx(
    model: onnx.ModelProto, *inputs: np.ndarray, optimize: bool = True
) -> list[np.ndarray]:
    """Outputs of onnxruntime on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    results: list[np.ndarray] = session.run(None, dict(zip(names, inputs, strict=True)))
    return results


def run_torch(module: torch.nn.Module, *inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs of the module in evaluation mode."""
    module.eval()
    with torch.no_grad():
        results = module(*[torch.from_numpy(value) for value in inputs])
    results = results if isinstance(results, tuple) else (results,)
    return [result.numpy() for result in results]


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference relative to the largest value."""
    assert got.shape == want.shape
    worst = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
    return float(worst / max(np.abs(want.astype(np.float64)).max(), 1e-30))


def train(module: torch.nn.Module, *inputs: np.ndarray, steps: int = 3, rate: float = 0.01) -> None:
    """A few steps on a loss that every element of every output takes part in."""
    module.train()
    # Adam moves every weight that has a gradient by about the rate, however small the gradient.
    optimizer = torch.optim.Adam(module.parameters(), lr=rate, eps=1e-30)
    tensors = [torch.from_numpy(value) for value in inputs]
    for _ in range(steps):
        results = module(*tensors)
        results = results if isinstance(results, tuple) else (results,)
        floats = [r for r in results if r.is_floating_point()]
        loss = sum((r * torch.randn_like(r)).mean() + r.square().mean() for r in floats)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
