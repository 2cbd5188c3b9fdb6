"""How much faster a rewritten model could at best be, from a profile of the original.

The time outside the rewritten sites stays. A site cannot take less than its share of the dense time
that its multiply-accumulates (MACs) leave, nor less than reading its input and writing its output
once takes; and it need not take longer than it did, since it could be dense. This is Amdahl's law with a memory
bound for each site: the limit of kernels as efficient as the dense ones, not of the hardware.

Profiling slows a model down, and what lies between nodes is in no node's time: profiled times are
scaled so that they sum to the median time of a run without profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_igpc.report.benchmark import SiteLimit, SpeedLimit
from onnx_igpc.report.tree import RewriteReport, SiteReport
from onnx_igpc.runtime.bandwidth import Bandwidth
from onnx_igpc.runtime.profile import ExecutionProfile, NodeRun


@dataclass(frozen=True)
class SiteWork:
    """A rewritten site: the labels of the original's nodes that it replaced, and the share of their
    MACs that is left.
    """

    name: str
    labels: frozenset[str]
    macs_share: float


def site_work(report: RewriteReport) -> list[SiteWork]:
    """The rewritten sites of a report.

    The MACs that are left are those of the layout, which are its weights times the places that it is
    applied at: a lowering may spend more, up to all of the dense layer's, but the limit stays that of the
    function. For a site without a layout they are those that were counted, of MACs or parameters.
    """
    work = []
    for site in report.rewritten:
        share = _layout_share(site)
        for counted in (site.macs.ratio, site.parameters.ratio):
            share = counted if share is None else share
        if share is not None:
            work.append(SiteWork(site.name, frozenset({site.name, *site.replaced}), share))
    return work


def _layout_share(site: SiteReport) -> float | None:
    if site.k is None or not site.in_channels or not site.out_channels:
        return None
    weights = site.k.weights + (site.l.weights if site.l else 0)
    return weights / (site.in_channels * site.out_channels)


def speed_limit(
    profile: ExecutionProfile,
    runs: int,
    sites: Sequence[SiteWork],
    bandwidth: Bandwidth,
    dense_ms: float,
    rewritten_ms: float,
) -> SpeedLimit | str:
    """The limit for the sites of a rewritten model; a sentence that says why there is none.

    profile: of the original over ``runs`` runs, with nodes matched to its own. dense_ms,
    rewritten_ms: median time of a run of either model, measured without profile.
    """
    owner = {label: index for index, site in enumerate(sites) for label in site.labels}
    of_site: list[list[NodeRun]] = [[] for _ in sites]
    outside = 0.0
    for run in profile.nodes:
        index = owner.get(run.node) if run.node is not None else None
        if index is None:
            outside += run.typical_microseconds
        else:
            of_site[index].append(run)
    missing = [site.name for site, found in zip(sites, of_site, strict=True) if not found]
    if missing or not sites:
        named = f", as {missing[0]}" if missing else ""
        return f"{len(missing)} of {len(sites)} rewritten sites are not in the profile{named}"
    profiled = sum(run.typical_microseconds for run in profile.nodes)
    if not profiled:
        return "the profile's times are too short to tell"
    scale = dense_ms / profiled
    limits = [
        _site_limit(site, found, scale, runs, bandwidth)
        for site, found in zip(sites, of_site, strict=True)
    ]
    outside_ms = outside * scale
    limit_ms = outside_ms + sum(site.limit_ms for site in limits)
    return SpeedLimit(
        speedup=dense_ms / limit_ms,
        reached=limit_ms / rewritten_ms,
        limit_ms=limit_ms,
        outside_ms=outside_ms,
        memory_bound=sum(site.bound_by_memory for site in limits),
        sites=tuple(limits),
    )


def _site_limit(
    site: SiteWork, found: Sequence[NodeRun], scale: float, runs: int, bandwidth: Bandwidth
) -> SiteLimit:
    dense = scale * sum(run.typical_microseconds for run in found)
    arithmetic = dense * site.macs_share
    memory = sum(
        1000 * bandwidth.seconds(run.bytes_moved) * run.calls / runs
        for run in found
        if run.bytes_moved
    )
    return SiteLimit(site.name, dense, arithmetic, memory, min(dense, max(arithmetic, memory)))
