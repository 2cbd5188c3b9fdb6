"""Folding BatchNormalization into the interleaved grouped convolution before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnx_igpc.fitting.weights import IgpcWeights, igpc_matrix
from onnx_igpc.graph.edit import GraphEdit
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import copied
from onnx_igpc.graph.view import GraphView, NodeRef
from onnx_igpc.layout.group_layout import GroupedStage
from onnx_igpc.passes.base import Pass, PassResult
from onnx_igpc.sites.batch_norm import BatchNorm, following_batch_norm
from onnx_igpc.sites.stages import l_inputs, stage_order
from onnx_igpc.sites.subgraph import IgpcSubgraph, subgraphs_in

# What stands for a factor of 0 where L reads the row: K x times this is lost in the rounding of
# whatever is added to it, and L undoes it without a rounding. float16 has no such number.
_NOTHING = 2.0**-64
# Largest error of a folded row, relative to its largest value, in units of the dtype's resolution.
_RESOLUTIONS = 4


class FoldSiteBatchNorm(Pass):
    """Fold BatchNormalization into the site that alone feeds it.

    Rules:

    * For y = (I + L P) K x + b and a scale s of each filter, K becomes diag(s) K, and L becomes
      diag(s) L with column j divided by s_j, so that what L reads is what it was: the products are
      equal. Without the sum only the last stage is scaled.
    * Where s_j is 0 and L reads row j, 2^-64 takes its place, which is less than the rounding of any
      output. In float16, which has no such number, the BatchNormalization stays; so it does where
      the new weights would not be finite in the site's dtype, or would lose precision.
    * What the BatchNormalization adds is added where the site adds its bias: in the last stage.
    * The site's nodes keep their names and take over the BatchNormalization's output.
    * The BatchNormalization has constant tensors and gives out no statistics.
    """

    def run(self, model: OpenModel) -> PassResult:
        result = PassResult()
        # A second BatchNormalization behind the first is behind the site in the next round.
        while self._fold_once(model, result):
            pass
        return result

    def _fold_once(self, model: OpenModel, result: PassResult) -> bool:
        view, edit = GraphView(model), GraphEdit(model, result.removed)
        folded = False
        for site in subgraphs_in(view)[0]:
            last = next(ref for ref in site.refs if site.output in ref.proto.output)
            norm = following_batch_norm(view, last)
            if norm is None:
                continue
            label = norm.ref.name
            reason = "it computes statistics" if norm.keeps_statistics else None
            reason = reason or _fold(edit, site, norm, last)
            if reason is not None:
                result.kept[label] = reason
                continue
            result.changed.append(label)
            folded = True
        result.add_removed(edit.apply())
        return folded


def _fold(edit: GraphEdit, site: IgpcSubgraph, norm: BatchNorm, last: NodeRef) -> str | None:
    factor = norm.factor
    if site.layout.l is not None and site.layout.has_sum and site.dtype != np.float16:
        factor = np.where(np.abs(factor) < _NOTHING, _NOTHING, factor)
    scale = stage_order(site, factor)
    scaled = _scaled(site, scale)
    if isinstance(scaled, str):
        return scaled
    bias = np.zeros_like(factor) if site.bias is None else site.bias
    shift = stage_order(site, (bias - norm.mean) * norm.factor + norm.bias)
    with np.errstate(over="ignore"):
        stored = IgpcWeights(
            tuple(each.astype(site.dtype) for each in scaled.k),
            tuple(each.astype(site.dtype) for each in scaled.l),
        )
        shift = shift.astype(site.dtype)
    arrays = (*stored.k, *stored.l, shift)
    if not all(np.isfinite(each).all() for each in arrays):
        return f"the folded weights would not be finite in {site.dtype}"
    if not _is_close(site, stored, factor):
        return f"the folded weights would lose precision in {site.dtype}"
    nodes = {id(ref): [copied(ref.proto)] for ref in site.refs}
    stages = [("K", site.layout.k, site.k_convs, stored.k)]
    if site.layout.l is not None:
        stages.append(("L", site.layout.l, site.l_convs, stored.l))
    for label, stage, convs, weights in stages:
        added = shift if label == stages[-1][0] else None
        _write(edit, site, label, stage, convs, weights, added, nodes)
    nodes[id(last)][0].output[0] = norm.ref.proto.output[0]
    for ref in site.refs:
        edit.replace(ref, nodes[id(ref)])
    edit.replace(norm.ref, [])
    return None


def _scaled(site: IgpcSubgraph, scale: np.ndarray) -> IgpcWeights | str:
    """K and L that make every filter times its scale, or why there are none."""
    layout = site.layout
    k = _rows_times(layout.k, site.k, scale) if layout.l is None or layout.has_sum else site.k
    if layout.l is None:
        return IgpcWeights(k)
    made = list(_rows_times(layout.l, site.l, scale))
    if layout.has_sum:
        for index, (path, inputs) in enumerate(zip(layout.l.paths, l_inputs(site), strict=True)):
            read = scale[list(inputs)].reshape(path.groups, 1, path.channels_per_group)
            blocks = made[index].reshape(
                path.groups, path.filters_per_group, path.channels_per_group
            )
            if (blocks[np.broadcast_to(read == 0, blocks.shape)] != 0).any():
                return "it switches off a filter whose value L reads"
            divided = np.divide(blocks, read, out=np.zeros_like(blocks), where=read != 0)
            made[index] = divided.reshape(made[index].shape)
    return IgpcWeights(k, tuple(made))


def _rows_times(
    stage: GroupedStage, weights: Sequence[np.ndarray], scale: np.ndarray
) -> tuple[np.ndarray, ...]:
    first, made = 0, []
    for path, values in zip(stage.paths, weights, strict=True):
        made.append(values * scale[first : first + path.filters, None])
        first += path.filters
    return tuple(made)


def _is_close(site: IgpcSubgraph, stored: IgpcWeights, factor: np.ndarray) -> bool:
    """Whether every row of the folded matrix is what it should be, to the dtype's resolution."""
    found = igpc_matrix(site.layout, stored)
    wanted = site.matrix() * factor[:, None]
    # Of a sum of products, what counts is how large the products are, not what is left of them.
    sizes = IgpcWeights(
        tuple(np.abs(each) for each in site.k),
        tuple(np.abs(each) for each in site.l),
    )
    size = (igpc_matrix(site.layout, sizes) * np.abs(factor)[:, None]).max(axis=1, keepdims=True)
    return bool((np.abs(found - wanted) <= _RESOLUTIONS * np.finfo(site.dtype).eps * size).all())


def _write(
    edit: GraphEdit,
    site: IgpcSubgraph,
    label: str,
    stage: GroupedStage,
    convs: Sequence[NodeRef],
    weights: Sequence[np.ndarray],
    bias: np.ndarray | None,
    nodes: dict[int, list[onnx.NodeProto]],
) -> None:
    """New constants for the convolutions of a stage; a stage without a bias has none any more."""
    base = site.nodes[0].split("/igpc/")[0]
    first = 0
    for path, ref, values in zip(stage.paths, convs, weights, strict=True):
        node = nodes[id(ref)][0]
        del node.input[1:]
        kernel = values.reshape(*values.shape, *[1] * site.spatial_rank)
        name = f"{base}/igpc/{label}.folded_weight"
        node.input.append(edit.constant(site.holder, name, kernel))
        if bias is not None:
            part = bias[first : first + path.filters]
            name = f"{base}/igpc/{label}.folded_bias"
            node.input.append(edit.constant(site.holder, name, part))
        first += path.filters
