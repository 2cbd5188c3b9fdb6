"""``python -m sample_models``: files it writes and errors it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from sample_models.__main__ import main


def test_writes_the_network_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "net.onnx"
    arguments = ["efficientnet_b0", "--variant", "k", "--classes", "5", "--size", "32x40"]
    assert main([*arguments, "--skip-stride", "3", "-o", str(target)]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {target} (")
    graph = onnx.load(target).graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [0, 3, 32, 40]
    assert graph.output[0].type.tensor_type.shape.dim[1].dim_value == 5


def test_names_the_file_after_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["mobilenet_v1", "--alpha", "0.25", "--size", "32"]) == 0
    assert main(["mobilenet_v1", "--alpha", "0.25", "--size", "32", "--variant", "k"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "mobilenet_v1.onnx",
        "mobilenet_v1_k.onnx",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'NAME'"),
        (["resnot"], "unknown network 'resnot'; choose one of"),
        (["digits_net", "--size", "8x"], "'8x' is not a size like 224 or 192x256"),
        (["digits_net", "--size", "0"], "no pixels"),
        (["digits_net", "--classes", "many"], "'many' is not a valid integer"),
        (["digits_net", "--variant", "q"], "'q' is not one of"),
        (["digits_net", "--depth", "3"], "No such option"),
        (["digits_net", "-o", "missing_folder/net.onnx"], "missing_folder"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "sample_models", "--help"]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "inception_v3" in result.stdout
