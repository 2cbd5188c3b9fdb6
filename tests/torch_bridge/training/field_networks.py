"""The trunk of networks as people have them, for the tests of fine-tuning: a head is put behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnx_igpc.compression.pipeline import compress
from onnx_igpc.planning.options import Published
from tests.torch_bridge.graphs import make_model, random

node = helper.make_node


C = 16


def trunk(axes: int = 2) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """x -> stem -> Relu -> a pointwise layer that is rewritten -> Relu -> "seen", in so many axes."""
    nodes = [
        node("Conv", ["x", "stem_w", "stem_b"], ["a"], "stem", pads=[1] * 2 * axes),
        node("Relu", ["a"], ["b"], "stem_relu"),
        node("Conv", ["b", "wide_w", "wide_b"], ["c"], "wide"),
        node("Relu", ["c"], ["seen"], "wide_relu"),
    ]
    tensors = {
        "stem_w": random(C, 3, *[3] * axes) / 5,
        "stem_b": random(C, seed=1),
        "wide_w": random(2 * C, C, *[1] * axes, seed=2) / 4,
        "wide_b": random(2 * C, seed=3),
    }
    return nodes, tensors


def model_of(
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    outputs: Sequence[str],
    axes: int = 2,
) -> onnx.ModelProto:
    first, own = trunk(axes)
    return whole([*first, *nodes], {**own, **tensors}, outputs, axes)


def whole(
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    outputs: Sequence[str],
    axes: int = 2,
) -> onnx.ModelProto:
    model = make_model(nodes, tensors, {"x": ["n", 3, *[8] * axes]}, list(outputs), opset=18)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    inferred = onnx.shape_inference.infer_shapes(model)
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
    return model


def compressed(model: onnx.ModelProto) -> onnx.ModelProto:
    result = compress(model, Published(4))
    assert result.report.rewritten[0].name == "wide"
    return result.model


def pixels(path: Path, axes: int = 2, count: int = 64, **more: Any) -> Path:
    np.savez(path, x=random(count, 3, *[8] * axes, seed=9), **more)
    return path
