"""Every lowering by name, which of them a site can take, and writing the chosen ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx_igpc.errors import UsageError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import opset_version
from onnx_igpc.passes.base import PassResult
from onnx_igpc.passes.fold_batch_norm import FoldBatchNorm
from onnx_igpc.passes.fold_site_batch_norm import FoldSiteBatchNorm
from onnx_igpc.passes.lower_blocks import LowerBlocks
from onnx_igpc.passes.lower_dense import LowerDense
from onnx_igpc.passes.lower_folded_sum import LowerFoldedSum
from onnx_igpc.passes.lower_literal import LowerLiteral
from onnx_igpc.passes.lower_matmul import LowerMatMul
from onnx_igpc.passes.lower_merged_groups import LowerMergedGroups
from onnx_igpc.passes.lower_padded import LowerPadded
from onnx_igpc.passes.lower_slices import LowerSlices
from onnx_igpc.passes.lower_transpose import LowerTranspose
from onnx_igpc.passes.lower_whole_rows import LowerWholeRows
from onnx_igpc.passes.lowering import Lowering, lower_sites
from onnx_igpc.sites.subgraph import IgpcSubgraph, find_subgraphs

LOWERINGS: dict[str, Lowering] = {
    each.label: each
    for each in (
        LowerLiteral(),
        LowerDense(),
        LowerFoldedSum(),
        LowerBlocks(8),
        LowerBlocks(16),
        LowerPadded(8),
        LowerPadded(16),
        LowerMergedGroups(8),
        LowerMergedGroups(16),
        LowerWholeRows(4),
        LowerWholeRows(16),
        LowerSlices(),
        LowerTranspose(),
        LowerMatMul(),
    )
}
"""The lowerings by name; the docstring of each one's class states its rules."""


@dataclass(frozen=True)
class LoweredSite:
    """What became of a site.

    ``nodes`` names the nodes that are there now; ``input`` and ``output`` are the tensors that the
    site read and made before, and does still. ``exact`` says whether stored weights were only
    moved, so that the model's rounding is as it was.
    """

    name: str
    lowering: str
    nodes: tuple[str, ...]
    input: str
    output: str
    exact: bool


def applicable(subgraph: IgpcSubgraph, opset: int) -> dict[str, str | None]:
    """For each lowering by name: ``None`` where it applies to the site, or else why it does not."""
    return {name: lowering.refusal(subgraph, opset) for name, lowering in LOWERINGS.items()}


def site_opset(opened: OpenModel, subgraph: IgpcSubgraph) -> int:
    """The version of the default operator set where the site lies, for :func:`applicable`."""
    return opset_version(opened.proto, subgraph.refs[0].scope)


def fold_batch_norms(opened: OpenModel) -> PassResult:
    """Fold BatchNormalization into sites and other convolutions, in place, before they are lowered.

    ``changed`` names the BatchNormalizations that are gone, ``kept`` has the reasons for others. May
    be called once more after :func:`lower`: what a site could not take, its dense form can.
    """
    sites = FoldSiteBatchNorm().run(opened)
    others = FoldBatchNorm().run(opened)
    folded = [*sites.changed, *others.changed]
    kept = {**sites.kept, **others.kept}
    return PassResult(folded, {n: why for n, why in kept.items() if n not in folded})


def lower(opened: OpenModel, choices: Mapping[str, str]) -> list[LoweredSite]:
    """Write each site that ``choices`` names (site name -> lowering name), in place.

    Sites that are not named stay as they are. The model's digest is not touched.

    Raises:
        UsageError: a site that is not recognised in the model, a lowering that does not exist or
            is not for the site.
        ModelError: the digest cannot be read, or folded weights would not be finite in the site's
            dtype.
    """
    sites, unknown = find_subgraphs(opened)
    reasons = dict(unknown)
    by_name = {site.name: site for site in sites}
    chosen: dict[str, Lowering] = {}
    for name, label in choices.items():
        if name not in by_name:
            why = reasons.get(name, "the model has no such site")
            raise UsageError(f"site {name!r} cannot be lowered: {why}")
        if label not in LOWERINGS:
            raise UsageError(f"unknown lowering {label!r}: choose from {', '.join(LOWERINGS)}")
        reason = LOWERINGS[label].refusal(by_name[name], site_opset(opened, by_name[name]))
        if reason is not None:
            raise UsageError(f"lowering {label!r} is not for site {name!r}: {reason}")
        chosen[name] = LOWERINGS[label]
    written = lower_sites(opened, sites, chosen)
    return [
        LoweredSite(
            done.name,
            done.lowering,
            done.nodes or by_name[done.name].nodes,
            by_name[done.name].input,
            by_name[done.name].output,
            LOWERINGS[done.lowering].exact,
        )
        for done in written
    ]
