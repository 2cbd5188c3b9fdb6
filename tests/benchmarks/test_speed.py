"""benchmarks/speed.py: its models (int8 ones run), its rows, and what they fall short of."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnx_igpc
from benchmarks.speed import race_network
from benchmarks.speed_models import ModelFolder, Variant, quantize, write_low_rank
from benchmarks.speed_rows import VARIANTS, Row, gap, gap_table, overview, read_rows, table
from onnx_igpc.evaluation.benchmark import benchmark
from onnx_igpc.lowering.lower import lower_model
from onnx_igpc.lowering.options import Lowering
from onnx_igpc.report.digest import read_digest
from tests.helpers import run, with_following_layers

DENSE_ROW = Row(
    network="mobilenet_v1",
    variant="dense",
    batch=1,
    threads=1,
    median_ms=8.0,
    quartiles_ms=(7.9, 8.1),
    samples_per_second=125.0,
    speedup=1.0,
    speedup_low=1.0,
    speedup_high=1.0,
    limit=None,
    reached=None,
    memory_bound=None,
    sites=None,
    file_bytes=17_000_000,
    operators={"Conv": 7.0, "ReorderInput": 0.5, "Mul": 0.5},
    rounds=20,
    onnxruntime="1",
    machine="any",
)
IGPC_ROW = replace(
    DENSE_ROW,
    variant="literal-16",
    median_ms=4.0,
    speedup=2.0,
    speedup_low=1.9,
    speedup_high=2.1,
    limit=4.0,
    reached=0.5,
    operators={"Conv": 2.0, "ReorderInput": 0.5, "ReorderOutput": 0.25, "Gather": 0.25, "Add": 1.0},
)


def two_sites() -> onnx.ModelProto:
    """x -> 1x1 -> BatchNorm -> Relu -> 3x3 -> 1x1 -> Relu -> 3x3: both 1x1 are sites."""

    def add(builder, value):  # type: ignore[no-untyped-def]
        value = builder.batch_norm(value, "bn", 64)
        value = builder.activation(value, "act", "Relu")
        value = builder.conv(value, "deep", 64, 64, kernel=3, group=64, pads=[1] * 4)
        value = builder.conv(value, "second", 64, 48, bias=True)
        value = builder.activation(value, "act2", "Relu")
        return builder.conv(value, "last", 48, 48, kernel=3, group=48, pads=[1] * 4)

    return with_following_layers(add, 64, 64)


@pytest.mark.parametrize("kind", ["dense", "compressed", "literal", "matmul", "svd"])
def test_static_int8_quantization_applies_and_its_result_runs(kind: str, tmp_path: Path) -> None:
    """onnxruntime's own quantizer, on what compress and lower write."""
    plain, int8 = tmp_path / "plain.onnx", tmp_path / "int8.onnx"
    onnx.save(two_sites(), tmp_path / "dense.onnx")
    if kind == "svd":
        write_low_rank(tmp_path / "dense.onnx", plain, 16)
    elif kind == "dense":
        onnx.save(two_sites(), plain)
    else:
        result = onnx_igpc.compress(tmp_path / "dense.onnx", onnx_igpc.Published(16))
        assert len(result.report.rewritten) == 2
        if kind != "compressed":
            result = lower_model(result.model, lowering=Lowering(kind))
        result.save(plain)
    quantize(plain, int8)
    model = onnx.load(int8)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["DequantizeLinear"] > operators["Conv"] + operators["MatMul"]
    x = np.random.default_rng(0).standard_normal((1, 64, 5, 5)).astype(np.float32)
    [wanted], [found] = (list(run(each, {"x": x}).values()) for each in (onnx.load(plain), model))
    error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    # Eight bits for each of a few layers: some per cent, not nothing and not noise.
    assert 1e-4 < error < 0.15
    report = benchmark([plain, int8], rounds=2, footprint=False)
    assert report.races[0].timings[1].limit is None


def test_low_rank_has_no_more_weights_than_the_published_layout(tmp_path: Path) -> None:
    dense, target = tmp_path / "dense.onnx", tmp_path / "svd.onnx"
    onnx.save(two_sites(), dense)
    write_low_rank(dense, target, 16)
    digest = read_digest(onnx.load(target))
    assert digest is not None
    published = onnx_igpc.compress(dense, onnx_igpc.Published(16)).report
    assert len(digest.rewritten) == len(published.rewritten) == 2
    for low, igpc in zip(digest.rewritten, published.rewritten, strict=True):
        assert low.k is not None
        assert low.l is not None
        assert igpc.k is not None
        assert igpc.l is not None
        weights = igpc.k.weights + igpc.l.weights
        rank_step = (low.in_channels or 0) + (low.out_channels or 0)
        assert weights - rank_step < low.k.weights + low.l.weights <= weights
    # BatchNorm is folded, as in what it is raced against.
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(target).graph.node}


@pytest.mark.parametrize("name", ["dense", *VARIANTS])
def test_variants_are_read_as_they_are_written(name: str) -> None:
    assert Variant.parse(name).name == name


def test_race_makes_models_and_rows(tmp_path: Path) -> None:
    models = ModelFolder(tmp_path)
    names = ["literal-32", "svd-32", "int8"]
    rows = race_network(models, "digits_net", [Variant.parse(n) for n in names], 1, 1, rounds=2)
    assert [row.variant for row in rows] == ["dense", *names]
    dense, literal, low_rank, int8 = rows
    assert dense.limit is None
    assert int8.limit is None
    assert int8.file_bytes < dense.file_bytes / 2
    assert literal.limit is not None
    assert low_rank.limit is not None
    for row in rows:
        assert sum(row.operators.values()) == pytest.approx(row.median_ms, rel=1e-2)
    assert (tmp_path / "digits_net_literal-32.onnx").is_file()


def test_last_row_of_a_race_counts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert read_rows(file) == []
    rows = [DENSE_ROW, IGPC_ROW, replace(DENSE_ROW, median_ms=9.0), replace(DENSE_ROW, batch=8)]
    file.write_text("".join(f"{json.dumps(asdict(row))}\n" for row in rows))
    read = read_rows(file)
    assert [(row.variant, row.batch, row.median_ms) for row in read] == [
        ("dense", 1, 9.0),
        ("literal-16", 1, 4.0),
        ("dense", 8, 8.0),
    ]


def test_tables() -> None:
    lines = table([IGPC_ROW, DENSE_ROW]).splitlines()
    assert lines[2] == "| mobilenet_v1 | 1 | 1 | dense | 8.00 | 125 | 17.0 |  |  |  |"
    assert lines[3].endswith("| 2.00 (1.90-2.10) | 4.00 | 50% |")
    [line] = gap_table([IGPC_ROW, DENSE_ROW]).splitlines()[2:]
    # The limit of 2 ms leaves 1 ms to convolutions, as 1 ms of the dense model is none.
    assert line.endswith("| literal-16 | 2.00 | 4.00 | +1.00 | +0.25 | +0.25 | +0.50 |")


def test_overview_has_a_table_for_each_setting() -> None:
    rows = [DENSE_ROW, IGPC_ROW, replace(DENSE_ROW, threads=2), replace(DENSE_ROW, batch=8)]
    tables = overview([*rows, replace(IGPC_ROW, variant="int8", limit=None, reached=None)])
    parts = tables.split("Batch ")
    assert [part[:12] for part in parts[1:]] == ["1, 1 thread:", "8, 1 thread:", "1, 2 threads"]
    assert "| network | dense ms | literal-16 | int8 |" in parts[1]
    assert "| mobilenet_v1 | 8.00 | 2.00 (50%) | 2.00 |" in parts[1]


@given(st.lists(st.floats(0, 5), min_size=5, max_size=5), st.floats(1, 5))
def test_gap_is_accounted_for(times: list[float], limit: float) -> None:
    operators = dict(zip(IGPC_ROW.operators, times, strict=True))
    row = replace(IGPC_ROW, operators=operators, median_ms=sum(times), limit=limit)
    assert sum(gap(row, DENSE_ROW).values()) == pytest.approx(
        row.median_ms - DENSE_ROW.median_ms / limit, abs=1e-9
    )
