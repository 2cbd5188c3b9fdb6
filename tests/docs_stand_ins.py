"""The files that the documentation talks about, small: networks, pictures, arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from PIL import Image

import onnx_igpc
from tests.helpers import GraphBuilder

ROOT = Path(__file__).parent.parent
CLASSES = 3
_CHANNELS = 72
_SIDE = 16


def make_files(folder: Path) -> None:
    """Write everything into ``folder``; what is in the repository is linked."""
    onnx.save(_network("classifier"), folder / "model.onnx")
    onnx.save(_network("detector"), folder / "detector.onnx")
    onnx.save(_network("segmenter"), folder / "segmenter.onnx")
    result = onnx_igpc.compress(folder / "model.onnx", onnx_igpc.Published(32))
    for name in ("small.onnx", "tuned.onnx"):
        result.save(folder / name)
    for name in ("images", "train", "val", "labelled"):
        _pictures(folder / name, labelled=name != "images")
    _pictures(folder / "photos", labelled=False, count=70)
    for name in ("sample_models", "examples", "benchmarks", "setup.cfg", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)


def _pictures(folder: Path, *, labelled: bool, count: int = 12) -> None:
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class_{number % CLASSES}" if labelled else folder
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")


def _network(kind: str) -> onnx.ModelProto:
    """A stem, two pointwise convolutions that --ch 32 rewrites, and the outputs of its kind."""
    graph = GraphBuilder(seed=1)
    value = graph.input("input", ["batch", 3, _SIDE, _SIDE])
    value = graph.conv(value, "first", 3, _CHANNELS, kernel=3, strides=[4, 4], pads=[1] * 4)
    for name in ("stem_pw", "block_pw"):
        value = graph.conv(value, name, _CHANNELS, _CHANNELS, name=name)
        value = graph.activation(
            graph.batch_norm(value, f"{name}_bn", _CHANNELS), f"{name}_act", "Relu"
        )
    if kind == "classifier":
        value = graph.add("Flatten", [graph.add("GlobalAveragePool", [value], "pooled")], "flat")
        weight = graph.initializer("head_w", graph.random(_CHANNELS, CLASSES) / 10)
        graph.output(graph.add("MatMul", [value, weight], "logits"), ["batch", CLASSES])
        return graph.model()
    value = graph.conv(value, "last", _CHANNELS, 8, kernel=3, pads=[1] * 4)
    if kind == "segmenter":
        graph.output(graph.conv(value, "masks", 8, 4, kernel=3, pads=[1] * 4), ["batch", 4, 4, 4])
        return graph.model()
    score = graph.conv(value, "score", 8, 1, kernel=3, pads=[1] * 4)
    graph.output(graph.add("Sigmoid", [score], "scores"), ["batch", 1, 4, 4])
    graph.output(graph.conv(value, "boxes", 8, 4, kernel=3, pads=[1] * 4), ["batch", 4, 4, 4])
    return graph.model()
