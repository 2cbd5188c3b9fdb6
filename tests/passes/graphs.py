"""Running one pass on a small graph, and what a rewritten layer must compute, in plain numpy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.passes import GroupPointwise
from onnx_igpc.passes.group_pointwise import GroupedSites
from onnx_igpc.sites.find import Rewritable, SiteFilter
from onnx_igpc.sites.rewrite import Form


@dataclass
class Grouping:
    """What :func:`group` did: the new model, the pass's result, and the weights that each site was given."""

    model: onnx.ModelProto
    result: GroupedSites
    weights: dict[str, IgpcWeights]
    layouts: dict[str, GroupLayout] = field(default_factory=dict)

    def nodes(self, op_type: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if node.op_type == op_type]


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def group(
    model: onnx.ModelProto,
    ch: int = 8,
    scheme: str = "v2",
    form: Form = "linear",
    *,
    exclude: Iterable[str] = (),
    heads: bool = False,
) -> Grouping:
    """Run the pass with random weights on a copy of ``model``, then remove what is dead."""
    opened = OpenModel(copy_of(model))
    generator = np.random.default_rng(7)
    weights: dict[str, IgpcWeights] = {}
    layouts: dict[str, GroupLayout] = {}

    def plan(site: Rewritable) -> GroupLayout:
        layouts[site.name] = plan_layout(site.in_channels, site.out_channels, ch, scheme)
        return layouts[site.name]

    def draw(stage: GroupedStage, dtype: np.dtype) -> tuple[np.ndarray, ...]:
        return tuple(
            (generator.standard_normal(path.weight_shape) / path.channels_per_group)
            .astype(dtype)
            .astype(np.float64)
            for path in stage.paths
        )

    def weigh(
        site: Rewritable, layout: GroupLayout, scale: np.ndarray | None
    ) -> tuple[IgpcWeights, float]:
        drawn = IgpcWeights(
            draw(layout.k, site.dtype), draw(layout.l, site.dtype) if layout.l else ()
        )
        weights[site.name] = drawn
        return drawn, 0.5

    rewriting = GroupPointwise(plan, weigh, form, SiteFilter((), tuple(exclude), heads))
    result = rewriting.run(opened)
    onnx.checker.check_model(opened.proto, full_check=True)
    return Grouping(opened.proto, result, weights, layouts)


def igpc(layout: GroupLayout, weights: IgpcWeights, x: np.ndarray) -> np.ndarray:
    """y = L P K x + K x, group by group; ``x`` has shape (N, C, ...)."""
    k = stage(layout.k, weights.k, x)
    y = k
    if layout.l is not None:
        shuffled = k if layout.interleave is None else k[:, list(layout.interleave)]
        y = stage(layout.l, weights.l, shuffled) + k
    return y if layout.output_interleave is None else y[:, list(layout.output_interleave)]


def stage(grouped: GroupedStage, weights: Iterable[np.ndarray], x: np.ndarray) -> np.ndarray:
    made = []
    for path, values in zip(grouped.paths, weights, strict=True):
        for index in range(path.groups):
            first = index * path.filters_per_group
            rows = values[first : first + path.filters_per_group]
            read = x[:, list(path.group_inputs(index))]
            made.append(np.einsum("fc,nc...->nf...", rows, read))
    return np.concatenate(made, axis=1)
