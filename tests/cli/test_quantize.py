"""The quantize command as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from onnx_igpc.report.digest import DIGEST_KEY
from tests.cli.test_compress import CALIBRATION, DIGITS, HELD_OUT, assert_refused, run


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The quantized digits network, its JSON, and what was printed."""
    folder = tmp_path_factory.mktemp("int8")
    output, data = folder / "int8.onnx", folder / "int8.json"
    options = ("--method", "minmax", "--threads", 1, "--json", data)
    result = run("quantize", DIGITS, "-o", output, "--calibration", CALIBRATION, *options)
    assert result.exit_code == 0, result.output
    return output, data, result.stdout


def test_what_it_says(int8: tuple[Path, Path, str]) -> None:
    output, data, said = int8
    report = json.loads(data.read_text())
    assert report["quantization"]["samples"] == {"calibrated": 240, "chosen_by": 0, "measured": 60}
    assert report["quantization"]["kernels"] == {"QLinearConv": 20}
    assert report["totals"]["file_bytes"]["after"] == output.stat().st_size < 300_000
    damage = said.index("top-1 agreement with the float model")
    assert damage < said.index("file, bytes")
    assert "(94.0% to 100.0%) on 60 samples" in said
    assert "ran as 20 QLinearConv; cpu ran" in said


def test_the_model_carries_it(int8: tuple[Path, Path, str], tmp_path: Path) -> None:
    output, _, _ = int8
    keys = [entry.key for entry in onnx.load(DIGITS).metadata_props]
    assert [entry.key for entry in onnx.load(output).metadata_props] == [*keys, DIGEST_KEY]
    page = tmp_path / "page.html"
    result = run("report", output, "--html", page)
    assert result.exit_code == 0, result.output
    assert "quantized for cpu: activations" in result.stdout
    assert "Damage of int8: top-1 agreement" in page.read_text()


def test_it_passes_verification(int8: tuple[Path, Path, str]) -> None:
    output, _, _ = int8
    result = run("verify", DIGITS, output, "--data", HELD_OUT, "--min-agreement", 0.97)
    assert result.exit_code == 0, result.output


def test_nodes_that_benchmark_names_are_those_of_the_model(
    int8: tuple[Path, Path, str], tmp_path: Path
) -> None:
    output, _, _ = int8
    data = tmp_path / "b.json"
    options = ("--per-operator", "--rounds", 2, "--no-limit", "--json", data)
    result = run("benchmark", output, "--threads", 1, *options)
    assert result.exit_code == 0, result.output
    (model,) = json.loads(data.read_text())["models"]
    ran = {each["node"] for each in model["operators"] if each["op_type"] == "QLinearConv"}
    proto = onnx.load(output)
    assert ran == {node.name for node in proto.graph.node if node.op_type == "Conv"}


@pytest.mark.parametrize("command", ["compress", "lower", "finetune", "quantize"])
def test_the_result_is_final(command: str, int8: tuple[Path, Path, str], tmp_path: Path) -> None:
    output, _, _ = int8
    more = {
        "finetune": ("--data", CALIBRATION),
        "quantize": ("--calibration", CALIBRATION),
    }
    if command == "finetune":
        pytest.importorskip("torch")
    target = tmp_path / "o.onnx"
    result = run(command, output, "-o", target, *more.get(command, ()))
    assert_refused(result, "was quantized, which is final", target)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--exclude", "conv_pw_99x"), "matches no node"),
        (("--provider", "cuda9"), "unknown execution provider"),
        (("--scale", 2), "arrays are fed as they are"),
        (("--samples", 0), "samples must be at least 1"),
    ],
)
def test_options_that_cannot_be_used(
    options: tuple[object, ...], said: str, tmp_path: Path
) -> None:
    target = tmp_path / "o.onnx"
    result = run("quantize", DIGITS, "-o", target, "--calibration", CALIBRATION, *options)
    assert_refused(result, said, target)


@pytest.mark.parametrize("there", [DIGITS, CALIBRATION])
def test_what_is_read_is_not_written_over(there: Path) -> None:
    before = there.read_bytes()
    result = run("quantize", DIGITS, "-o", there, "--calibration", CALIBRATION)
    assert result.exit_code == 2
    assert "choose another output" in result.stderr
    assert there.read_bytes() == before
