"""The commands that train, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from onnx_igpc.cli import main
from onnx_igpc.torch_bridge import to_torch
from tests.torch_bridge.training_cases import arrays_of, classifier, smaller, write_data


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_refused(result: Result, message: str, *absent: Path) -> None:
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not [path for path in absent if path.exists()]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    teacher = classifier()
    onnx.save(teacher, tmp_path / "teacher.onnx")
    onnx.save(smaller(teacher), tmp_path / "small.onnx")
    write_data(tmp_path / "d.npz", teacher)
    return tmp_path


def tune(files: Path, *options: object) -> Result:
    return run(
        *("finetune", files / "small.onnx", "--teacher", files / "teacher.onnx"),
        *("--data", files / "d.npz", "-o", files / "out.onnx", *options),
    )


class TestFinetune:
    def test_writes_the_model_the_log_and_the_report(self, files: Path) -> None:
        result = tune(
            *(files, "--epochs", 2, "--val", files / "d.npz", "--report", files / "r.json"),
            *("--log", files / "log"),
        )
        assert result.exit_code == 0, result.output
        note, front, rate, *lines = result.stderr.strip().splitlines()
        assert note.startswith("note: recipe few was chosen for 64 training samples")
        assert front.startswith("note: 5 weights before the first rewritten layer stay as in the")
        assert rate.startswith("note: learning rate 0.002 was not confirmed by trying others: 4 ")
        assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
        for word in ("loss", "accuracy", "val accuracy", "images/s", "left"):
            assert word in lines[0]
        assert "validation accuracy: " in result.stdout
        assert "onnxruntime is within" in result.stdout
        report = json.loads((files / "r.json").read_text())
        assert len(report["finetune"]["epochs"]) == 2
        names = {path.name for path in files.iterdir()}
        assert names == {
            *("teacher.onnx", "small.onnx", "d.npz", "out.onnx"),
            *("r.json", "log.csv", "log.json"),
        }
        shown = run("report", files / "out.onnx")
        assert shown.exit_code == 0
        assert run("verify", files / "small.onnx", files / "out.onnx").exit_code == 0

    def test_options_reach_the_recipe(self, files: Path) -> None:
        result = tune(
            *(files, "--epochs", 1, "--lr", 0.02, "--batch-size", 8, "--optimizer", "sgd"),
            *("--loss", "kd+ce", "--temperature", 2, "--feature-loss", 0.5, "--augment", "flip"),
            *("--augment", "shift=1", "--freeze", "stem_*", "--seed", 4, "--schedule", "linear"),
            *("--amp", "bf16", "--batch-norm", "frozen", "--fold-batch-norm", "-q"),
            *("--hold-out", 0.3, "--device", "cpu", "--interpolation", 0.5, "--front", "train"),
            *("--views", 1, "--cache-size", 0.5, "--no-cache"),
            *("--weight-decay", 0.5, "--warmup", 0.2, "--label-weight", 0.1),
            *("--recipe", "few", "--features", "sites", "--precision", "int8", "--int8-share", 0.5),
        )
        assert (result.exit_code, result.output) == (0, "")
        log = json.loads((files / "out.finetune.json").read_text())
        assert log["recipe"] == {
            "base": "few",
            "epochs": 1,
            "lr": 0.02,
            "batch_size": 8,
            "optimizer": "sgd",
            "weight_decay": 0.5,
            "schedule": "linear",
            "warmup": 0.2,
            "loss": "kd+ce",
            "temperature": 2.0,
            "label_weight": 0.1,
            "features": "sites",
            "feature_loss": 0.5,
            "augment": ["flip", "shift=1"],
            "amp": "bf16",
            "freeze": ["stem_*"],
            "batch_norm": "frozen",
            "front": "train",
            "seed": 4,
            "scores": None,
            "hold_out": 0.3,
            "interpolation": 0.5,
            "views": 1,
            "precision": "int8",
            "int8_share": 0.5,
        }

    def test_a_recipe_in_a_file_and_an_option_in_its_place(self, files: Path) -> None:
        path = files / "recipe.json"
        path.write_text(json.dumps({"base": "many", "epochs": 1, "batch_size": 8, "lr": 0.5}))
        result = tune(files, "--recipe", path, "--lr", 0.001, "-q")
        assert (result.exit_code, result.output) == (0, "")
        recipe = json.loads((files / "out.finetune.json").read_text())["recipe"]
        chosen = {name: recipe[name] for name in ("base", "epochs", "batch_size", "lr")}
        assert chosen == {"base": "many", "epochs": 1, "batch_size": 8, "lr": 0.001}

    def test_report_on_stdout_is_nothing_but_json(self, files: Path) -> None:
        result = tune(files, "--epochs", 1, "--report", "-")
        assert json.loads(result.stdout.removesuffix(f"wrote {files / 'out.onnx'}\n"))["finetune"]

    def test_refusals(self, files: Path) -> None:
        output = files / "out.onnx"
        assert_refused(tune(files, "--epochs", 0), "--epochs must be at least 1", output)
        assert_refused(tune(files, "--recipe", "som"), "--recipe must be few, some, many", output)
        assert_refused(tune(files, "--augment", "turn"), "--augment 'turn'", output)
        assert_refused(tune(files, "--resume"), "nothing to resume", output)
        assert_refused(tune(files, "--views", 0), "--views must be at least 1", output)
        assert_refused(tune(files, "--cache-size", -1), "--cache-size must be at least 0", output)
        assert_refused(tune(files, "--loss", "ce", "--scores", "no"), "no output 'no'", output)
        same = run(
            "finetune", files / "small.onnx", "--data", files / "d.npz", "-o", files / "small.onnx"
        )
        assert_refused(same, "is the input itself")
        arrays = {"x": np.zeros((4, 1, 5, 5), np.float32)}
        np.savez(files / "u.npz", **arrays)
        unlabelled = run("finetune", files / "small.onnx", "--data", files / "u.npz", "-o", output)
        assert_refused(unlabelled, "give --teacher ORIGINAL", output)
        if not torch.cuda.is_available():
            assert_refused(tune(files, "--device", "cuda"), "sees no CUDA GPU", output)


class TestWeights:
    def test_there_and_back(self, files: Path) -> None:
        result = run("to-torch", files / "small.onnx", "-o", files / "weights")
        assert result.exit_code == 0, result.output
        path = files / "weights" / "weights.safetensors"
        state = load_file(path)
        model = onnx.load(files / "small.onnx")
        assert state.keys() == to_torch(model).state_dict().keys()
        back = run("from-torch", files / "small.onnx", files / "weights", "-o", files / "same.onnx")
        assert back.exit_code == 0, back.output
        assert (files / "same.onnx").read_bytes() == (files / "small.onnx").read_bytes()
        state["head_w"] += 1
        for saved in (files / "s.safetensors", files / "s.pt"):
            wrapped = {f"_orig_mod.module.{name}": value for name, value in state.items()}
            save_file(wrapped, saved) if saved.suffix != ".pt" else torch.save(wrapped, saved)
            result = run("from-torch", files / "small.onnx", saved, "-o", files / "o.onnx")
            assert result.exit_code == 0, result.output
            new = arrays_of(onnx.load(files / "o.onnx"))["head_w"]
            assert np.array_equal(new, state["head_w"].numpy())

    def test_refusals(self, files: Path) -> None:
        output, small = files / "o.onnx", files / "small.onnx"
        result = run("from-torch", small, files / "no.safetensors", "-o", output)
        assert_refused(result, "does not exist", output)
        save_file({"a": torch.zeros(1)}, files / "other.safetensors")
        result = run("from-torch", small, files / "other.safetensors", "-o", output)
        assert_refused(result, "is of another model: it lacks", output)
        torch.save(print, files / "code.pt")
        result = run("from-torch", small, files / "code.pt", "-o", output)
        assert_refused(result, "holds no state dict", output)
        (files / "noise.pt").write_bytes(b"noise")
        assert_refused(run("from-torch", small, files / "noise.pt", "-o", output), "no state dict")


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys, click.testing, onnx_igpc.cli as c;"
        "r = click.testing.CliRunner().invoke(c.main, ['finetune', '--help']);"
        "assert r.exit_code == 0 and '--teacher' in r.output;"
        "assert not {'torch', 'onnx', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
