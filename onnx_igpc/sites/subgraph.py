"""Finding the interleaved grouped convolutions of a model that compress wrote.

A site is found by a record that names its nodes, from the digest in the model or from the rewrite that
was just made, and is believed only where those nodes are what the record says: their structure and
weights are read from the graph as it is now, after any fine-tuning, folding, merging and reordering.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnx_igpc.fitting.weights import IgpcWeights, igpc_matrix
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import NodeHolder
from onnx_igpc.graph.view import GraphView, NodeRef
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.permutations import compose_gathers
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.tree import SiteReport
from onnx_igpc.sites.recognition import LINEAR, NotRecognisedError, Structure, read_structure
from onnx_igpc.sites.rewrite import Rewritten


@dataclass(frozen=True)
class SiteRecord:
    """What is known of a rewritten site: its nodes by name, what it reads, its layout as planned."""

    name: str
    in_channels: int | None
    out_channels: int | None
    input: str
    nodes: tuple[str, ...]
    layout: GroupLayout | None

    @classmethod
    def of(cls, site: SiteReport) -> SiteRecord:
        """As the report, or the digest, has it."""
        channels = site.in_channels, site.out_channels
        return cls(site.name, *channels, site.input, tuple(site.nodes), site.layout)

    @classmethod
    def of_rewritten(cls, done: Rewritten) -> SiteRecord:
        """As a rewrite has just made it."""
        site = done.site
        channels = site.in_channels, site.out_channels
        return cls(site.name, *channels, done.input, done.nodes, done.layout)


@dataclass
class RewrittenModel(OpenModel):
    """A model with the records of its rewritten sites, which need no digest then."""

    records: tuple[SiteRecord, ...] = ()

    @classmethod
    def of(cls, model: OpenModel, records: Iterable[SiteRecord]) -> RewrittenModel:
        return cls(model.proto, model.data, model.path, tuple(records))


def records_of(model: OpenModel) -> tuple[SiteRecord, ...]:
    """The records that the model holds, or else those of its digest.

    Raises:
        ModelError: the digest cannot be read.
    """
    if isinstance(model, RewrittenModel):
        return model.records
    digest = read_digest(model.proto)
    return tuple(SiteRecord.of(site) for site in digest.rewritten) if digest else ()


@dataclass(frozen=True, eq=False)
class IgpcSubgraph(Structure):
    """One site as it stands in the file.

    ``name`` is the site's in the digest (the original Conv's); in the paper's form, where BatchNorm
    and activation stand between the stages, each stage is a subgraph of its own and ``/K`` or
    ``/L`` follows the name. ``nodes`` are the names of its nodes in the order of the graph, all of them
    in ``holder``.
    """

    name: str
    nodes: tuple[str, ...]
    holder: NodeHolder

    def matrix(self) -> np.ndarray:
        """M of x -> M x + b, float64 of shape (F, C)."""
        return igpc_matrix(self.layout, IgpcWeights(self.k, self.l))

    def attribute(self, name: str) -> Any:
        """The value of an attribute of K, ``None`` where it has none of that name."""
        for entry in self.conv_attributes:
            if entry.name == name:
                return onnx.helper.get_attribute_value(entry)
        return None

    @property
    def moves_nothing(self) -> bool:
        """Whether every output pixel comes from the input pixel in the same place."""
        strides, pads = self.attribute("strides") or [], self.attribute("pads") or []
        return all(step == 1 for step in strides) and not any(pads)


def find_subgraphs(opened: OpenModel) -> tuple[list[IgpcSubgraph], list[tuple[str, str]]]:
    """The sites that the model's records name: those that are recognised, and the others with the reason.

    A model without records has none. Sites that are not recognised work as they are; they only
    cannot be written in another way.

    Raises:
        ModelError: the digest cannot be read.
    """
    return subgraphs_in(GraphView(opened))


def subgraphs_in(view: GraphView) -> tuple[list[IgpcSubgraph], list[tuple[str, str]]]:
    """As :func:`find_subgraphs`, in a view of the model."""
    records = records_of(view.model)
    if not records:
        return [], []
    by_name = nodes_by_name(view)
    found: list[IgpcSubgraph] = []
    unknown: list[tuple[str, str]] = []
    for site in records:
        try:
            found += site_subgraphs(view, site, by_name)
        except NotRecognisedError as reason:
            unknown.append((site.name, str(reason)))
    return found, unknown


def nodes_by_name(view: GraphView) -> dict[str, list[NodeRef]]:
    """The nodes of a model by their names, which need not be unique."""
    by_name: dict[str, list[NodeRef]] = {}
    for ref in view.nodes:
        by_name.setdefault(ref.proto.name, []).append(ref)
    return by_name


def site_subgraphs(
    view: GraphView, site: SiteRecord, by_name: Mapping[str, list[NodeRef]]
) -> list[IgpcSubgraph]:
    """One rewritten site as it stands in the file; in the paper's form its stages.

    Raises:
        NotRecognisedError: its nodes are not what the record says.
    """
    refs: list[NodeRef] = []
    for name in site.nodes:
        known = by_name.get(name, [])
        if len(known) > 1:
            raise NotRecognisedError(f"several nodes are named '{name}'")
        refs += known  # a Gather that another one was merged with is gone
    if not any(ref.op_type == "Conv" for ref in refs):
        raise NotRecognisedError("the nodes that the digest names are not in the model")
    if len({id(ref.scope.holder) for ref in refs}) > 1:
        raise NotRecognisedError("its nodes lie in different graphs")
    refs.sort(key=lambda ref: ref.index)
    if all(ref.op_type in LINEAR for ref in refs):
        stated = (site.input, site.in_channels)
        return [_subgraph(view, site, site.name, refs, stated)]
    return _stages(view, site, refs)


def _stages(view: GraphView, site: SiteRecord, refs: list[NodeRef]) -> list[IgpcSubgraph]:
    """K and L of the paper's form, each by itself: what lies between is not linear."""
    linear = [ref for ref in refs if ref.op_type in LINEAR and ref.op_type != "Add"]
    parts = [part for part in _connected(linear) if any(ref.op_type == "Conv" for ref in part)]
    if len(parts) > 2:
        raise NotRecognisedError(f"it has {len(parts)} stages where K and L are expected")
    found = []
    stated: tuple[str, int | None] = (site.input, site.in_channels)
    for label, part in zip("KL", parts, strict=False):
        found.append(_subgraph(view, site, f"{site.name}/{label}", part, stated))
        stated = ("", found[0].layout.out_channels)
    return found


def _connected(refs: list[NodeRef]) -> list[list[NodeRef]]:
    """The nodes that are joined by tensors that one of them makes, in the order of the graph."""
    parts: list[list[NodeRef]] = []
    for ref in refs:
        reads = set(ref.proto.input)
        joined = [p for p in parts if any(reads & {*each.proto.output} for each in p)]
        siblings = [
            p
            for p in parts
            if p not in joined and any(each.proto.input[0] == ref.proto.input[0] for each in p)
        ]
        merged = [each for part in (*joined, *siblings) for each in part]
        parts = [p for p in parts if p not in joined and p not in siblings]
        parts.append([*merged, ref])
    for part in parts:
        part.sort(key=lambda ref: ref.index)
    return sorted(parts, key=lambda part: part[0].index)


def _subgraph(
    view: GraphView,
    site: SiteRecord,
    name: str,
    refs: Sequence[NodeRef],
    stated: tuple[str, int | None],
) -> IgpcSubgraph:
    structure = read_structure(view, list(refs), stated)
    layout = _as_recorded(structure.layout, site) or structure.layout
    if name == site.name and layout.out_channels != site.out_channels:
        raise NotRecognisedError(
            f"it makes {layout.out_channels} filters, where the digest says {site.out_channels}"
        )
    return IgpcSubgraph(
        **{**vars(structure), "layout": layout},
        name=name,
        nodes=tuple(ref.proto.name for ref in structure.refs),
        holder=structure.refs[0].scope.holder,
    )


def _as_recorded(found: GroupLayout, site: SiteRecord) -> GroupLayout | None:
    """The layout on record, if what was found in the graph is just that."""
    stated = site.layout
    if stated is None:
        return None
    return stated if _signature(stated) == _signature(found) else None


def _signature(layout: GroupLayout) -> tuple[object, ...]:
    """Equal for layouts with equal groups, whether channels move in the interleave or in L."""
    parts: list[object] = [layout.output_interleave, layout.l is not None and layout.has_sum]
    for stage, order in ((layout.k, None), (layout.l, layout.interleave)):
        for path in stage.paths if stage else ():
            inputs = path.inputs if order is None else compose_gathers(order, path.inputs)
            parts.append((path.groups, path.channels_per_group, path.filters_per_group, inputs))
        parts.append(stage is None)
    return tuple(parts)
