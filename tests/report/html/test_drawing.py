"""What the page draws: blocks where the matrices have them, pictures that decode to what went in."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_igpc.fitting.weights import stage_matrix
from onnx_igpc.layout.extended import extended_layout
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.report.html.elements import to_html
from onnx_igpc.report.html.layout_drawing import Drawings, blocks_of, formula, stage_text
from onnx_igpc.report.html.scales import (
    Scale,
    decades,
    line_path,
    round_ticks,
    stems_path,
    steps_path,
    tick_text,
)
from onnx_igpc.report.pictures import LEVELS, grey_png

LAYOUTS = {
    "V2 with copies and two paths": plan_layout(50, 30, 16),
    "V2 without L": plan_layout(20, 57, 7),
    "V1 with an order of the output": plan_layout(16, 32, 4, "v1"),
    "uneven groups of any channels": extended_layout(
        8, 6, [((7, 0, 3), 2), ((1, 2), 1), ((4, 5, 6), 3)], 2
    ),
    "low rank": extended_layout(12, 9, [(range(12), 3)]),
}


def filled(stage: GroupedStage) -> np.ndarray:
    """The drawn blocks as a matrix of zeros and ones."""
    drawn = np.zeros((stage.out_channels, stage.in_channels))
    for row, column, rows, columns in blocks_of(stage):
        drawn[row : row + rows, column : column + columns] = 1.0
    return drawn


@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_lie_where_the_matrix_is_not_zero(name: str) -> None:
    layout = LAYOUTS[name]
    for stage in (layout.k, layout.l):
        if stage is None:
            continue
        ones = stage_matrix(stage, [np.ones(path.weight_shape) for path in stage.paths])
        unread = sorted(set(range(stage.in_channels)) - set(stage.input_order))
        assert np.array_equal(filled(stage), ones[:, [*stage.input_order, *unread]] != 0)


def test_layouts_in_words() -> None:
    layout = LAYOUTS["V2 with copies and two paths"]
    assert formula(layout) == "y = K x + L K x", "30 filters in groups of 16 are not interleaved"
    assert formula(plan_layout(64, 48, 16)) == "y = K x + L P K x"
    assert stage_text(layout.k) == "30 × 50: 4 groups of 16 channels, 14 of them copied"
    assert formula(LAYOUTS["V2 without L"]) == "y = K x"
    assert formula(LAYOUTS["V1 with an order of the output"]) == "y = P K x"
    assert formula(LAYOUTS["low rank"]) == "y = L K x"
    uneven = LAYOUTS["uneven groups of any channels"]
    assert stage_text(uneven.k) == "6 × 8: 3 groups of 2 to 3 channels, read in another order"


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_are_drawn_in_the_order_in_which_they_are_computed(name: str) -> None:
    layout = LAYOUTS[name]
    labels = [figure.find("svg").get("aria-label") for figure in Drawings().of(layout)]  # type: ignore[union-attr]
    wanted = ["K: "]
    wanted += ["P: interleave"] if layout.interleave is not None else []
    wanted += ["L: "] if layout.l is not None else []
    wanted += ["order of the output"] if layout.output_interleave is not None else []
    assert len(labels) == len(wanted)
    assert all(str(a).startswith(b) for a, b in zip(labels, wanted, strict=True))


def test_layouts_with_too_many_blocks_are_drawn_as_a_grid() -> None:
    halves = [(range(first, 8000, 2), 1) for first in (0, 1)]
    assert len(blocks_of(extended_layout(8000, 2, halves, None).k)) == 2
    mixed: GroupLayout = extended_layout(8000, 3, [*halves, (range(0, 8000, 4), 1)], None)
    assert len(blocks_of(mixed.k)) == 2 + 2000
    drawings = Drawings()
    drawings.of(mixed)
    assert len(to_html(drawings.definitions())) < 20_000


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_picture_decodes_to_its_levels(rows: int, columns: int, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, LEVELS, (rows, columns))
    png = grey_png(levels)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        data = png[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", png, at + 8 + size) == (zlib.crc32(kind + data),)
        chunks[kind], at = data, at + 12 + size
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (columns, rows, 4, 0, 0, 0, 0)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(rows, -1)
    assert not lines[:, 0].any()
    pixels = np.stack([lines[:, 1:] >> 4, lines[:, 1:] & 15], axis=2).reshape(rows, -1)
    assert np.array_equal(pixels[:, :columns], levels)


@pytest.mark.parametrize(
    ("high", "ticks"),
    [(100, [50, 100]), (0.44, [0.2, 0.4]), (37_000, [20_000]), (3.0, [1, 2, 3]), (0, [])],
)
def test_ticks_are_round(high: float, ticks: list[float]) -> None:
    assert round_ticks(high) == pytest.approx(ticks)


@given(st.floats(1e-9, 1e12))
def test_there_are_a_few_ticks_for_any_height(high: float) -> None:
    ticks = round_ticks(high)
    assert 1 <= len(ticks) <= 4
    assert 0 < ticks[-1] <= high * 1.001


def test_decades_are_thinned() -> None:
    assert decades(0.02, 300) == pytest.approx([0.1, 1, 10, 100])
    assert len(decades(1e-9, 1e3)) <= 5


def test_scales() -> None:
    assert Scale(0, 10, 100).place(2.5) == 25
    assert Scale(0, 10, 100).place(11) == 100
    assert Scale(1, 100, 10, logarithmic=True).place(10) == pytest.approx(5)
    assert Scale(3, 3, 10).place(3) == 0


def test_paths() -> None:
    assert steps_path([10, 0], [0, 1], 20, 0.5) == "M0.25 20v-10h0.5v10z"
    assert stems_path([10], [0.5], 20) == "M0.5 20v-10"
    assert line_path([(0, 1), (2, 3.25)]) == "M0 1L2 3.25"
    assert line_path([]) == ""
    assert [tick_text(each) for each in (0.2, 50, 20_000, 2.5e6, 1e9)] == [
        "0.2",
        "50",
        "20k",
        "2.5M",
        "1G",
    ]
