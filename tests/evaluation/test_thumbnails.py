"""Pictures of W and M: what a cell holds, and which sites have them."""

from __future__ import annotations

import base64
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnx_igpc import compress
from onnx_igpc.evaluation.thumbnails import add_thumbnails, pooled
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.planning.options import Published
from onnx_igpc.report.digest import read_digest, write_digest
from onnx_igpc.report.pictures import SIDE, decoded
from onnx_igpc.report.tree import RewriteReport
from tests.helpers import node_named, pointwise_model, tensor_named
from tests.html_reports import benchmark_report, verify_report


def test_small_matrices_have_a_cell_for_each_weight() -> None:
    matrix = np.array([[1.0, -2.0], [0.0, 3.0], [4.0, 0.5]])
    assert np.allclose(pooled(matrix), np.abs(matrix))


@pytest.mark.parametrize("shape", [(65, 64), (300, 7), (1000, 129)])
def test_a_cell_is_the_root_mean_square_of_its_weights(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    cells = pooled(matrix)
    assert cells.shape == (min(SIDE, shape[0]), min(SIDE, shape[1]))
    # The cell of each row and column: the last one that begins at it or before.
    rows, columns = (
        np.searchsorted(np.arange(min(SIDE, n)) * n // min(SIDE, n), np.arange(n), "right") - 1
        for n in shape
    )
    first = matrix[np.ix_(rows == 0, columns == 0)]
    last = matrix[np.ix_(rows == cells.shape[0] - 1, columns == cells.shape[1] - 1)]
    assert cells[0, 0] == pytest.approx(np.sqrt(np.mean(first**2)))
    assert cells[-1, -1] == pytest.approx(np.sqrt(np.mean(last**2)))


def test_w_and_m_of_a_rewritten_site() -> None:
    dense = pointwise_model(40, 24)
    result = compress(dense, Published(8))
    add_thumbnails(result.report, result.opened)
    (site,) = result.report.rewritten
    assert site.thumbnails is not None
    assert set(site.thumbnails) == {"M"}, "without the original there is no W"
    add_thumbnails(result.report, result.opened, OpenModel(dense))
    picture = site.thumbnails["W"]
    assert picture.shape == (24, 40)
    weight = tensor_named(dense, node_named(dense, site.name).input[1]).reshape(24, 40)
    levels = decoded(picture)
    assert np.abs(levels / 255 * picture.largest - np.abs(weight)).max() < picture.largest / 500
    assert picture.largest == site.thumbnails["M"].largest, "one scale for both"


def test_pictures_and_measurements_stay_out_of_the_digest() -> None:
    result = compress(pointwise_model(40, 24), Published(8))
    plain = result.model.SerializeToString()
    add_thumbnails(result.report, result.opened)
    result.report.verify, result.report.benchmark = verify_report(), benchmark_report()
    write_digest(result.model, result.report)
    assert result.model.SerializeToString() == plain
    digest = read_digest(result.model)
    assert digest is not None
    assert digest.verify is None
    assert digest.sites[0].thumbnails is None
    assert RewriteReport.from_json(result.report.to_json()) == result.report


@pytest.mark.parametrize(
    "damage",
    [
        {"cells": (65, 1)},
        {"cells": (0, 1)},
        {"data": "not base64!"},
        {"data": base64.b64encode(b"not zlib").decode()},
        {"data": base64.b64encode(zlib.compress(b"short")).decode()},
        {"data": base64.b64encode(zlib.compress(bytes(10**6))).decode()},
    ],
)
def test_damaged_pictures_are_refused(damage: dict[str, Any]) -> None:
    result = compress(pointwise_model(40, 24), Published(8))
    add_thumbnails(result.report, result.opened)
    picture = (result.report.sites[0].thumbnails or {})["M"]
    decoded(picture)
    with pytest.raises(ValueError, match="not a thumbnail"):
        decoded(replace(picture, **damage))
