"""The files of fine-tuning and of weights: external data stays external, links and pipes stay."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from onnx_igpc import compress
from onnx_igpc.cli import main
from onnx_igpc.errors import DataError
from onnx_igpc.graph.model import load_model, open_model
from onnx_igpc.planning.options import Published
from onnx_igpc.torch_bridge.training.finetune import finetune
from tests.helpers import pointwise_model
from tests.torch_bridge.training_cases import short


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """inline.onnx and outside.onnx, compressed, and data.npz, in which one stands."""
    monkeypatch.chdir(tmp_path)
    model = pointwise_model(48, 48, batch_norm=True)
    onnx.save(model, "dense.onnx")
    onnx.save(model, "dense_outside.onnx", save_as_external_data=True, location="w.bin")
    compress("dense.onnx", Published(12)).save("inline.onnx")
    compress("dense_outside.onnx", Published(12)).save("outside.onnx")
    values = np.random.default_rng(0).standard_normal((32, 48, 5, 5)).astype(np.float32)
    np.savez("data.npz", x=values)
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def data_of(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.name}.*.data"))


@pytest.mark.parametrize("name", ["inline", "outside"])
def test_weights_stay_where_they_were(name: str, folder: Path) -> None:
    """Of the model that is trained; the teacher's do not matter."""
    small, tuned, back = (folder / f"{each}.onnx" for each in (name, "tuned", "back"))
    result = finetune(
        small, teacher="dense_outside.onnx", data="data.npz", output=tuned, recipe=short()
    )
    assert open_model(tuned).has_external_data == (name == "outside")
    assert len(data_of(tuned)) == (name == "outside")
    assert load_model(tuned).graph.initializer == result.model.graph.initializer
    assert run("to-torch", tuned, "-o", "weights").exit_code == 0
    done = run("from-torch", small, "weights", "-o", back)
    assert done.exit_code == 0, done.output
    assert open_model(back).has_external_data == (name == "outside")
    assert load_model(back).graph.initializer == result.model.graph.initializer


def test_tiny_models_need_no_file_of_their_own(folder: Path) -> None:
    """All tensors below the size that is put outside: one file."""
    model = pointwise_model(8, 8)
    onnx.save(model, "tiny.onnx", save_as_external_data=True, location="t.bin", size_threshold=0)
    assert run("to-torch", "tiny.onnx", "-o", "weights").exit_code == 0
    assert run("from-torch", "tiny.onnx", "weights", "-o", "o.onnx").exit_code == 0
    assert data_of(folder / "o.onnx") == []
    assert load_model("o.onnx").graph.initializer == load_model("tiny.onnx").graph.initializer


@pytest.mark.skipif(os.name != "posix", reason="pipes are those of POSIX")
def test_a_run_that_is_written_again_and_again_needs_files(folder: Path) -> None:
    line = ["finetune", "inline.onnx", "--teacher", "dense.onnx", "--data", "data.npz"]
    for name in ("pipe", "o.onnx.checkpoint", "log.csv"):
        os.mkfifo(name)
    for options in (("-o", "pipe"), ("-o", "o.onnx"), ("-o", "a.onnx", "--log", "log")):
        result = run(*line, *options)
        assert result.exit_code == 2, result.output
        assert "takes a file" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    result = run(*line, "-o", "a.onnx", "--log", "pipe")
    assert "is the start of two files' names" in result.stderr
    assert not Path("a.onnx").exists()
    assert all(Path(name).is_fifo() for name in ("pipe", "o.onnx.checkpoint", "log.csv"))


def test_links_keep_pointing(folder: Path) -> None:
    (folder / "store").mkdir()
    for name in ("o.onnx", "o.finetune.csv", "o.finetune.json"):
        (folder / name).symlink_to(Path("store") / name)
    line = ["finetune", "outside.onnx", "--teacher", "dense.onnx", "--data", "data.npz"]
    result = run(*line, "-o", "o.onnx", "--epochs", 1, "-q")
    assert result.exit_code == 0, result.output
    for name in ("o.onnx", "o.finetune.csv", "o.finetune.json"):
        assert (folder / name).is_symlink()
        assert (folder / "store" / name).stat().st_size
    assert load_model("o.onnx") == load_model("store/o.onnx")


def test_data_in_memory_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(DataError, match=r"training data is a path, not ndarray: write arrays with"):
        finetune("inline.onnx", teacher="dense.onnx", data=np.zeros(3))  # type: ignore[arg-type]


def test_a_model_in_which_nothing_was_rewritten(folder: Path) -> None:
    """It is the input, byte for byte: report and lower say what that can mean."""
    assert run("compress", "dense.onnx", "--ch", 48, "-o", "same.onnx").exit_code == 0
    assert Path("same.onnx").read_bytes() == Path("dense.onnx").read_bytes()
    line = ("finetune", "same.onnx", "--teacher", "dense.onnx", "--data", "data.npz")
    tuned = run(*line, "-o", "t.onnx", "--epochs", 1)
    assert tuned.exit_code == 0, tuned.output
    assert "note: the model carries no report" in tuned.stderr
    for line in (("report", "same.onnx"), ("lower", "same.onnx", "-o", "o.onnx")):
        result = run(*line)
        assert result.exit_code == 2
        [text] = result.stderr.strip().splitlines()
        assert "rewrite" in text
        assert "has not seen it" in text
