"""Models, weights and checkpoints that finetune and from-torch cannot use: one line, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.helpers import pointwise_model
from tests.hostile import hostile_models
from tests.test_hostile_models import command

# Valid for the checker, but of shapes that do not go together.
SHAPES = (
    "a weight that expands to 2^60",
    "a weight that expands to nothing",
    "a weight of another rank",
    "strides of 0",
    "0 groups",
    "an input twice",
    "operator set 2^40",
)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.onnx"
    path.write_bytes(pointwise_model(12, 12).SerializeToString())
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 12, 5, 5), np.float32))
    return path


def finetune(model: Path, teacher: Path, *more: str) -> int:
    output = teacher.with_name("tuned.onnx")
    arguments = ("--data", teacher.with_name("data.npz"), "-o", output, "--epochs", "1")
    code = command(
        "finetune", model, "--teacher", teacher, *arguments, "--workers", "0", "-q", *more
    )
    assert output.exists() == (not code)
    return code


@pytest.mark.parametrize("name", SHAPES)
def test_models(name: str, good: Path) -> None:
    [case] = [each for each in hostile_models() if each.name == name]
    model = good.with_name("model.onnx")
    model.write_bytes(case.content)
    assert finetune(model, good) == 2


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"onnx_igpc.run": "{"},
        {"onnx_igpc.run": "[" * 100_000},
        {"onnx_igpc.run": "[]"},
        {"onnx_igpc.run": json.dumps({"version": 1})},
        {"onnx_igpc.run": json.dumps({"version": 1, "settings": {}, "epoch": "two"})},
        {"onnx_igpc.run": json.dumps({"version": 1, "settings": [], "history": 3})},
        {"onnx_igpc.run": json.dumps({"version": 1, "settings": {}, "surprise": 0})},
    ],
    ids=lambda header: str(header)[:40],
)
def test_checkpoints(header: dict[str, str], good: Path) -> None:
    save_file({"model/x": torch.zeros(3)}, good.with_name("tuned.onnx.checkpoint"), header)
    assert finetune(good, good, "--resume") == 2


def test_weights(good: Path) -> None:
    """Pickles that run code, files that are cut off, and tensors of other kinds."""
    hacked = good.with_name("hacked")
    evil = b"cos\nsystem\n(S'touch " + str(hacked).encode() + b"'\ntR."
    state = {"conv_w": torch.zeros(12, 12, 1, 1)}
    torch.save(state, good.with_name("whole.pt"))
    whole = good.with_name("whole.pt").read_bytes()
    cuts = [(".pt", whole[: len(whole) * tenth // 10]) for tenth in range(0, 10, 3)]
    output = good.with_name("out.onnx")
    for suffix, content in ((".pt", evil), (".safetensors", b"\xff" * 64), (".pt", b"PK"), *cuts):
        file = good.with_name(f"weights{suffix}")
        file.write_bytes(content)
        assert command("from-torch", good, file, "-o", output) == 2
    assert not hacked.exists()
    assert not output.exists()


@pytest.mark.parametrize("kind", ["integers", "complex", "sparse", "meta"])
def test_weights_of_another_kind(kind: str, good: Path) -> None:
    folder = good.parent
    command("to-torch", good, "-o", folder, works=True)
    from safetensors.torch import load_file

    state = load_file(folder / "weights.safetensors")
    odd = {
        "integers": lambda value: value.to(torch.int64),
        "complex": lambda value: value.to(torch.complex64),
        "sparse": lambda value: value.to_sparse(),
        "meta": lambda value: value.to("meta"),
    }[kind]
    name = next(iter(state))
    torch.save({**state, name: odd(state[name])}, folder / "odd.pt")
    assert command("from-torch", good, folder / "odd.pt", "-o", folder / "out.onnx") == 2
    assert not (folder / "out.onnx").exists()
