"""benchmarks/trained_back.py: a small run of it, what is kept, and the table."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

import onnx_igpc
from benchmarks import trained_back
from benchmarks.trained_back import Judged, Row, main, read_row, table
from onnx_igpc import Published, Recipe
from onnx_igpc.errors import DataError
from tests.torch_bridge.training_cases import classifier, write_data

ROW = Row(
    network="net",
    data="200",
    target="pointwise-parameters=60%",
    method="budget",
    seed=0,
    left=0.599,
    before=Judged(1.129, 0.42, 0.323),
    after=Judged(1.016, 0.417, 0.34),
    gained=True,
    recipe="few",
    steps=700,
    compress_minutes=1.2,
    minutes=5.6,
)


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run on noise; a published plan in the place of a budget, and one epoch of training."""
    model = classifier()
    onnx.save(model, tmp_path / "net.onnx")
    monkeypatch.setattr(trained_back, "Budget", lambda target: Published(8))
    monkeypatch.setattr(trained_back, "Recipe", partial(Recipe, epochs=1))
    data = write_data(tmp_path / "data.npz", model, 24, labels=False)
    labelled = write_data(tmp_path / "labelled.npz", model, 16, seed=1)
    source = [str(tmp_path / "net.onnx"), "--data", f"24={data}", "--validation", str(labelled)]
    return [*source, "--folder", str(tmp_path / "work")]


def _run(arguments: list[str]) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_method_is_compressed_trained_measured_and_kept(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = [word for method in trained_back.METHODS for word in ("--method", method)]
    rows = _run([*given, *methods, "--seeds", "2"]).splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    assert [(row[4], row[5]) for row in cells] == [
        (m, s) for m in trained_back.METHODS for s in "01"
    ]
    kept = [read_row(path) for path in sorted((tmp_path / "work").glob("*.row.json"))]
    assert [row.data for row in kept] == ["24"] * 6
    assert all(row.steps > 0 and row.minutes > 0 for row in kept)
    # Low rank has no more weights than the budget left.
    left = {row.method: row.left for row in kept}
    assert 0 < left["svd"] <= left["budget"] < 1
    assert not list((tmp_path / "work").glob("*.work"))

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("it is kept")

    monkeypatch.setattr(onnx_igpc, "finetune", again)
    assert _run([*given, *methods, "--seeds", "2"]).splitlines()[2:] == rows
    assert _run([*given, "--table-only"]).splitlines()[2:] == rows


def test_a_cell_that_fails_says_so_and_the_others_run(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx_igpc.compress

    def compress(model: Path, plan: Any, **options: Any) -> Any:
        if options["lowering"] is not None:
            assert options["lowering"].kind == "literal"
            raise DataError("cannot be reached")
        return real(model, plan, **options)

    monkeypatch.setattr(onnx_igpc, "compress", compress)
    size = "pointwise-parameters=60%"
    result = CliRunner().invoke(main, [*given, "--target", "latency=80%", "--target", size])
    assert result.exit_code == 0, result.output
    assert "24 latency-80 budget: cannot be reached" in result.stderr
    assert len(result.stdout.splitlines()) == 3


def test_a_rival_of_a_budget_of_time_is_refused(given: list[str]) -> None:
    result = CliRunner().invoke(main, [*given, "--target", "latency=80%", "--method", "svd"])
    assert result.exit_code == 2
    assert "svd and v2 are for targets such as pointwise-parameters=60%" in result.output


def test_the_table_has_before_and_after() -> None:
    kept = Row(**vars(ROW) | {"gained": False})
    first, second = table([ROW, kept]).splitlines()[2:]
    assert first == (
        "| net | 200 | pointwise-parameters=60% | budget | 0 | 59.9% | 1.129 to 1.016 | 42.0 to 41.7 "
        "| 32.3 to 34.0 | few | 700 | 1 + 6 |"
    )
    assert "| few, as given |" in second
