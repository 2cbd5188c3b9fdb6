"""benchmarks/pareto.py: a small run of it, and which points lie on the front."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest
from click.testing import CliRunner

import onnx_igpc
from benchmarks.pareto import Row, front, main, table
from benchmarks.pareto_picture import picture
from benchmarks.pareto_points import PLAIN_INT8, Points, Wanted
from onnx_igpc import Calibration, Quantization
from onnx_igpc.errors import CheckFailedError

SAMPLES = Path(__file__).parents[2] / "sample_models"
ONE = (1.0, 0.9, 1.1)
ROW = Row("dense", 8.0, ONE, ONE, (1.0, 0.99, 1.0), 0.9, 10**6, 4 * 10**6)


def test_points_that_others_beat_are_not_on_the_front() -> None:
    rows = [
        ROW,
        replace(ROW, name="int8", median_ms=4.0, agreement=(0.97, 0.9, 1.0)),
        replace(ROW, name="slower", median_ms=5.0, agreement=(0.96, 0.9, 1.0)),
        replace(ROW, name="as good", median_ms=4.0, agreement=(0.97, 0.9, 1.0)),
        replace(ROW, name="small", median_ms=2.0, agreement=(0.8, 0.7, 0.9)),
    ]
    assert [row.name for row in front(rows)] == ["dense", "int8", "as good", "small"]
    lines = table(rows, {"tiny": "cannot be reached"}).splitlines()
    assert lines[2].startswith(
        "| 1 | **dense** | 8.00 | 1.00 | 1.00 (0.90-1.10) | 100.0 % (99.0-100.0)"
    )
    assert [line.split("|")[2].strip() for line in lines[2:7]][1] == "slower"
    assert lines[-1] == "tiny: cannot be reached"


def test_without_labelled_images_the_fastest_alone_is_on_the_front() -> None:
    rows = [replace(ROW, agreement=None, top1=None), replace(ROW, median_ms=1.0, agreement=None)]
    assert front(rows) == rows[1:]
    assert "|  |" in table(rows, {})


def test_points_are_made_kept_and_raced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a published plan in the place of a budget, whose search would take long."""
    real = onnx_igpc.compress
    asked: list[tuple[str, str]] = []

    def compress(model: Path, plan: onnx_igpc.Budget, **options: object) -> object:
        lowering = options["lowering"]
        assert isinstance(lowering, onnx_igpc.Lowering)
        assert lowering.kind == "literal"
        asked.append((plan.target, lowering.precision))
        if plan.target == "latency=1%":
            raise CheckFailedError("latency=1% cannot be reached")
        return real(model, onnx_igpc.Published(8))

    monkeypatch.setattr(onnx_igpc, "compress", compress)
    arguments = [str(SAMPLES / "digits_net.onnx"), "--rounds", "2", "--folder", str(tmp_path)]
    arguments += ["--calibration", str(SAMPLES / "digits_calibration.npz"), "--samples", "40"]
    arguments += ["--validation", str(SAMPLES / "digits_test.npz"), "--budget", "latency=70%"]
    arguments += [
        "--budget",
        "latency=1%",
        "--method",
        "minmax",
        "--also",
        f"again={SAMPLES / 'digits_net.onnx'}",
    ]
    said, written = tmp_path / "rows.json", tmp_path / "table.md"
    result = CliRunner().invoke(main, [*arguments, "--json", str(said), "--markdown", str(written)])
    assert result.exit_code == 0, result.output
    rows = json.loads(said.read_text())["rows"]
    by_float, by_int8 = "latency=70% by float32 times", "latency=70% by int8 times"
    timed = [by_float, f"{by_float}, int8", by_int8, f"{by_int8}, int8"]
    names = ["dense", "dense, int8", PLAIN_INT8, *timed, "again"]
    assert [row["name"] for row in rows] == names
    dense, int8, *_, again = rows
    assert dense["agreement"][0] == again["agreement"][0] == 1.0
    assert dense["top1"] == again["top1"] > 0.8
    assert int8["file_bytes"] < dense["file_bytes"]
    assert int8["over_int8"][0] == 1.0
    assert "latency=1% cannot be reached" in written.read_text()
    assert asked[:2] == [("latency=70%", "float32"), ("latency=70%", "int8")]
    kept = len(asked)
    assert CliRunner().invoke(main, arguments).exit_code == 0
    # What could not be made is tried again.
    assert len(asked) == kept + 2


def test_sizes_are_trained_and_have_rivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every point is there, and what is trained for int8 is; the making itself is tested elsewhere."""
    model = SAMPLES / "digits_net.onnx"
    asked: list[str] = []

    def made(name: str) -> Any:
        def make(first: object, *rest: object, **options: Any) -> Any:
            recipe = options.get("recipe")
            asked.append(f"{name} {recipe.precision}" if recipe else name)
            proto = onnx.load(model)
            trained = SimpleNamespace(model=proto)
            return trained if name == "finetune" else proto

        return make

    for name in ("compress", "finetune", "lower", "quantize"):
        monkeypatch.setattr(onnx_igpc, name, made(name))
    for name in ("_plain", "_low_rank", "_pruned"):
        monkeypatch.setattr(Points, name, lambda *_: onnx.load(model))
    data = Calibration(SAMPLES / "digits_calibration.npz")
    points = Points(model, data, Quantization(), tmp_path, True)
    found = points.made(Wanted(["parameters=50%"], trained=True, epochs=1, rivals=0.5))
    size = "parameters=50%"
    assert list(found) == [
        *("dense", "dense, int8", PLAIN_INT8, "dense, trained for int8, int8"),
        *(size, f"{size}, int8", f"{size}, trained", f"{size}, trained, int8"),
        f"{size}, trained for int8, int8",
        *(
            "published V2, ch 32",
            "published V2, ch 32, int8",
            "low rank, 50%",
            "low rank, 50%, int8",
        ),
        *("channels pruned by onnxsim, 50%", "channels pruned by onnxsim, 50%, int8"),
    ]
    assert asked.count("finetune None") == 1
    assert asked.count("finetune int8") == 2
    assert not points.failed


def test_plain_int8_low_rank_and_channels_are_made(tmp_path: Path) -> None:
    model = SAMPLES / "digits_net.onnx"
    data = Calibration(SAMPLES / "digits_calibration.npz", samples=16)
    points = Points(model, data, Quantization(), tmp_path, True)
    kinds = {node.op_type for node in points._plain().graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    before = sum(t.ByteSize() for t in onnx.load(model).graph.initializer)
    assert sum(t.ByteSize() for t in points._low_rank(0.5).graph.initializer) < before


def test_the_picture_has_a_numbered_dot_for_every_row() -> None:
    rows = [ROW, replace(ROW, name="a, trained for int8, int8", median_ms=2.0, agreement=None)]
    drawn = ElementTree.fromstring(picture("net", rows, rows))
    numbers = [each.text for each in drawn.iter() if each.text in ("1", "2")]
    assert numbers == ["1", "2"]
