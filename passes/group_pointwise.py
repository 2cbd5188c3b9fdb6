"""Rewriting dense pointwise convolutions into interleaved grouped ones."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_igpc.data.progress import Progress
from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.graph.cost import FIXED_TENSORS_KEY, fixed_tensors
from onnx_igpc.graph.edit import GraphEdit
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import opset_version
from onnx_igpc.graph.view import GraphView, NodeRef
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.passes.base import Pass, PassResult
from onnx_igpc.sites.activations import Activation, match_activation
from onnx_igpc.sites.batch_norm import BatchNorm, following_batch_norm
from onnx_igpc.sites.find import FoundSites, Kept, Rewritable, SiteFilter, find_sites
from onnx_igpc.sites.igpc_nodes import Bias, IgpcNodes, add_weights
from onnx_igpc.sites.rewrite import (
    Form,
    Outcome,
    Planner,
    Rebiaser,
    Rewritten,
    SiteTensors,
    Weigher,
    site_identity,
)

# By weight and layout: the new tensors and weights, their error and the first site that has them.
Shared = dict[tuple[object, ...], tuple[SiteTensors, IgpcWeights, float | None, str | None]]


@dataclass
class GroupedSites(PassResult):
    """``outcomes`` has what became of every pointwise convolution, in the order of the graph."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def rewritten(self) -> list[Rewritten]:
        return [each for each in self.outcomes if isinstance(each, Rewritten)]


@dataclass
class _Work:
    """What one run of the pass shares between sites."""

    view: GraphView
    edit: GraphEdit
    readers: Counter[int]
    fixed: list[str]
    shared: Shared = field(default_factory=dict)


class GroupPointwise(Pass):
    """Rewrite each dense pointwise convolution as its layout says.

    Rules:

    * ``plan`` gives the layout of a site, ``weigh`` its weights and their relative error, ``rebias``
      a new bias for every site (linear form), those that share a weight included.
    * The sites are ``found``, in a view of the model as it is, or else looked for with ``site_filter``.
    * A site that :func:`~onnx_igpc.sites.find.find_sites` keeps, or whose layout is kept, stays.
    * Linear form: only the Conv is replaced, by y = K x + L P K x; the bias is added once, on L
      where there is one. A site whose K and L hold no fewer weights than the dense layer stays.
    * Paper form: a BatchNormalization and an activation that alone follow the Conv are replaced with
      it, by new ones after K and after L, and nothing follows the Add. BatchNorm starts anew (gamma
      and variance 1, beta and mean 0), since its statistics belonged to the dense layer.
    * The tensor that the replaced nodes made keeps its name; all inserted names are derived from the
      Conv's. Convolutions that share a weight share the new ones.
    """

    def __init__(
        self,
        plan: Planner,
        weigh: Weigher,
        form: Form = "linear",
        site_filter: SiteFilter | None = None,
        *,
        rebias: Rebiaser | None = None,
        found: FoundSites | None = None,
        on_site: Progress | None = None,
    ) -> None:
        self.plan = plan
        self.weigh = weigh
        self.form = form
        self.site_filter = site_filter or SiteFilter()
        self.rebias = rebias or (lambda site, layout, weights: None)
        self.found = found
        self.on_site = on_site or (lambda done, total, name: None)

    def run(self, model: OpenModel) -> GroupedSites:
        found = self.found or find_sites(GraphView(model), self.site_filter)
        readers = Counter(id(site.weight.root) for site in found.rewritable)
        work = _Work(found.view, GraphEdit(model), readers, sorted(fixed_tensors(model.proto)))
        result = GroupedSites()
        for done, site in enumerate(found.all):
            self.on_site(done, len(found.all), site.name)
            outcome = site if isinstance(site, Kept) else self._rewrite(work, site)
            result.outcomes.append(outcome)
            if isinstance(outcome, Kept):
                result.kept[site.name] = outcome.reason
            else:
                result.changed.append(site.name)
        result.add_removed(work.edit.apply())
        _write_fixed_tensors(model.proto, work.fixed)
        return result

    def _rewrite(self, work: _Work, site: Rewritable) -> Outcome:
        layout = self.plan(site)
        if layout.kept_reason is not None:
            return site.kept(layout.kept_reason)
        if self.form == "linear" and layout.weights >= layout.dense_weights:
            return site.kept("would not be smaller")
        view, edit, fixed = work.view, work.edit, work.fixed
        region = _Region.around(view, site, with_unit=self.form == "paper")
        found = self._weights(work, site, layout)
        if found is None:
            return site.kept(f"the weights of K and L would not be finite in {site.dtype}")
        tensors, weights, error, first = found
        opset = opset_version(view.model.proto, site.ref.scope)
        nodes = IgpcNodes(edit, site, layout, tensors, opset)
        if self.form == "paper":
            nodes.own_biases = True
            if region.norm or region.activation:
                nodes.unit = _PaperUnit(nodes, region, fixed).after
        bias = self._bias(site, layout, weights)
        source = site.ref.proto.input[0]
        nodes.write(source, bias, region.output)
        region.splice(edit, nodes.nodes())
        return Rewritten(
            site,
            layout,
            tensors,
            form=self.form,
            error=error,
            stages=nodes.stages,
            bias=bias.values if bias else None,
            strides=tuple(site.ref.attribute("strides", ())),
            pads=tuple(site.ref.attribute("pads", ())),
            input=source,
            output=region.output,
            nodes=nodes.node_names,
            replaced=tuple(ref.name for ref in region.refs),
            convolutions=tuple(nodes.convolutions),
            shares_weight_with=first,
            activation=region.activation.name if region.activation else None,
        )

    def _weights(
        self, work: _Work, site: Rewritable, layout: GroupLayout
    ) -> tuple[SiteTensors, IgpcWeights, float | None, str | None] | None:
        """The tensors and weights of K and L, their error, and the site they were first made for.

        ``None`` if the weights are too large for the site's dtype.
        """
        key = (*site_identity(site), layout)
        if key in work.shared:
            return work.shared[key]
        norm = following_batch_norm(work.view, site.ref)
        weights, error = self.weigh(site, layout, norm.factor if norm is not None else None)
        largest = np.finfo(site.dtype).max
        if not all(np.abs(each).max() <= largest for each in (*weights.k, *weights.l)):
            return None
        tensors = SiteTensors(site.weight.holder)
        add_weights(work.edit, tensors, site, weights)
        # The weights of all layers together may not fit into memory: only what is asked for again stays.
        if work.readers[id(site.weight.root)] > 1:
            work.shared[key] = (tensors, weights, error, site.name)
        return tensors, weights, error, None

    def _bias(self, site: Rewritable, layout: GroupLayout, weights: IgpcWeights) -> Bias | None:
        new = self.rebias(site, layout, weights)
        if new is not None:
            return Bias(new.astype(site.dtype))
        return Bias(site.bias.values(), site.ref.proto.input[2]) if site.bias else None


@dataclass(frozen=True, eq=False)
class _Region:
    """The nodes that are replaced together: the Conv, and in the paper's form what follows it."""

    site: Rewritable
    norm: BatchNorm | None
    activation: Activation | None

    @classmethod
    def around(cls, view: GraphView, site: Rewritable, with_unit: bool) -> _Region:
        if not with_unit:
            return cls(site, None, None)
        norm = following_batch_norm(view, site.ref)
        if norm is not None and norm.keeps_statistics:
            norm = None
        last = norm.ref.node.outputs[0] if norm else site.output_tensor
        activation = match_activation(view, last, site.dtype)
        if activation and activation.nodes[0].scope.holder is not site.ref.scope.holder:
            activation = None
        return cls(site, norm, activation)

    @property
    def refs(self) -> list[NodeRef]:
        refs = [self.site.ref]
        refs += [self.norm.ref] if self.norm else []
        refs += list(self.activation.nodes) if self.activation else []
        return refs

    @property
    def output(self) -> str:
        return str(self.refs[-1].proto.output[0])

    def splice(self, edit: GraphEdit, nodes: list[onnx.NodeProto]) -> None:
        """Put ``nodes`` where the last of the replaced nodes was: by then all constants are there."""
        for ref in self.refs[:-1]:
            edit.replace(ref, [])
        edit.replace(self.refs[-1], nodes)


@dataclass
class _PaperUnit:
    """BatchNorm and activation after K and after L, as the papers have them."""

    writer: IgpcNodes
    region: _Region
    fixed: list[str]

    def after(self, x: str, label: str, output: str | None) -> str:
        """Append the unit behind ``x``; ``label`` is K or L, ``output`` what it is to make."""
        norm, activation = self.region.norm, self.region.activation
        if norm is not None:
            x = self._batch_norm(norm, x, label, None if activation else output)
        if activation is not None:
            x = self._activation(activation, x, label, output)
        return x

    def _batch_norm(self, norm: BatchNorm, x: str, label: str, output: str | None) -> str:
        inputs = [x]
        starts = (("scale", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0))
        for index, (part, start) in enumerate(starts, start=1):
            values = np.full(len(norm.scale), start, dtype=norm.dtypes[index - 1])
            name = self.writer.constant(f"{label}_bn.{part}", values)
            if norm.ref.proto.input[index] in self.fixed:
                self.fixed.append(name)
            inputs.append(name)
        attributes = list(norm.ref.proto.attribute)
        return self.writer.node("BatchNormalization", inputs, f"{label}_bn", output, attributes)

    def _activation(self, activation: Activation, x: str, label: str, output: str | None) -> str:
        renamed = {activation.input.name: x}
        for ref in activation.nodes:
            made = ref.proto.output[0]
            renamed[made] = self.writer.node(
                ref.op_type,
                [renamed.get(name, name) for name in ref.proto.input],
                f"{label}_{ref.op_type}",
                output if made == activation.output.name else None,
                list(ref.proto.attribute),
            )
        return renamed[activation.output.name]


def _write_fixed_tensors(proto: onnx.ModelProto, names: list[str]) -> None:
    """Add the new tensors among ``names`` to the model's list, if it has one."""
    for entry in proto.metadata_props:
        if entry.key == FIXED_TENSORS_KEY:
            listed = json.loads(entry.value)
            new = [name for name in names if name not in listed]
            if new:
                entry.value = json.dumps(listed + new)
