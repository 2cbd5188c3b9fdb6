"""The matrix that a rewritten site applies, read from the nodes of the file.

Passes that run after the rewrite move channels from one node to another, so that a site's layout and
its nodes need not agree any more. What the nodes are recognised as is M, whatever was done.
"""

from __future__ import annotations

import numpy as np

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.layout.permutations import invert_permutation
from onnx_igpc.report.tree import RewriteReport, SiteReport
from onnx_igpc.sites.recognition import NotRecognisedError
from onnx_igpc.sites.subgraph import SiteRecord, nodes_by_name, site_subgraphs


class SiteMatrices:
    """The matrices of the rewritten sites of a model, given the model's report."""

    def __init__(self, model: OpenModel, report: RewriteReport) -> None:
        self._view = GraphView(model)
        self._nodes = nodes_by_name(self._view)
        self._orders = {
            name: list(invert_permutation(permutation.order))
            for permutation in report.permutations
            for name in permutation.tensors
        }

    def matrix(self, site: SiteReport) -> np.ndarray | None:
        """M, float64 of shape (F, C), for channels in the order that the original has them in.

        ``None`` where the site is not rewritten or its nodes are not all linear, as in the paper's form.
        """
        if not site.rewritten or any(name not in self._nodes for name in site.nodes):
            return None
        try:
            found, *others = site_subgraphs(self._view, SiteRecord.of(site), self._nodes)
        except NotRecognisedError:
            return None
        if others or found.name != site.name or found.input != site.input:
            return None
        made = found.matrix()
        # A tensor has the original's channels as original[:, order]: undo that on both sides.
        if (order := self._orders.get(site.input)) is not None:
            made = made[:, order]
        if (order := self._orders.get(site.output)) is not None:
            made = made[order]
        return made
