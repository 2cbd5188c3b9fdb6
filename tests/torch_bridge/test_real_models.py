"""Trained networks of many exporters, from the folder in ONNX_IGPC_MODELS, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from onnx_igpc.torch_bridge import from_torch, to_torch
from tests.real_models import each_model
from tests.torch_bridge.graphs import difference, run_onnx, run_torch, train


def _open(path: Path) -> onnx.ModelProto:
    torch.set_num_threads(1)
    model: onnx.ModelProto = onnx.load(path)
    return model


def _inputs(model: onnx.ModelProto, batch: int = 1) -> list[np.ndarray]:
    """Pages of dark words, or blocks of grey in 0..255 for networks that take bytes.

    Detectors answer noise with scores of nearly zero, on which no comparison means anything.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    arrays = []
    for value in model.graph.input:
        if value.name in initializers:
            continue
        declared = [d.dim_value for d in value.type.tensor_type.shape.dim]
        shape = [d if d > 0 else free for d, free in zip(declared, (1, 3, 224, 224), strict=True)]
        last = shape[-1] == 3
        height, width = shape[1:3] if last else shape[2:]
        draw = _blocks if _takes_bytes(model) else _page
        pages = np.stack([draw(height, width, seed) for seed in range(batch)])
        axis = -1 if last else 1
        image = np.repeat(np.expand_dims(pages, axis), shape[axis], axis)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        arrays.append(image.astype(dtype))
    return arrays


def _page(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    page = np.full((height, width), 0.95)
    for top in range(20, height - 18, 45):
        for left in range(20, width - 10, 15):
            glyph = np.kron(rng.random((9, 5)) < 0.5, np.ones((2, 2)))
            page[top : top + 18, left : left + 10] -= 0.9 * glyph
    return page * 4 - 2


def _blocks(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 8 + 1, width // 8 + 1)) * 255
    return np.kron(coarse, np.ones((8, 8)))[:height, :width]


def _takes_bytes(model: onnx.ModelProto) -> bool:
    """Some detectors have no normalization in front and take 0..255."""
    names = {value.name for value in (*model.graph.input, *model.graph.output)}
    return bool(names & {"obj_8", "images"})


@each_model
def test_agrees_with_onnxruntime(path: Path) -> None:
    model = _open(path)
    inputs = _inputs(model)
    quantized = any(n.op_type == "QuantizeLinear" for n in model.graph.node)
    expected = run_onnx(model, *inputs, optimize=not quantized)
    for got, want in zip(run_torch(to_torch(model), *inputs), expected, strict=True):
        if quantized:
            step = np.diff(np.unique(want)).min() if want.dtype == np.float32 else 1
            steps = np.abs(got.astype(np.float64) - want) / step
            assert (steps <= 2.001).mean() >= 0.95
        else:
            limit = 5e-3 if inputs[0].dtype == np.float16 else 1e-4
            assert difference(got, want) < limit


@each_model
def test_untrained_module_gives_the_same_bytes(path: Path) -> None:
    model = _open(path)
    assert from_torch(to_torch(model), model).SerializeToString() == model.SerializeToString()


@each_model
def test_ten_steps_reach_every_weight(path: Path) -> None:
    model = _open(path)
    module = to_torch(model)
    if not module.bindings:
        pytest.skip("every weight of this model is an integer")
    inputs = _inputs(model, batch=2)
    try:
        run_torch(module, *inputs)
    except RuntimeError:  # the batch of one was written into shapes by the exporter
        inputs = _inputs(model)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    large = inputs[0].size > 1e6
    train(
        module, *[x / max(np.abs(x).max(), 1) for x in inputs], steps=2 if large else 10, rate=1e-5
    )
    after = module.state_dict()
    stuck = {n for n in module.bindings if torch.equal(after[n], before[n])}
    assert not stuck
