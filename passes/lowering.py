"""What all lowerings have in common: a pass that writes sites down in another way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from onnx_igpc.graph.edit import GraphEdit
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import opset_version
from onnx_igpc.passes.base import Pass, PassResult
from onnx_igpc.sites.subgraph import IgpcSubgraph, find_subgraphs
from onnx_igpc.sites.writer import SharedConstants, SiteWriter


class Lowering(Pass):
    """Write sites down with other operators that compute the same.

    Run as a pass, it lowers every site that it applies to, or those named in ``sites``. The nodes of
    a site are replaced together, where the last of them was; the tensors that the site reads and
    makes keep their names.
    """

    label: str
    """The name by which it is chosen."""
    exact: bool = True
    """Whether stored weights are only moved, so that no rounding is added to the model's."""

    def __init__(self, sites: Collection[str] | None = None) -> None:
        self.sites = sites

    @abstractmethod
    def refusal(self, site: IgpcSubgraph, opset: int) -> str | None:
        """Why the lowering is not for this site; ``None`` if it is."""

    @abstractmethod
    def write(self, site: IgpcSubgraph, writer: SiteWriter) -> None:
        """Append nodes that make ``site.output`` of ``site.input``; none leaves the site as it is."""

    def run(self, model: OpenModel) -> PassResult:
        result = PassResult()
        found, unknown = find_subgraphs(model)
        result.kept.update(unknown)
        chosen: dict[str, Lowering] = {}
        for site in found:
            if self.sites is not None and site.name not in self.sites:
                continue
            reason = self.refusal(site, opset_version(model.proto, site.refs[0].scope))
            if reason is None:
                chosen[site.name] = self
            else:
                result.kept[site.name] = reason
        result.changed = [done.name for done in lower_sites(model, found, chosen) if done.nodes]
        return result


@dataclass(frozen=True)
class WrittenSite:
    """A site that was written: the name of the lowering and of the nodes, none if as it was."""

    name: str
    lowering: str
    nodes: tuple[str, ...]


def lower_sites(
    model: OpenModel, sites: Sequence[IgpcSubgraph], chosen: Mapping[str, Lowering]
) -> list[WrittenSite]:
    """Write the sites that ``chosen`` names."""
    edit = GraphEdit(model)
    constants = SharedConstants(edit)
    written = []
    for site in sites:
        lowering = chosen.get(site.name)
        if lowering is None:
            continue
        writer = SiteWriter(site, constants, opset_version(model.proto, site.refs[0].scope))
        lowering.write(site, writer)
        written.append(WrittenSite(site.name, lowering.label, writer.node_names))
        if not writer.node_names:
            continue
        for ref in site.refs[:-1]:
            edit.replace(ref, [])
        edit.replace(site.refs[-1], writer.nodes())
    edit.apply()
    return written
