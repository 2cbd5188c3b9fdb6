"""One site cut out of its model together with what decides how fast it runs there.

A site alone would be timed in the wrong company: onnxruntime keeps neighbouring convolutions in a
blocked layout and fuses sums and activations into them, so that the same nodes cost more or less
depending on what stands before and behind. The cut-out therefore has the elementwise nodes around
the site as they are, and in the place of each convolution beyond them a cheap one of the same kind
(dense, depthwise, grouped) which makes or reads the tensor in the same layout. What else reads a
tensor inside reads it here too, so that nothing is fused that cannot be fused in the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.graph.edit import IR_WITH_FREE_INITIALIZERS, Names
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.shape_inference import Trace
from onnx_igpc.graph.shape_values import Value
from onnx_igpc.graph.traversal import live_nodes
from onnx_igpc.sites.subgraph import IgpcSubgraph, RewrittenModel, SiteRecord, records_of

_IMAGE_RANK = 4
# Channels that a stand-in for a dense convolution reads and makes: few enough to cost next to
# nothing; onnxruntime reads fewer channels than a block as they are, without reordering them.
_FEW_READ = 4
_FEW_MADE = 16
# An activation exported as its parts has up to four nodes (x * Clip(x + 3) / 6).
_DEPTH = 5
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})
_ELEMENTWISE = frozenset(
    {
        "Add",
        "BatchNormalization",
        "Clip",
        "Div",
        "Elu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Mish",
        "Mul",
        "PRelu",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Sub",
        "Sum",
        "Tanh",
    }
)
# Operators behind which a tensor has the layout that it had before.
_KEEP_LAYOUT = _ELEMENTWISE | {"AveragePool", "Concat", "GlobalAveragePool", "MaxPool"}


@dataclass(frozen=True)
class Surroundings:
    """The main graph of a model: who makes and reads each tensor, and what is known of it."""

    opened: OpenModel
    producers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[onnx.NodeProto]]
    outputs: frozenset[str]
    values: Mapping[str, Value]
    stored: Mapping[str, TensorProto]
    site_outputs: frozenset[str]
    records: Mapping[str, SiteRecord]

    @classmethod
    def of(cls, opened: OpenModel, trace: Trace, subgraphs: list[IgpcSubgraph]) -> Surroundings:
        """``trace`` is of the same model, at the sizes that are to be timed."""
        graph = opened.proto.graph
        producers = {name: node for node in graph.node for name in node.output if name}
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in live_nodes(graph):
            for name in dict.fromkeys(node.input):
                readers.setdefault(name, []).append(node)
        values: dict[str, Value] = {}
        for traced in trace.nodes:
            values.update(
                (name, value)
                for name, value in zip(traced.node.input, traced.inputs, strict=False)
                if value is not None
            )
            values.update(zip(traced.node.output, traced.outputs, strict=False))
        inner = {name for sub in subgraphs for ref in sub.refs for name in ref.proto.output if name}
        return cls(
            opened,
            producers,
            readers,
            frozenset(output.name for output in graph.output),
            values,
            {tensor.name: tensor for tensor in graph.initializer},
            frozenset(inner),
            {record.name: record for record in records_of(opened)},
        )

    def constant(self, name: str) -> bool:
        """Whether a tensor does not depend on the model's inputs."""
        return name in self.stored or (name in self.values and self.values[name].constant)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor of floats; ``None`` for others and where it is not known."""
        value = self.values.get(name)
        if value is None or value.shape is None or value.type is None:
            return None
        return value.shape if value.type.tensor_type.elem_type in _FLOATS else None

    def element(self, name: str) -> int:
        known = self.values[name].type
        assert known is not None
        return int(known.tensor_type.elem_type)

    def convolution_before(self, name: str) -> onnx.NodeProto | None:
        """The Conv whose layout the tensor has: its producer, or one before layout-keeping nodes."""
        for _ in range(4 * _DEPTH):
            node = self.producers.get(name)
            if node is None or node.domain not in ("", "ai.onnx"):
                return None
            if node.op_type == "Conv":
                return node
            if node.op_type not in _KEEP_LAYOUT:
                return None
            moving = [each for each in node.input if each and not self.constant(each)]
            # Of a product with a gate for each channel, the image decides.
            moving.sort(key=lambda each: -np.prod(self.shape(each) or (0,)))
            if not moving:
                return None
            name = moving[0]
        return None


class UnknownShapeError(Exception):
    """A tensor at the edge of the cut-out whose shape is not known."""


def cut_out(surroundings: Surroundings, subgraph: IgpcSubgraph) -> RewrittenModel:
    """The site and its surroundings as a model that has the record of this site alone.

    The site's nodes and tensors keep their names. Inputs have the shapes of the trace.

    Raises:
        UnknownShapeError: a shape is not known, or the site does not lie in the main graph.
    """
    if subgraph.holder is not surroundings.opened.proto.graph:
        raise UnknownShapeError("it lies in a sub-graph or function")
    return _Cut(surroundings, subgraph).model()


@dataclass
class _Cut:
    """Collects the nodes of one cut-out."""

    around: Surroundings
    site: IgpcSubgraph
    taken: dict[str, onnx.NodeProto] = field(default_factory=dict)
    before: list[onnx.NodeProto] = field(default_factory=list)
    behind: list[onnx.NodeProto] = field(default_factory=list)
    inputs: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    outputs: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    constants: list[TensorProto] = field(default_factory=list)

    def model(self) -> RewrittenModel:
        self.names = Names(self.around.opened.proto)
        self.generator = np.random.default_rng(0)
        self.boundary: set[str] = set()
        for ref in self.site.refs:
            self._take(ref.proto)
        self._backwards(self.site.input, 0)
        self._forwards(self.site.output, 0, joined=False)
        for name in sorted(self.boundary):
            self._begin(name)
        self._end()
        return self._build()

    def _take(self, node: onnx.NodeProto) -> None:
        self.taken[node.output[0]] = node

    def _fits(self, node: onnx.NodeProto) -> bool:
        """Whether the node is elementwise on tensors of floats whose shapes are known."""
        if node.op_type not in _ELEMENTWISE or node.domain not in ("", "ai.onnx"):
            return False
        if sum(1 for name in node.output if name) != 1 or self.around.shape(node.output[0]) is None:
            return False
        return all(
            self.around.constant(name) or self.around.shape(name) is not None
            for name in node.input
            if name
        )

    def _moving(self, node: onnx.NodeProto) -> list[str]:
        return [name for name in node.input if name and not self.around.constant(name)]

    def _backwards(self, name: str, depth: int) -> None:
        """Take the elementwise nodes that make ``name``."""
        if any(name in node.output for node in self.taken.values()):
            return
        node = self.around.producers.get(name)
        if (
            node is None
            or depth >= _DEPTH
            or name in self.around.site_outputs
            or not self._fits(node)
        ):
            self.boundary.add(name)
            return
        self._take(node)
        for source in self._moving(node):
            self._backwards(source, depth + 1)

    def _forwards(self, name: str, depth: int, joined: bool) -> None:
        """Take the elementwise nodes that read ``name``; one sum with another branch at most."""
        for node in self.around.readers.get(name, []):
            if node.output[0] in self.taken or depth >= _DEPTH or not self._fits(node):
                continue
            others = [each for each in self._moving(node) if not self._made_inside(each)]
            if others and joined:
                continue
            self._take(node)
            self.boundary.update(others)
            self._forwards(node.output[0], depth + 1, joined or bool(others))

    def _made_inside(self, name: str) -> bool:
        return any(name in node.output for node in self.taken.values())

    def _begin(self, name: str) -> None:
        """What makes a tensor at the edge: an input, behind a stand-in where a Conv makes it."""
        if self._made_inside(name):
            return
        shape = self.around.shape(name)
        if shape is None:
            raise UnknownShapeError(f"the shape of {name!r} is not known")
        element = self.around.element(name)
        conv = self.around.convolution_before(name)
        if conv is None or len(shape) != _IMAGE_RANK:
            self.inputs[name] = (element, shape)
            return
        source = self.names.unique(f"{name}/from")
        groups, width = self._kind(conv, shape[1], name)
        read = groups * width
        self.inputs[source] = (element, (shape[0], read, *shape[2:]))
        self.before.append(self._conv(source, name, (shape[1], width), groups, element))

    def _kind(self, conv: onnx.NodeProto, channels: int, name: str) -> tuple[int, int]:
        """(groups, channels per group) of a stand-in that makes ``channels`` in conv's layout."""
        if name in self.around.site_outputs:
            return 1, _FEW_READ
        groups = next((a.i for a in conv.attribute if a.name == "group"), 1)
        weight = self.around.values.get(conv.input[1])
        width = weight.shape[1] if weight is not None and weight.shape else 1
        if groups == 1 or channels % groups:
            return 1, _FEW_READ
        return groups, width

    def _end(self) -> None:
        """Let every tensor that is read outside be read here: by a Conv where one reads it."""
        for node in list(self.taken.values()):
            for name in node.output:
                if not name:
                    continue
                outside = [
                    reader
                    for reader in self.around.readers.get(name, [])
                    if reader.output[0] not in self.taken
                ]
                if outside or name in self.around.outputs:
                    self._read(name, outside)

    def _read(self, name: str, readers: list[onnx.NodeProto]) -> None:
        shape = self.around.shape(name)
        if shape is None:
            raise UnknownShapeError(f"the shape of {name!r} is not known")
        element = self.around.element(name)
        kept = [r for r in readers if r.op_type in _KEEP_LAYOUT or r.op_type == "Conv"]
        if len(shape) != _IMAGE_RANK or not kept:
            self.outputs[name] = element, shape
            return
        read, channels = name, shape[1]
        conv = next((r for r in kept if r.op_type == "Conv"), None)
        if conv is not None:
            read = self.names.unique(f"{name}/read")
            sizes, groups = (_FEW_MADE, channels), 1
            if self._is_depthwise(conv, channels):
                sizes, groups = (channels, 1), channels
            channels = sizes[0]
            self.behind.append(self._conv(name, read, sizes, groups, element))
        mean = self.names.unique(f"{name}/mean")
        self.behind.append(
            helper.make_node("GlobalAveragePool", [read], [mean], name=self.names.unique(mean))
        )
        self.outputs[mean] = element, (shape[0], channels, 1, 1)

    def _is_depthwise(self, conv: onnx.NodeProto, channels: int) -> bool:
        groups = next((a.i for a in conv.attribute if a.name == "group"), 1)
        return groups == channels > 1 and conv.output[0] not in self.around.site_outputs

    def _conv(
        self, source: str, target: str, sizes: tuple[int, int], groups: int, element: int
    ) -> onnx.NodeProto:
        """A 1x1 convolution with random weights of shape (filters, channels per group)."""
        dtype = helper.tensor_dtype_to_np_dtype(element)
        values = self.generator.standard_normal((*sizes, 1, 1)) / np.sqrt(sizes[1])
        weight = self.names.unique(f"{target}/weight")
        bias = self.names.unique(f"{target}/bias")
        self.constants.append(numpy_helper.from_array(values.astype(dtype), weight))
        self.constants.append(numpy_helper.from_array(np.zeros(sizes[0], dtype), bias))
        return helper.make_node(
            "Conv",
            [source, weight, bias],
            [target],
            name=self.names.unique(f"{target}/conv"),
            group=groups,
            kernel_shape=[1, 1],
        )

    def _build(self) -> RewrittenModel:
        proto = self.around.opened.proto
        order = {node.output[0]: index for index, node in enumerate(proto.graph.node)}
        needed = {**self.taken}
        stored: dict[str, TensorProto] = {}
        pending = [name for node in self.taken.values() for name in node.input if name]
        while pending:
            name = pending.pop()
            if name in stored or not self.around.constant(name):
                continue
            if name in self.around.stored:
                stored[name] = self._copied(name)
                continue
            maker = self.around.producers[name]
            needed[maker.output[0]] = maker
            pending += [each for each in maker.input if each]
        nodes = sorted(needed.values(), key=lambda node: order[node.output[0]])
        graph = helper.make_graph(
            [*self.before, *nodes, *self.behind],
            "site",
            [helper.make_tensor_value_info(n, e, s) for n, (e, s) in self.inputs.items()],
            [helper.make_tensor_value_info(n, e, s) for n, (e, s) in self.outputs.items()],
            [*stored.values(), *self.constants],
        )
        model = helper.make_model(
            graph,
            opset_imports=[each for each in proto.opset_import if each.domain in ("", "ai.onnx")],
            ir_version=max(IR_WITH_FREE_INITIALIZERS, int(proto.ir_version)),
        )
        return RewrittenModel(model, records=(self._record(),))

    def _copied(self, name: str) -> TensorProto:
        tensor = self.around.stored[name]
        return numpy_helper.from_array(self.around.opened.array(tensor), name)

    def _record(self) -> SiteRecord:
        site, layout = self.site, self.site.layout
        channels = layout.in_channels, layout.out_channels
        known = self.around.records.get(site.name)
        return SiteRecord(site.name, *channels, "", site.nodes, known.layout if known else None)
