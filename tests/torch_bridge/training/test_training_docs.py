"""The examples of the documentation, run as they are written, the longest in short form."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from onnx_igpc.cli import main
from sample_models.digits_data import write
from tests.torch_bridge.training_cases import SIDE, arrays_of, classifier, smaller

ROOT = Path(__file__).parents[3]
WRITTEN = ("digits_train.npz", "small.onnx", "tuned.onnx")


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / "docs" / document).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_digits_model_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    [example] = blocks("fine-tune.md", "console")
    commands = [shlex.split(line.removeprefix("$ ")) for line in example.splitlines()]
    assert [command[:2] for command in commands] == [
        ["python", "-m"],
        ["onnx-igpc", "compress"],
        ["onnx-igpc", "finetune"],
        ["onnx-igpc", "verify"],
    ]
    assert commands[0][2] == "sample_models.digits_data"
    write(tmp_path / "digits_train.npz")
    for command in commands[1:]:
        arguments = [str(tmp_path / word) if word in WRITTEN else word for word in command[1:]]
        if arguments[0] == "finetune":
            assert "digits_test.npz" not in " ".join(arguments)
            arguments[arguments.index("--epochs") + 1] = "2"
        if arguments[0] == "verify":
            arguments += ["--json", str(tmp_path / "found.json")]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "found.json").read_text())["classifier"]
    # 88 % before; the 10 epochs of the example bring the original's 98 %.
    assert found["candidate"]["top1"] > 0.94
    assert found["original"]["top1"] == pytest.approx(0.9833, abs=1e-4)


def test_own_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = smaller(classifier())
    onnx.save(small, "small.onnx")
    images = torch.from_numpy(np.random.default_rng(0).random((2, 8, 1, SIDE, SIDE), np.float32))
    batches = [(images[0], torch.zeros(8).long()), (images[1], torch.ones(8).long())]
    [code] = blocks("own-loop.md", "python")
    exec(compile(code, "own-loop.md", "exec"), {"batches": batches})
    old, new = arrays_of(small), arrays_of(onnx.load("tuned.onnx"))
    floats = [name for name, value in old.items() if value.dtype == np.float32]
    assert all(not np.array_equal(old[name], new[name]) for name in floats)
    [commands] = blocks("own-loop.md", "console")
    for line in commands.splitlines():
        result = CliRunner().invoke(main, shlex.split(line.removeprefix("$ "))[1:])
        assert result.exit_code == 0, result.output
    assert Path("tuned.onnx").read_bytes() == Path("small.onnx").read_bytes()
