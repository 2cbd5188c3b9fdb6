"""A tiny classifier, its compressed form, and data for it, for the tests of fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_igpc.compression.pipeline import compress
from onnx_igpc.planning.options import Published
from onnx_igpc.torch_bridge.training.recipe import Recipe
from tests.helpers import GraphBuilder
from tests.torch_bridge.graphs import run_onnx

CLASSES = 3
SIDE = 5


def classifier(
    *, batch: int | str = "batch", dtype: type[np.generic] = np.float32, end: str | None = None
) -> onnx.ModelProto:
    """Two pointwise convolutions that are rewritten at ch=4, then pooling and class scores.

    end: an operator behind the scores, such as Softmax.
    """
    graph = GraphBuilder(dtype=dtype, seed=3)
    x = graph.input("x", [batch, 1, SIDE, SIDE])
    x = graph.conv(x, "stem", 1, 12, kernel=3, pads=[1, 1, 1, 1])
    x = graph.activation(graph.batch_norm(x, "stem_bn", 12), "stem_relu", "Relu")
    x = graph.conv(x, "wide", 12, 24)
    x = graph.activation(graph.batch_norm(x, "wide_bn", 24), "wide_relu", "Relu")
    x = graph.conv(x, "deep", 24, 16)
    x = graph.activation(graph.batch_norm(x, "deep_bn", 16), "deep_relu", "Relu")
    x = graph.add("GlobalAveragePool", [x], "pooled")
    x = graph.add("Flatten", [x], "flat")
    weight = graph.initializer("head_w", graph.random(16, CLASSES))
    scores = graph.add("MatMul", [x, weight], "scores")
    if end:
        scores = graph.add(end, [scores], "ended")
    graph.output(scores, ["batch", CLASSES])
    return graph.model()


def smaller(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its two sites rewritten."""
    result = compress(model, Published(4))
    assert [site.name for site in result.report.rewritten] == ["wide_node", "deep_node"]
    return result.model


def write_data(
    path: Path, teacher: onnx.ModelProto, count: int = 64, *, labels: bool = True, seed: int = 0
) -> Path:
    """Random images in an .npz, labelled by the teacher."""
    images = np.random.default_rng(seed).standard_normal((count, 1, SIDE, SIDE)).astype(np.float32)
    arrays: dict[str, Any] = {"x": images}
    if labels:
        arrays["labels"] = run_onnx(teacher, images)[0].argmax(1)
    np.savez(path, **arrays)
    return path


def short(**changes: Any) -> Recipe:
    """A recipe of a few steps, otherwise that for many samples."""
    return Recipe(**{"base": "many", "epochs": 3, "batch_size": 16, "lr": 1e-2, **changes})


def arrays_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The initializers by name."""
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
