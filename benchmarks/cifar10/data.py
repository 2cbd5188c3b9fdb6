"""CIFAR-10 as the arrays that every run of the benchmark reads.

The images are decoded once: training for many epochs on two processors would spend a tenth of its time on
that. Pixels become ``x / 127.5 - 1``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.errors import DataError
from onnx_igpc.graph.inputs import InputSpec
from onnx_igpc.torch_bridge.training.augment import Augmentation
from onnx_igpc.torch_bridge.training.data import open_training_data

SIDE = 32
PREPROCESSING = Preprocessing(scale=1 / 127.5, mean=(1.0,))
CALIBRATION_IMAGES = 1000
_INPUT = InputSpec("input", np.dtype(np.float32), ("batch", 3, SIDE, SIDE))
_AS_THEY_ARE = Augmentation(shift=0)


def prepare(images: Path, work: Path) -> tuple[Path, Path, Path]:
    """The training, test and calibration arrays in ``work``, made from ``images`` if they are not there.

    images: a folder with ``train/<class>/*`` and ``test/<class>/*``. The calibration images are the
    first of a fixed permutation of the training images, without labels.

    Raises:
        DataError: a folder is missing, has no class folders, or images of another size.
    """
    work.mkdir(parents=True, exist_ok=True)
    train, test, calibration = (work / f"{name}.npz" for name in ("train", "test", "calibration"))
    if not test.is_file():
        _write(test, *_decoded(images / "test"))
    if not train.is_file() or not calibration.is_file():
        values, labels = _decoded(images / "train")
        chosen = np.random.default_rng(0).permutation(len(values))[:CALIBRATION_IMAGES]
        _write(calibration, values[np.sort(chosen)], None)
        _write(train, values, labels)
    return train, test, calibration


def subset(train: Path, count: int | None) -> Path:
    """``count`` images of a training file, the same ones each time; the file itself where that is all."""
    if count is None:
        return train
    target = train.with_name(f"{train.stem}-{count}.npz")
    if not target.is_file():
        with np.load(train) as arrays:
            values, labels = arrays["input"], arrays["labels"]
        if count >= len(values):
            return train
        chosen = np.sort(np.random.default_rng(1).permutation(len(values))[:count])
        _write(target, values[chosen], labels[chosen])
    return target


def _decoded(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """float32[n, 3, 32, 32] and int64[n]."""
    data = open_training_data(folder, [_INPUT], PREPROCESSING)
    if data.labels is None:
        raise DataError(f"{folder}: the images must lie in a folder for each class")
    values = np.empty((data.size, 3, SIDE, SIDE), np.float32)
    for index in range(data.size):
        values[index] = data.sample(index, _AS_THEY_ARE, None)["input"]
    return values, data.labels


def _write(path: Path, values: np.ndarray, labels: np.ndarray | None) -> None:
    """An .npz that appears whole or not at all."""
    arrays = {"input": values} if labels is None else {"input": values, "labels": labels}
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.rename(path)
