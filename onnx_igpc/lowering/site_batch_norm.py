"""Folding the BatchNormalization behind a rewritten site into the site's own weights.

With s the factor and t the shift of each channel, s (K x + L P K x) + t is again such a site: K' = s K
and L' = s L P (1/s) P^-1, since L reads what K' has scaled already. Without the sum, or without an L,
only the last stage is scaled. A runtime folds BatchNormalization into a convolution that alone feeds
it, but not through the Add, so that it would be computed at every run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from onnx_igpc.edit import GraphEdit, SubgraphBuilder
from onnx_igpc.fitting import IgpcWeights, igpc_matrix
from onnx_igpc.graph_view import GraphView, NodeRef
from onnx_igpc.graph_walk import opset_version
from onnx_igpc.igpc_nodes import IgpcNodes, SiteTensors, add_weights
from onnx_igpc.layout import GroupedStage, GroupLayout, invert_permutation
from onnx_igpc.lowering.subgraph import IgpcSubgraph, find_subgraphs
from onnx_igpc.model_io import OpenModel
from onnx_igpc.passes import FoldBatchNorm, RemoveDead
from onnx_igpc.passes.fold_batch_norm import BatchNorm, following_batch_norm
from onnx_igpc.report import RewriteReport, read_digest, write_digest

# Channels that BatchNormalization all but switches off still feed L: they are scaled by no less than
# this share of the largest factor, which moves the output by as much.
_LEAST_FACTOR = {np.dtype(np.float16): 1e-4}
_LEAST_DEFAULT = 1e-7
# Largest deviation of the folded matrix, relative to its largest entry.
_TOLERANCE = {np.dtype(np.float16): 2e-3}
_TOLERANCE_DEFAULT = 1e-6


@dataclass
class Folded:
    """BatchNormalizations by name: those that were folded, and the others with the reason."""

    changed: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def fold_batch_norms(opened: OpenModel) -> Folded:
    """Fold BatchNormalization into the convolutions and the rewritten sites before it, in place.

    The model's digest is brought up to date.

    Raises:
        ModelError: the digest cannot be read.
    """
    plain = FoldBatchNorm()
    result = plain.run(opened)
    RemoveDead(result.orphans).run(opened)
    digest = read_digest(opened.proto) or RewriteReport()
    moved = {former: now for (_, now), former in plain.renamed.items()}
    for site in digest.sites:
        site.output = moved.get(site.output, site.output)
    folded = Folded(list(result.changed), dict(result.kept))
    _fold_sites(opened, digest, folded)
    if digest.sites:
        write_digest(opened.proto, digest)
    return folded


def _fold_sites(opened: OpenModel, digest: RewriteReport, folded: Folded) -> None:
    found, _ = find_subgraphs(opened)
    view, edit = GraphView(opened), GraphEdit(opened)
    refs = {(id(ref.scope.holder), ref.index): ref for ref in view.nodes}
    orphans: set[str] = set()
    for sub in found:
        last = next(ref for ref in sub.refs if sub.output in ref.proto.output)
        norm = following_batch_norm(view, refs[id(last.scope.holder), last.index])
        if norm is None:
            continue
        label = norm.ref.proto.name or norm.ref.proto.output[0]
        reason = "its statistics are outputs or are made anew" if norm.keeps_statistics else None
        new = None if reason else scaled(sub, norm)
        if new is None:
            reason = reason or f"the folded weights would lose precision in {sub.dtype}"
            folded.kept[label] = reason
            continue
        names = _write(edit, sub, new, norm.ref)
        orphans |= {name for ref in (*sub.refs, norm.ref) for name in ref.proto.input if name}
        folded.changed.append(label)
        folded.kept.pop(label, None)
        _note(digest, sub, names, norm.ref)
    edit.apply()
    RemoveDead(orphans).run(opened)


def scaled(sub: IgpcSubgraph, norm: BatchNorm) -> IgpcSubgraph | None:
    """The site with the BatchNormalization in its weights; ``None`` if that cannot be exact."""
    layout, factor = sub.layout, norm.factor
    shift = norm.bias - norm.mean * factor
    # In the order of the last stage's filters.
    order = layout.output_interleave
    scale = factor if order is None else factor[list(invert_permutation(order))]
    if layout.l is None or sub.l is None:
        new = replace(sub, k=_rows(layout.k, sub.k, scale))
    elif not layout.has_sum:
        new = replace(sub, l=_rows(layout.l, sub.l, scale))
    else:
        least = _LEAST_FACTOR.get(sub.dtype, _LEAST_DEFAULT) * float(np.abs(scale).max())
        if least == 0.0:
            return None
        floored = np.where(np.abs(scale) < least, np.copysign(least, scale), scale)
        read = 1.0 / (floored if layout.interleave is None else floored[list(layout.interleave)])
        columns = _columns(layout.l, sub.l, read)
        new = replace(sub, k=_rows(layout.k, sub.k, floored), l=_rows(layout.l, columns, scale))
    bias = np.zeros(layout.out_channels) if sub.bias is None else sub.bias
    new = replace(new, bias=bias * factor + shift, output=str(norm.ref.proto.output[0]))
    return new if _is_exact(sub, new, factor) else None


def _rows(
    stage: GroupedStage, weights: tuple[np.ndarray, ...], scale: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The weights with each filter multiplied by its entry of ``scale``."""
    first = np.cumsum([0, *(path.filters for path in stage.paths)])
    return tuple(
        values * scale[start : start + len(values), None]
        for start, values in zip(first, weights, strict=False)
    )


def _columns(
    stage: GroupedStage, weights: tuple[np.ndarray, ...], scale: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The weights with what reads a channel multiplied by the channel's entry of ``scale``."""
    made = []
    for path, values in zip(stage.paths, weights, strict=True):
        read = scale[list(path.inputs)].reshape(path.groups, 1, path.channels_per_group)
        shaped = values.reshape(path.groups, path.filters_per_group, path.channels_per_group)
        made.append((shaped * read).reshape(values.shape))
    return tuple(made)


def _is_exact(before: IgpcSubgraph, after: IgpcSubgraph, factor: np.ndarray) -> bool:
    wanted = factor[:, None] * before.matrix()
    with np.errstate(over="ignore", invalid="ignore"):
        k = _stored(after.k, after.dtype)
        l_stage = None if after.l is None else _stored(after.l, after.dtype)
        assert after.bias is not None
        bias = after.bias.astype(after.dtype)
        found = igpc_matrix(after.layout, IgpcWeights(k, l_stage))
    if not (np.isfinite(found).all() and np.isfinite(bias).all()):
        return False
    scale = float(np.abs(wanted).max()) or 1.0
    tolerance = _TOLERANCE.get(before.dtype, _TOLERANCE_DEFAULT)
    return bool(np.abs(found - wanted).max() <= tolerance * scale)


def _stored(weights: tuple[np.ndarray, ...], dtype: np.dtype) -> tuple[np.ndarray, ...]:
    return tuple(each.astype(dtype).astype(np.float64) for each in weights)


def _write(edit: GraphEdit, old: IgpcSubgraph, new: IgpcSubgraph, norm: NodeRef) -> list[str]:
    """Put the new site in the place of the BatchNormalization; the names of its nodes."""
    builder = SubgraphBuilder(edit.names, old.refs[0].proto)
    base = old.nodes[0].split("/igpc/")[0]
    tensors = SiteTensors(old.holder)
    layout: GroupLayout = new.layout
    weights = IgpcWeights(new.k, new.l)
    add_weights(edit, tensors, base, weights, new.dtype, new.spatial_rank)
    opset = opset_version(edit.model.proto, norm.scope)
    attributes = list(new.conv_attributes)
    nodes = IgpcNodes(
        edit, builder, layout, tensors, base, attributes, new.spatial_rank, opset=opset
    )
    assert new.bias is not None
    nodes.write(new.input, "", new.bias.astype(new.dtype), new.output)
    for ref in old.refs:
        edit.replace(ref, [])
    edit.replace(norm, builder.build(opset))
    return builder.node_names


def _note(digest: RewriteReport, sub: IgpcSubgraph, names: list[str], norm: NodeRef) -> None:
    """The site's new nodes and output in the digest."""
    gone = {*sub.nodes, norm.proto.name}
    for site in digest.sites:
        if not gone.isdisjoint(site.nodes):
            site.nodes = [*(name for name in site.nodes if name not in gone), *names]
            if site.output == sub.output:
                site.output = str(norm.proto.output[0])
