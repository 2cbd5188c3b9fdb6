"""The matrix that a rewritten site applies, read from the nodes of the file.

Passes that run after the rewrite move channels from one node to another, so that a site's layout and
its nodes need not agree any more. What the nodes compute of the identity matrix is M, whatever was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView, NodeRef
from onnx_igpc.layout.permutations import invert_permutation
from onnx_igpc.report.tree import RewriteReport, SiteReport


class _NotAMatrixError(Exception):
    """The nodes are not those of a linear IGPC."""


class SiteMatrices:
    """The matrices of the rewritten sites of a model, given the model's report."""

    def __init__(self, model: OpenModel, report: RewriteReport) -> None:
        self._view = GraphView(model)
        self._nodes = {ref.proto.name: ref for ref in self._view.nodes if ref.proto.name}
        self._orders = {
            name: tuple(permutation.order)
            for permutation in report.permutations
            for name in permutation.tensors
        }

    def matrix(self, site: SiteReport) -> np.ndarray | None:
        """M, float64 of shape (F, C), for channels in the order that the original has them in.

        ``None`` where the site is not rewritten or its nodes are not all linear, as in the paper's form.
        """
        if not site.rewritten or site.in_channels is None:
            return None
        try:
            made = self._run(site)
        except _NotAMatrixError:
            return None
        if made.shape != (site.out_channels, site.in_channels):
            return None
        # A tensor has the original's channels as original[:, order]: undo that on both sides.
        if (order := self._orders.get(site.input)) is not None:
            made = made[:, list(invert_permutation(order))]
        if (order := self._orders.get(site.output)) is not None:
            made = made[list(invert_permutation(order))]
        return made

    def _run(self, site: SiteReport) -> np.ndarray:
        refs = [self._nodes[name] for name in site.nodes if name in self._nodes]
        if len(refs) != len(site.nodes):
            raise _NotAMatrixError
        values = {site.input: np.eye(site.in_channels or 0)}
        read = {str(name) for ref in refs for name in ref.proto.input}
        for ref in sorted(refs, key=lambda each: each.index):
            step = _Step(self._view, ref)
            parts = step.run(values.get(str(ref.proto.input[0])), values)
            values.update(zip((str(name) for name in ref.proto.output), parts, strict=True))
        # By its place and not by its name, which is that of a BatchNorm once that is folded.
        made = [values[name] for name in values if name not in read]
        if len(made) != 1:
            raise _NotAMatrixError
        return made[0]


@dataclass(frozen=True)
class _Step:
    """One node, applied to a matrix whose rows are channels."""

    view: GraphView
    ref: NodeRef

    def run(self, x: np.ndarray | None, values: dict[str, np.ndarray]) -> list[np.ndarray]:
        if self.ref.op_type == "Add":
            return [self._sum(values)]
        if self.ref.op_type == "Concat":
            return [np.concatenate([self._known(name, values) for name in self.ref.proto.input])]
        if x is None:
            raise _NotAMatrixError
        if self.ref.op_type == "Conv":
            return [self._convolution(x)]
        if self.ref.op_type == "Gather":
            return [x[self._constant(1).reshape(-1)]]
        if self.ref.op_type == "Split":
            return np.split(x, np.cumsum(self._sizes())[:-1])
        raise _NotAMatrixError

    def _convolution(self, x: np.ndarray) -> np.ndarray:
        groups = int(self.ref.attribute("group", 1))
        kernel = self._constant(1).astype(np.float64)
        weight = kernel.reshape(kernel.shape[0], -1)
        if weight.shape[1] != kernel.shape[1] or len(x) != groups * kernel.shape[1]:
            raise _NotAMatrixError
        blocks = weight.reshape(groups, -1, weight.shape[1])
        return np.concatenate(
            [block @ part for block, part in zip(blocks, np.split(x, groups), strict=True)]
        )

    def _sum(self, values: dict[str, np.ndarray]) -> np.ndarray:
        """K + L; what is added to every position, a bias, is no part of the matrix."""
        found = [values[name] for name in self.ref.proto.input if name in values]
        if len(found) == 2 and found[0].shape == found[1].shape:
            total: np.ndarray = found[0] + found[1]
            return total
        raise _NotAMatrixError

    def _known(self, name: str, values: dict[str, np.ndarray]) -> np.ndarray:
        if name not in values:
            raise _NotAMatrixError
        return values[name]

    def _constant(self, index: int) -> np.ndarray:
        found = self.view.constant(self.ref.node.inputs[index], self.ref.scope)
        if found is None:
            raise _NotAMatrixError
        return found.values()

    def _sizes(self) -> Sequence[int]:
        given = self.ref.attribute("split", None)
        return list(given) if given else self._constant(1).tolist()
