"""A tiny classifier, its compressed form and data for it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.torch_bridge.training_cases import classifier, smaller, write_data


@pytest.fixture(scope="module")
def teacher() -> onnx.ModelProto:
    return classifier()


@pytest.fixture(scope="module")
def compressed(teacher: onnx.ModelProto) -> onnx.ModelProto:
    return smaller(teacher)


@pytest.fixture
def data(tmp_path: Path, teacher: onnx.ModelProto) -> Path:
    return write_data(tmp_path / "train.npz", teacher)


@pytest.fixture
def unlabelled(tmp_path: Path, teacher: onnx.ModelProto) -> Path:
    return write_data(tmp_path / "unlabelled.npz", teacher, labels=False)
