"""What a constant is to a network, told from where it is used: a weight, or a number of the arithmetic around it.

Layers say themselves which of their inputs are weights. An operand of a sum or product is one where it lies
among the layers, and not in what is done to the inputs in front of them (means and deviations of
colours) or to the outputs behind them (grids, anchors, strides): there nothing is learned.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch

from onnx_igpc.torch_bridge.graph import Graph, PlannedNode
from onnx_igpc.torch_bridge.node import decode_attributes

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Sum"})
# Constants among the data of these are no weights: bounds, fillings, pictures of coordinates.
NOT_LEARNED = frozenset(
    {"Max", "Min", "Where", "Mean", "Mod", "GridSample", "Conv", "ConvTranspose", "Resize"}
)
# What a layer makes is still its output behind these, channel by channel.
_LINEAR = ARITHMETIC | {
    "AveragePool", "GlobalAveragePool", "ReduceMean", "Sqrt", "Reciprocal",
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Cast",
}  # fmt: skip
_FEWEST_COUNTED = 8


@dataclass
class Uses:
    """Where the values of a graph lie.

    Attributes:
        readers: Nodes that read a value, with the index of the input.
        varying: Values that depend on the inputs of the graph.
        behind: Those that a layer with weights has a part in.
        before: Values that a layer with weights takes as data, directly or through other nodes.
        open: Values that are linear in what a layer makes, which has no bias yet: the number of its
            channels, 0 where it is not known.
        products: Those that a MatMul makes: its bias can be another one for each row.
    """

    readers: dict[str, list[tuple[PlannedNode, int]]]
    varying: set[str]
    behind: set[str] = field(default_factory=set)
    before: set[str] = field(default_factory=set)
    open: dict[str, int] = field(default_factory=dict)
    products: set[str] = field(default_factory=set)

    def is_operand_learned(self, node: PlannedNode, value: torch.Tensor) -> bool:
        """Whether a constant operand of a sum or product is a weight: a scale, shift or embedding."""
        if value.numel() <= 1 or _is_mask(value) or is_counted(value):
            return False
        if not self.behind:
            return True  # without layers there is nothing else to learn
        if self.behind.isdisjoint(node.proto.input):
            return False  # preprocessing
        if node.proto.output[0] in self.before:
            return True
        # Behind the last layer: its own bias or scale, of one value for each channel.
        for name in node.proto.input:
            if name in self.products and value.shape[-1] == self.open.get(name):
                return True
            if self.open.get(name) in (0, value.numel()) and _is_vector(value):
                return True
        return False


def is_counted(value: torch.Tensor) -> bool:
    """Whether values are evenly spaced along every axis, as arange, linspace and meshgrid make them."""
    if value.numel() < _FEWEST_COUNTED or not value.is_floating_point():
        return False
    exact = value.double()
    if not bool(exact.isfinite().all()):
        return False
    tolerance = 1e-5 * float(exact.abs().max())
    varies = False
    for axis, size in enumerate(exact.shape):
        steps = exact.diff(dim=axis)
        if size > 2 and bool((steps.diff(dim=axis).abs() > tolerance).any()):
            return False
        varies = varies or (size > 2 and bool((steps.abs() > tolerance).any()))
    return varies


def _is_vector(value: torch.Tensor) -> bool:
    return sum(size > 1 for size in value.shape) == 1


def _is_mask(value: torch.Tensor) -> bool:
    """Whether a tensor of several axes says of each element one of two things, such as 0 and -inf."""
    if not bool(value.isfinite().all()):
        return True
    return sum(size > 1 for size in value.shape) > 1 and int(torch.unique(value).numel()) == 2


def find_uses(graph: Graph) -> Uses:
    """Go over the nodes of a graph once in their order and once against it."""
    readers: dict[str, list[tuple[PlannedNode, int]]] = defaultdict(list)
    uses = Uses(readers, {value.name for value in graph.inputs})
    for node in graph.nodes:
        for index, name in enumerate(node.proto.input):
            if name:
                readers[name].append((node, index))
        if uses.varying.intersection(node.proto.input) and not node.operator.gives_host:
            uses.varying.update(filter(None, node.proto.output))
    layers = {id(node) for node in graph.nodes if _is_layer(graph, node, uses.varying)}
    for node in graph.nodes:
        made = list(filter(None, node.proto.output))
        if id(node) in layers or any(name in uses.behind for name in _data(node)):
            uses.behind.update(made)
        if id(node) in layers:
            if (
                len(node.proto.input) <= max(node.operator.inputs.weights)
                or node.operator.name == "MatMul"
            ):
                uses.open[made[0]] = _channels(graph, node)
            if node.operator.name == "MatMul":
                uses.products.add(made[0])
        else:
            _carry(graph, node, uses)
    for node in reversed(graph.nodes):
        if id(node) in layers or uses.before.intersection(node.proto.output):
            uses.before.update(name for name in _data(node) if name in uses.varying)
    return uses


def _carry(graph: Graph, node: PlannedNode, uses: Uses) -> None:
    """Say whether what a node makes is still a layer's output without a bias."""
    data = [name for name in node.proto.input if name in uses.varying]
    name = node.operator.name
    if not data:
        return
    if name == "Concat":
        counts = [uses.open.get(each) for each in node.proto.input]
        if all(counts):
            uses.open[node.proto.output[0]] = sum(count or 0 for count in counts)
        return
    if name not in _LINEAR:
        return
    operands = [graph.constants[each] for each in node.proto.input if each in graph.constants]
    if name in ("Add", "Sub", "Sum") and any(each.numel() > 1 for each in operands):
        return  # that is the bias
    # A division of two computed values normalizes: scale and shift behind it are its own.
    known = next((uses.open[each] for each in data if each in uses.open), None)
    if known is None and name == "Div" and len(data) == 2 and data[0] in uses.behind:
        known = 0
    if known is not None:
        uses.open[node.proto.output[0]] = known


def _data(node: PlannedNode) -> list[str]:
    """The inputs whose values flow into what a node makes; positions and bounds do not."""
    if node.operator.gives_host:
        return []
    return [
        name
        for index, name in enumerate(node.proto.input)
        if name and index not in node.operator.inputs.untrained
    ]


def _is_layer(graph: Graph, node: PlannedNode, varying: set[str]) -> bool:
    """Whether a node has weights that are constants, and data that are not."""
    inputs = node.proto.input
    if not node.operator.inputs.weights or varying.isdisjoint(inputs):
        return False
    places = (0, 1) if node.operator.name == "MatMul" else node.operator.inputs.weights[:1]
    weights = [inputs[index] for index in places if index < len(inputs)]
    return any(
        name not in varying and not is_counted(graph.constants.get(name, torch.empty(0)))
        for name in weights
    )


def _channels(graph: Graph, node: PlannedNode) -> int:
    """The number of channels that a layer makes; 0 where its weight does not tell."""
    name, inputs = node.operator.name, node.proto.input
    first = inputs[0] in graph.constants
    weight = graph.constants.get(inputs[0] if name == "MatMul" and first else inputs[1])
    if weight is None or weight.dim() < 2:
        return 0
    if name == "Conv":
        return int(weight.shape[0])
    attributes = decode_attributes(node.proto)
    if name == "ConvTranspose":
        return int(weight.shape[1]) * int(attributes.get("group", 1))
    if name == "Gemm":
        return int(weight.shape[0 if attributes.get("transB", 0) else 1])
    if name == "MatMul":
        return int(weight.shape[-2 if first else -1])
    return 0
