"""Small pictures of W and M for a report: how large the weights are, at most 64 by 64 cells."""

from __future__ import annotations

import numpy as np

from onnx_igpc.graph.model import OpenModel, PathLike, open_model
from onnx_igpc.graph.view import GraphView
from onnx_igpc.report.pictures import SIDE, encoded
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.sites.find import SiteFilter, find_sites
from onnx_igpc.sites.site_matrix import SiteMatrices


def add_thumbnails(
    report: RewriteReport,
    written: OpenModel | PathLike,
    original: OpenModel | PathLike | None = None,
) -> None:
    """Put pictures of M, and with the original model of W, into each rewritten site of the report.

    Both have the same scale, so that their greys can be compared, unless BatchNorm was folded into the
    weights. A site whose nodes are not a matrix, as in the paper's form, gets none of M.

    Raises:
        ModelError: a model that cannot be read.
    """
    matrices = SiteMatrices(_opened(written), report)
    dense = _dense_matrices(_opened(original)) if original is not None else {}
    for site in report.rewritten:
        found = {"W": dense.get(site.name), "M": matrices.matrix(site)}
        shape = (site.out_channels, site.in_channels)
        shown = {name: m for name, m in found.items() if m is not None and m.shape == shape}
        cells = {name: pooled(matrix) for name, matrix in shown.items()}
        together = None if report.folded else max((c.max() for c in cells.values()), default=0.0)
        made = {
            name: encoded(each, shown[name].shape, each.max() if together is None else together)
            for name, each in cells.items()
        }
        site.thumbnails = {**(site.thumbnails or {}), **made} or None


def pooled(matrix: np.ndarray) -> np.ndarray:
    """The root mean square of each cell's weights: float64 of at most (64, 64)."""
    squares = np.asarray(matrix, np.float64) ** 2
    counts = np.ones(())
    for axis, size in enumerate(matrix.shape):
        cells = min(size, SIDE)
        starts = np.arange(cells) * size // cells
        squares = np.add.reduceat(squares, starts, axis=axis)
        widths = np.diff(np.append(starts, size))
        counts = np.multiply.outer(counts, widths)
    return np.asarray(np.sqrt(squares / counts))


def _dense_matrices(model: OpenModel) -> dict[str, np.ndarray]:
    """W of every site of the original that could have been rewritten."""
    return {
        site.name: site.weight_matrix().astype(np.float64)
        for site in find_sites(GraphView(model), SiteFilter(include_heads=True)).rewritable
    }


def _opened(model: OpenModel | PathLike) -> OpenModel:
    return model if isinstance(model, OpenModel) else open_model(model)
