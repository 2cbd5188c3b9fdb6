"""Broken, hostile and odd model files: a correct result, or one line and nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto

from onnx_igpc.cli import main
from onnx_igpc.graph.model import open_model
from tests.helpers import pointwise_model
from tests.hostile import (
    ODD_NAMES,
    Case,
    calls_without_measure,
    complaint,
    hostile_models,
    odd_names,
)

CASES = list(hostile_models())
BITS = 250


def command(*arguments: str | Path, works: bool = False) -> int:
    """Run a command in this process; what it raises but should not fails the test."""
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    wrong = complaint(result.exit_code, result.stdout, result.stderr, works)
    assert wrong is None, wrong
    return result.exit_code


def rewrite(model: Path, works: bool = False) -> int:
    """Compress a file: what is written can be read again, or nothing is."""
    output = model.with_name("out.onnx")
    before = sorted(model.parent.iterdir())
    code = command("compress", model, "-o", output, "--ch", "3", "-q", works=works)
    if code:
        assert sorted(model.parent.iterdir()) == before
    else:
        open_model(output)
        for extra in set(model.parent.iterdir()) - set(before):
            extra.unlink()
    return code


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_models(case: Case, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(case.content)
    inspected = command("inspect", model, "--ch", "3", works=case.works)
    assert rewrite(model, case.works) == inspected or not inspected
    command("report", model)


def test_odd_names_are_rewritten_and_stay_what_they_are(tmp_path: Path) -> None:
    for name in ODD_NAMES:
        model = odd_names(name)
        path, output = tmp_path / "model.onnx", tmp_path / "out.onnx"
        path.write_bytes(model.SerializeToString())
        command("compress", path, "-o", output, "--ch", "3", works=True)
        written = open_model(output).proto
        assert [value.name for value in written.graph.input] == [f"{name}x"]
        assert any(node.name.startswith(f"{name}conv_node/igpc/K") for node in written.graph.node)
        command("report", output, works=True)


def test_truncated_at_every_tenth(tmp_path: Path) -> None:
    whole = pointwise_model(12, 12).SerializeToString()
    path = tmp_path / "model.onnx"
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        assert command("inspect", path) == 2
        assert rewrite(path) == 2


def test_flipped_bits(tmp_path: Path) -> None:
    """Wherever a bit flips: in a weight it is another model, elsewhere often none."""
    whole = pointwise_model(12, 12, batch_norm=True).SerializeToString()
    generator = np.random.default_rng(7)
    path = tmp_path / "model.onnx"
    codes = []
    for _ in range(BITS):
        damaged = bytearray(whole)
        for position in generator.integers(0, len(whole), generator.integers(1, 4)):
            damaged[position] ^= 1 << int(generator.integers(0, 8))
        path.write_bytes(damaged)
        codes.append(command("inspect", path, "--ch", "3") or rewrite(path))
    assert 0 < codes.count(0) < BITS


def external(folder: Path, **entries: str) -> Path:
    """A model with one external weight whose entry says what is given."""
    model = pointwise_model(12, 12)
    tensor = model.graph.initializer[0]
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    stated = {"location": "weights.bin", "offset": "0", "length": str(12 * 12 * 4)} | entries
    for key, value in stated.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "/etc/passwd"},
        {"location": "../weights.bin"},
        {"location": "a/../../weights.bin"},
        {"location": "..\\weights.bin"},
        {"location": ""},
        {"location": "."},
        {"location": "none.bin"},
        {"location": "nul\0.bin"},
        {"location": "x" * 5000},
        {"location": "link.bin"},
        {"location": "linked/weights.bin"},
        {"location": "pipe.bin"},
        {"location": "folder"},
        {"offset": "1"},
        {"offset": "-1"},
        {"offset": "9" * 40},
        {"offset": "9" * 5000},
        {"offset": "zero"},
        {"length": "575"},
        {"length": "577"},
        {"length": "-1"},
        {"length": str(2**62)},
        {"length": "1e3"},
    ],
    ids=lambda entries: " ".join(f"{key} {value[:20]!r}" for key, value in entries.items()),
)
def test_external_data(entries: dict[str, str], tmp_path: Path) -> None:
    """Absolute paths, parent folders, links that lead out, pipes, wrong places and lengths."""
    folder, outside = tmp_path / "in", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "weights.bin").write_bytes(bytes(12 * 12 * 4))
    (folder / "folder").mkdir()
    (folder / "link.bin").symlink_to(outside / "weights.bin")
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe.bin")
    path = external(folder, **entries)
    assert command("inspect", path) == 2
    assert rewrite(path) == 2
    assert command("verify", path, path) == 2
    assert command("benchmark", path, "--rounds", "1") == 2


def test_external_data_that_is_right(tmp_path: Path) -> None:
    assert rewrite(external(tmp_path), works=True) == 0


def test_a_model_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    assert command("inspect", tmp_path / "pipe.onnx") == 2


def test_running_functions_that_call_one_another_without_measure(tmp_path: Path) -> None:
    """onnxruntime would unfold them for years."""
    path = tmp_path / "model.onnx"
    path.write_bytes(calls_without_measure(40).SerializeToString())
    assert command("verify", path, path) == 2
    assert command("benchmark", path, "--rounds", "1") == 2


def test_running_what_cannot_be_held(tmp_path: Path) -> None:
    """Inputs of a size that no machine has: refused before anything is allocated."""
    model = pointwise_model(12, 12)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 2**31
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert command("verify", path, path) == 2
    assert command("benchmark", path, "--rounds", "1") == 2


def test_the_models_of_this_module_are_what_their_names_say() -> None:
    legal = [case for case in CASES if case.works]
    assert len(CASES) > 60
    assert len(legal) > 8
    for case in legal:
        if "deep" not in case.name:
            onnx.checker.check_model(onnx.load_from_string(case.content))
