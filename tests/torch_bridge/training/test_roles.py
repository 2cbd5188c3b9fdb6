"""Which constants of a graph are learned, and which are scales, masks and grids around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_igpc.torch_bridge import to_torch
from onnx_igpc.torch_bridge.training.finetune import finetune
from tests.torch_bridge.graphs import random
from tests.torch_bridge.training.field_networks import (
    C,
    compressed,
    model_of,
    node,
    pixels,
    trunk,
    whole,
)
from tests.torch_bridge.training_cases import arrays_of, short


def yolo() -> onnx.ModelProto:
    """Colours are centred in front, boxes are decoded behind: 3 anchors on a grid of 8 x 8, 5 axes."""
    f = np.float32
    y, x = np.meshgrid(np.arange(8, dtype=f), np.arange(8, dtype=f), indexing="ij")
    nodes, tensors = trunk()
    nodes[0].input[0] = "scaled"
    nodes[:0] = [
        node("Sub", ["x", "mean"], ["centred"]),
        node("Div", ["centred", "std"], ["scaled"]),
    ]
    nodes += [
        node("Mul", ["seen", "gamma"], ["gated"]),
        node("Conv", ["gated", "head_w", "head_b"], ["h"], "head"),
        node("Reshape", ["h", "split"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[0, 1, 3, 4, 2]),
        node("Sigmoid", ["t"], ["s"]),
        node("Split", ["s", "sizes"], ["xy", "wh", "rest"], axis=4),
        node("Add", ["xy", "grid"], ["at"]),
        node("Mul", ["at", "stride"], ["centre"]),
        node("Pow", ["wh", "two"], ["square"]),
        node("Mul", ["square", "anchors"], ["size"]),
        node("Concat", ["centre", "size", "rest"], ["all"], axis=4),
        node("Reshape", ["all", "flat"], ["boxes"]),
    ]
    tensors |= {
        "mean": np.full((1, 3, 1, 1), 0.5, f),
        "std": np.array([0.2, 0.3, 0.4], f).reshape(1, 3, 1, 1),
        "gamma": random(2 * C, 1, 1, seed=4),
        "head_w": random(21, 2 * C, 1, 1, seed=5) / 4,
        "head_b": random(21, seed=6),
        "split": np.array([0, 3, 7, 8, 8]),
        "sizes": np.array([2, 2, 3]),
        "grid": np.stack([x, y], -1).reshape(1, 1, 8, 8, 2),
        "stride": np.array([8.0, 8.0], f),
        "two": np.array(2.0, f),
        "anchors": np.array([10, 13, 16, 30, 33, 23], f).reshape(1, 3, 1, 1, 2),
        "flat": np.array([0, 192, 7]),
    }
    return whole(nodes, tensors, ["boxes"])


class TestAxes:
    def test_constants_around_the_network_are_no_weights(self) -> None:
        trained = {name for name, _ in to_torch(yolo()).named_parameters()}
        layers = {f"{name}_{kind}" for name in ("stem", "wide", "head") for kind in "wb"}
        assert trained == layers | {"gamma"}

    def test_heads_of_five_axes(self, tmp_path: Path) -> None:
        teacher = yolo()
        data = pixels(tmp_path / "d.npz")
        result = finetune(compressed(teacher), teacher=teacher, data=data, recipe=short(epochs=4))
        assert result.gained
        old, new = arrays_of(teacher), arrays_of(result.model)
        for name in ("mean", "std", "grid", "stride", "anchors"):
            assert np.array_equal(old[name], new[name])
        assert not np.array_equal(old["gamma"], new["gamma"])

    @pytest.mark.parametrize("axes", [1, 3])
    def test_sound_and_volumes(self, tmp_path: Path, axes: int) -> None:
        nodes = [
            node("GlobalAveragePool", ["seen"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "head_w", "head_b"], ["scores"]),
        ]
        tensors = {"head_w": random(2 * C, 5, seed=5), "head_b": random(5, seed=6)}
        teacher = model_of(nodes, tensors, ["scores"], axes)
        data = pixels(tmp_path / "d.npz", axes)
        small = compressed(teacher)
        result = finetune(small, teacher=teacher, data=data, recipe=short(epochs=4))
        assert result.gained
        assert not np.array_equal(arrays_of(small)["stem_w"], arrays_of(result.model)["stem_w"])


class TestRoles:
    def parameters(
        self, nodes: Sequence[onnx.NodeProto], tensors: dict[str, np.ndarray], output: str = "y"
    ) -> set[str]:
        module = to_torch(model_of(nodes, tensors, [output]))
        return {name for name, _ in module.named_parameters()} & tensors.keys()

    def test_the_bias_of_the_last_layer(self) -> None:
        nodes = [
            node("GlobalAveragePool", ["seen"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("MatMul", ["f", "w"], ["m"]),
            node("Add", ["m", "bias"], ["scores"]),
            node("Mul", ["scores", "unit"], ["y"]),
        ]
        tensors = {"w": random(2 * C, 4), "bias": random(4), "unit": random(4, seed=1)}
        # Behind the bias nothing belongs to the layer: a unit in which the results are given.
        assert self.parameters(nodes, tensors) == {"w", "bias"}

    def test_normalization_in_single_steps_at_the_end(self) -> None:
        nodes = [
            node("GlobalAveragePool", ["seen"], ["mean"]),
            node("Sub", ["seen", "mean"], ["centred"]),
            node("Mul", ["centred", "centred"], ["square"]),
            node("GlobalAveragePool", ["square"], ["var"]),
            node("Add", ["var", "eps"], ["safe"]),
            node("Sqrt", ["safe"], ["std"]),
            node("Div", ["centred", "std"], ["normal"]),
            node("Mul", ["normal", "gamma"], ["scaled"]),
            node("Add", ["scaled", "beta"], ["y"]),
        ]
        tensors = {
            "eps": np.array(1e-5, np.float32),
            "gamma": random(1, 2 * C, 1, 1),
            "beta": random(1, 2 * C, 1, 1, seed=1),
        }
        assert self.parameters(nodes, tensors) == {"gamma", "beta"}

    def test_tokens_and_positions_are_learned_and_masks_are_not(self) -> None:
        f = np.float32
        nodes = [
            node("Reshape", ["seen", "shape"], ["flat"]),
            node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
            node("Add", ["tokens", "positions"], ["t"]),
            node("MatMul", ["t", "q"], ["scores"]),
            node("Add", ["scores", "mask"], ["masked"]),
            node("Softmax", ["masked"], ["share"], axis=-1),
            node("MatMul", ["share", "t"], ["mixed"]),
            node("MatMul", ["mixed", "o"], ["y"]),
        ]
        tensors = {
            "shape": np.array([0, 2 * C, 64]),
            "positions": random(1, 64, 2 * C),
            "q": random(2 * C, 64),
            "mask": np.triu(np.full((1, 64, 64), -1e9, f), 1),
            "o": random(2 * C, 4),
        }
        assert self.parameters(nodes, tensors) == {"positions", "q", "o"}

    def test_the_projection_of_a_box_head_counts(self) -> None:
        """Sides of boxes as the mean of a distribution over 16 distances: a Conv with 0 to 15."""
        nodes = [
            node("Conv", ["seen", "head_w"], ["h"]),
            node("Reshape", ["h", "sides"], ["r"]),
            node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3]),
            node("Softmax", ["t"], ["s"], axis=1),
            node("Conv", ["s", "dfl"], ["d"]),
            node("Reshape", ["d", "flat"], ["ltrb"]),
            node("Sub", ["points", "ltrb"], ["corner"]),
            node("Mul", ["corner", "strides"], ["y"]),
        ]
        tensors = {
            "head_w": random(64, 2 * C, 1, 1),
            "sides": np.array([0, 4, 16, 64]),
            "dfl": np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1),
            "flat": np.array([0, 4, 64]),
            "points": np.indices((2, 64)).sum(0).astype(np.float32).repeat(2, 0)[None],
            "strides": np.repeat(np.array([8, 16], np.float32), 32)[None],
        }
        assert self.parameters(nodes, tensors) == {"head_w"}

    def test_standardized_weights_are_weights(self) -> None:
        nodes = [
            node("ReduceMean", ["w", "axes"], ["m"]),
            node("Sub", ["w", "m"], ["centred"]),
            node("Conv", ["seen", "centred"], ["y"]),
        ]
        tensors = {"w": random(4, 2 * C, 1, 1), "axes": np.array([1])}
        assert self.parameters(nodes, tensors) == {"w"}
