"""benchmarks/own_speed.py: a small run of it, and the exponents it states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.own_speed import Measurement, exponent, main, table


def rows(power: float) -> list[Measurement]:
    return [
        Measurement("compress", size, 3.0, 2.0 * size**power, 10**8)
        for size in (10**6, 10**7, 10**8)
    ]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_is_the_power_of_the_growth(power: float) -> None:
    assert exponent(rows(power), "cpu_seconds") == pytest.approx(power)
    assert exponent(rows(power), "peak_bytes") == pytest.approx(0.0)


def test_table_states_the_exponents() -> None:
    text = table(rows(1.0))
    assert "| compress | 10 M | 20000000.00 | 3.00 | 95 |" in text
    assert "compress, from 10 M: CPU time grows with the parameters to the power 1.00" in text


def test_commands_are_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    report = tmp_path / "rows.jsonl"
    arguments = ["--millions", "1", "--init", "random", "--no-start-up"]
    arguments += ["--folder", str(tmp_path), "--json", str(report)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    measured = [json.loads(line) for line in report.read_text().splitlines()]
    assert [row["command"] for row in measured] == ["inspect", "compress"]
    for row in measured:
        assert row["parameters"] == 1024**2
        assert 0 < row["cpu_seconds"]
        assert row["peak_bytes"] > 20e6
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
