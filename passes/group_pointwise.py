"""Rewriting dense pointwise convolutions into interleaved grouped ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx

from onnx_igpc.activations import Activation, match_activation
from onnx_igpc.edit import GraphEdit, SubgraphBuilder
from onnx_igpc.fitting import IgpcWeights
from onnx_igpc.graph_view import GraphView, NodeRef
from onnx_igpc.graph_walk import opset_version
from onnx_igpc.igpc_nodes import IgpcNodes, SiteTensors, StageIo, add_weights
from onnx_igpc.layout import GroupLayout
from onnx_igpc.model_io import OpenModel
from onnx_igpc.passes.base import Pass, PassResult
from onnx_igpc.passes.fold_batch_norm import BatchNorm, following_batch_norm
from onnx_igpc.sites import PointwiseSite, SiteFilter, find_sites

Form = Literal["linear", "paper"]
Planner = Callable[[PointwiseSite], GroupLayout]
# Given the site, its layout and the scale that a following BatchNorm gives each filter.
Weigher = Callable[
    [PointwiseSite, GroupLayout, np.ndarray | None], tuple[IgpcWeights, float | None]
]
# Names of tensors that a model's builder does not mean to be trained (BatchNorm without gamma).
FIXED_TENSORS_KEY = "onnx_igpc.fixed_tensors"


@dataclass(frozen=True, eq=False)
class SiteRewrite:
    """What became of one site: kept with a reason, or rewritten, and then where everything is.

    ``stages`` has what K and L read and make; ``input`` and ``output`` are the tensors that the
    whole site reads and makes.
    """

    site: PointwiseSite
    kept_reason: str | None = None
    layout: GroupLayout | None = None
    error: float | None = None
    tensors: SiteTensors | None = None
    stages: dict[str, StageIo] = field(default_factory=dict)
    input: str = ""
    output: str = ""
    nodes: tuple[str, ...] = ()
    shares_weight_with: str | None = None
    activation: str | None = None
    orphans: tuple[str, ...] = ()


class GroupPointwise(Pass):
    """Rewrite each dense pointwise convolution as its layout says.

    Rules:

    * ``plan`` gives the layout of a site, ``weigh`` its weights and their relative error.
    * A site that :func:`~onnx_igpc.sites.find_sites` keeps, or whose layout is kept, stays.
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
        on_site: Callable[[PointwiseSite], None] | None = None,
    ) -> None:
        self.plan = plan
        self.weigh = weigh
        self.form = form
        self.site_filter = site_filter or SiteFilter()
        self.on_site = on_site or (lambda site: None)
        self.rewrites: list[SiteRewrite] = []

    def run(self, model: OpenModel) -> PassResult:
        view, edit, result = GraphView(model), GraphEdit(model), PassResult()
        shared: dict[tuple[object, ...], SiteRewrite] = {}
        fixed = _fixed_tensors(model.proto)
        for site in find_sites(view, self.site_filter):
            self.on_site(site)
            rewrite = self._rewrite(view, edit, site, shared, fixed)
            self.rewrites.append(rewrite)
            if rewrite.kept_reason is not None:
                result.kept[site.name] = rewrite.kept_reason
                continue
            result.changed.append(site.name)
            result.orphans.update(rewrite.orphans)
        edit.apply()
        _write_fixed_tensors(model.proto, fixed)
        return result

    def _rewrite(
        self,
        view: GraphView,
        edit: GraphEdit,
        site: PointwiseSite,
        shared: dict[tuple[object, ...], SiteRewrite],
        fixed: list[str],
    ) -> SiteRewrite:
        if site.kept_reason is not None:
            return SiteRewrite(site, site.kept_reason)
        layout = self.plan(site)
        if layout.kept_reason is not None:
            return SiteRewrite(site, layout.kept_reason)
        if self.form == "linear" and layout.weights >= layout.dense_weights:
            return SiteRewrite(site, "would not be smaller")
        region = _Region.around(view, site, with_unit=self.form == "paper")
        base = site.ref.proto.name or site.ref.proto.output[0]
        assert site.weight is not None
        rank = len(site.weight.values().shape) - 2
        key = (id(site.weight.root), tuple(id(link) for link in site.weight.chain), layout)
        first = shared.get(key)
        if first is not None:
            assert first.tensors is not None
            tensors, error = first.tensors, first.error
        else:
            norm = following_batch_norm(view, site.ref)
            scale = norm.factor if norm is not None else None
            weights, error = self.weigh(site, layout, scale)
            tensors = SiteTensors(site.weight.holder)
            add_weights(edit, tensors, base, weights, site.weight_matrix().dtype, rank)
        builder = SubgraphBuilder(edit.names, site.ref.proto)
        nodes = IgpcNodes(
            edit, builder, layout, tensors, base, list(site.ref.proto.attribute), rank
        )
        if self.form == "paper":
            nodes.own_biases = True
            if region.norm or region.activation:
                nodes.unit = _PaperUnit(edit, builder, region, base, tensors, fixed).after
        bias = site.ref.proto.input[2] if site.has_bias else None
        bias_values = site.bias.values() if site.bias is not None else None
        nodes.write(site.ref.proto.input[0], bias, bias_values, region.output)
        region.splice(edit, builder.build(opset_version(view.model.proto, site.ref.scope)))
        rewrite = SiteRewrite(
            site,
            layout=layout,
            error=error,
            tensors=tensors,
            stages=nodes.stages,
            input=site.ref.proto.input[0],
            output=region.output,
            nodes=tuple(builder.node_names),
            shares_weight_with=first.site.name if first else None,
            activation=region.activation.name if region.activation else None,
            orphans=tuple(name for ref in region.refs for name in ref.proto.input if name),
        )
        shared.setdefault(key, rewrite)
        return rewrite


@dataclass(frozen=True, eq=False)
class _Region:
    """The nodes that are replaced together: the Conv, and in the paper's form what follows it."""

    site: PointwiseSite
    norm: BatchNorm | None
    activation: Activation | None

    @classmethod
    def around(cls, view: GraphView, site: PointwiseSite, with_unit: bool) -> _Region:
        if not with_unit:
            return cls(site, None, None)
        norm = following_batch_norm(view, site.ref)
        last = norm.ref.node.outputs[0] if norm else site.output_tensor
        activation = match_activation(view, last)
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


class _PaperUnit:
    """BatchNorm and activation after K and after L, as the papers have them."""

    def __init__(
        self,
        edit: GraphEdit,
        builder: SubgraphBuilder,
        region: _Region,
        base: str,
        tensors: SiteTensors,
        fixed: list[str],
    ) -> None:
        self.edit = edit
        self.builder = builder
        self.region = region
        self.base = base
        self.tensors = tensors
        self.fixed = fixed

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
            wanted = f"{self.base}/igpc/{label}_bn.{part}"
            name = self.edit.constant(self.tensors.holder, wanted, values)
            if norm.ref.proto.input[index] in self.fixed:
                self.fixed.append(name)
            inputs.append(name)
        return self.builder.add(
            "BatchNormalization",
            inputs,
            output or self.builder.fresh(f"{self.base}/igpc/{label}_bn_output"),
            self.builder.fresh(f"{self.base}/igpc/{label}_bn"),
            list(norm.ref.proto.attribute),
        )

    def _activation(self, activation: Activation, x: str, label: str, output: str | None) -> str:
        renamed = {activation.input.name: x}
        for ref in activation.nodes:
            made = ref.proto.output[0]
            wanted = f"{self.base}/igpc/{label}_{ref.op_type}"
            renamed[made] = self.builder.fresh(f"{wanted}_output")
            if output is not None and made == activation.output.name:
                renamed[made] = output
            self.builder.add(
                ref.op_type,
                [renamed.get(name, name) for name in ref.proto.input],
                renamed[made],
                self.builder.fresh(wanted),
                list(ref.proto.attribute),
            )
        return renamed[activation.output.name]


def _fixed_tensors(proto: onnx.ModelProto) -> list[str]:
    for entry in proto.metadata_props:
        if entry.key == FIXED_TENSORS_KEY:
            try:
                names = json.loads(entry.value)
            except ValueError:
                return []
            return [name for name in names if isinstance(name, str)]
    return []


def _write_fixed_tensors(proto: onnx.ModelProto, names: list[str]) -> None:
    for entry in proto.metadata_props:
        if entry.key == FIXED_TENSORS_KEY and names != _fixed_tensors(proto):
            entry.value = json.dumps(names)
