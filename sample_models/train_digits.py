"""Trains ``digits_net`` on scikit-learn's handwritten digits: ``python -m sample_models.train_digits``.

Writes three files beside this one. ``digits_net.onnx`` is the trained model with BatchNorm kept; its
metadata tell the measured accuracy and what the input must look like (key ``onnx_igpc.training``,
JSON). ``digits_test.npz`` is the held-out split: the model input by name, and ``labels``;
``digits_calibration.npz`` has 300 of the training images without labels.

The network is built as ONNX, trained through :mod:`onnx_igpc.torch_bridge` and written back into
the same graph.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from onnx_igpc.torch_bridge import from_torch, to_torch
from sample_models import build

HERE = Path(__file__).parent
CALIBRATION_IMAGES = 300
METADATA_KEY = "onnx_igpc.training"


@dataclass(frozen=True)
class Recipe:
    """How the network is trained."""

    epochs: int = 30
    batch: int = 64
    rate: float = 1e-2
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05
    held_out: int = 360
    seed: int = 0


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) float32 in 0..1 and labels (n,) int64, in two fixed parts."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def load(recipe: Recipe) -> Digits:
    """scikit-learn's digits, split by a seeded permutation."""
    data = load_digits()
    images = (data.images[:, np.newaxis] / 16).astype(np.float32)
    labels = data.target.astype(np.int64)
    order = np.random.default_rng(recipe.seed).permutation(len(images))
    test, train = order[: recipe.held_out], order[recipe.held_out :]
    return Digits(images[train], labels[train], images[test], labels[test])


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to one pixel in both directions."""
    padded = functional.pad(images, [1, 1, 1, 1])
    rows, columns = torch.randint(0, 3, (2, len(images)), generator=generator)
    size = torch.arange(images.shape[-1])
    picture = torch.arange(len(images)).reshape(-1, 1, 1)
    y = (rows.unsqueeze(1) + size).unsqueeze(2)
    x = (columns.unsqueeze(1) + size).unsqueeze(1)
    return padded[picture, 0, y, x].unsqueeze(1)


def train(model: onnx.ModelProto, digits: Digits, recipe: Recipe) -> onnx.ModelProto:
    """The model with trained weights and real BatchNorm statistics."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    module = to_torch(model)
    images, labels = torch.from_numpy(digits.train), torch.from_numpy(digits.train_labels)
    steps = recipe.epochs * math.ceil(len(images) / recipe.batch)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    for epoch in range(recipe.epochs):
        total = 0.0
        order = torch.randperm(len(images), generator=generator)
        for chosen in torch.split(order, recipe.batch):
            logits = module(shifted(images[chosen], generator))
            loss = functional.cross_entropy(
                logits, labels[chosen], label_smoothing=recipe.label_smoothing
            )
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        if epoch % 5 == 4:
            print(f"epoch {epoch + 1:3d}  loss {total / len(images):.4f}", flush=True)
    return from_torch(module.eval(), model)


def accuracy(model: onnx.ModelProto, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that onnxruntime classifies right."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    return float((logits.argmax(1) == labels).mean())


def describe(model: onnx.ModelProto, measured: float, recipe: Recipe) -> None:
    """Write what a user of the model must know into its metadata."""
    facts = {
        "data": "scikit-learn load_digits (1797 images of 8x8 pixels, 10 classes)",
        "test_accuracy": round(measured, 4),
        "test_images": recipe.held_out,
        "preprocessing": {
            "input": model.graph.input[0].name,
            "layout": "NCHW, one channel",
            "scale": "pixel value / 16, so 0..1",
        },
    }
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = json.dumps(facts)
            return
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(facts))


def main() -> None:
    recipe = Recipe()
    digits = load(recipe)
    model = train(build("digits_net"), digits, recipe)
    measured = accuracy(model, digits.test, digits.test_labels)
    print(f"test accuracy in onnxruntime: {measured:.4f} on {recipe.held_out} images")
    describe(model, measured, recipe)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, HERE / "digits_net.onnx")
    arrays: dict[str, Any] = {model.graph.input[0].name: digits.test, "labels": digits.test_labels}
    np.savez_compressed(HERE / "digits_test.npz", **arrays)
    unlabelled: dict[str, Any] = {
        model.graph.input[0].name: digits.train[:CALIBRATION_IMAGES],
    }
    np.savez_compressed(HERE / "digits_calibration.npz", **unlabelled)


if __name__ == "__main__":
    main()
