"""An ONNX graph made ready for conversion: one flat list of nodes the bridge knows how to run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import onnx
import onnx.inliner
import torch
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from onnx_igpc.errors import ModelError
from onnx_igpc.graph.traversal import copied
from onnx_igpc.torch_bridge.registry import Operator, find_operator
from onnx_igpc.torch_bridge.tensors import constant_value, to_tensor


@dataclass
class PlannedNode:
    """A node with the operator that will run it; ``proto`` is a private copy."""

    proto: NodeProto
    operator: Operator
    version: int

    @property
    def label(self) -> str:
        return self.proto.name or self.proto.output[0]


@dataclass
class Graph:
    """What conversion reads.

    Attributes:
        nodes: Live nodes in topological order, without Constant nodes.
        constants: Initializers and the values of Constant nodes, on the CPU.
        writable: Names in ``constants`` that the main graph of the model holds under this name.
        inputs: Graph inputs that are not initializers.
        outputs: Names of the graph outputs.
    """

    nodes: list[PlannedNode]
    constants: dict[str, torch.Tensor]
    writable: set[str]
    inputs: list[ValueInfoProto]
    outputs: list[str]


def read_graph(model: ModelProto) -> Graph:
    """The graph of a model with functions inlined, constant branches taken, dead nodes dropped.

    Raises:
        ModelError: Operators that are not registered (all of them in one message), or tensors that
            cannot be held.
    """
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise ModelError(
            f"sparse initializer {name!r} is not supported by the PyTorch bridge: "
            "store its values densely"
        )
    own_constants = {tensor.name for tensor in model.graph.initializer}
    own_constants |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    outputs = [value.name for value in model.graph.output]
    reader = _Reader(opsets(model), _read_for(model.graph, outputs))
    reader.read(model.graph)
    nodes = _live(reader.nodes, outputs)
    initializers = {tensor.name for tensor in model.graph.initializer}
    return Graph(
        nodes=reader.plan(nodes),
        constants=reader.constants,
        writable=own_constants & set(reader.constants),
        inputs=[value for value in model.graph.input if value.name not in initializers],
        outputs=outputs,
    )


def opsets(model: ModelProto) -> dict[str, int]:
    """The operator sets that a model imports: version by domain."""
    return {entry.domain or "": entry.version for entry in model.opset_import}


def operator_of(node: NodeProto, versions: dict[str, int]) -> tuple[Operator | None, int, str]:
    """The operator that runs a node, None where none does; its version; and what a message calls it."""
    version = _schema_version(node, versions)
    operator = find_operator(node.domain, node.op_type, version)
    if _has_subgraph(node):
        operator = None
    return operator, version, _title(node, version)


@dataclass
class _Reader:
    """needed: names that the outputs depend on; constants with other names are not read."""

    opsets: dict[str, int]
    needed: set[str]
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)

    def read(self, graph: GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name in self.needed:
                self.constants[tensor.name] = to_tensor(tensor)
        for node in graph.node:
            if is_constant(node):
                if node.output[0] not in self.needed:
                    continue
                self.constants[node.output[0]] = constant_value(node)
            elif node.op_type == "If" and node.input[0] in self.constants:
                self._take_branch(node)
            else:
                copy = copied(node)
                self.nodes.append(copy)

    def _take_branch(self, node: NodeProto) -> None:
        chosen = "then_branch" if bool(self.constants[node.input[0]]) else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == chosen)
        self.needed |= _read_for(branch, [value.name for value in branch.output])
        self.read(branch)
        for inner, outer in zip(branch.output, node.output, strict=True):
            if inner.name in self.constants:
                self.constants[outer] = self.constants[inner.name]
            else:
                self.nodes.append(onnx.helper.make_node("Identity", [inner.name], [outer]))

    def plan(self, nodes: list[NodeProto]) -> list[PlannedNode]:
        planned: list[PlannedNode] = []
        unknown = Counter[str]()
        example: dict[str, str] = {}
        for node in nodes:
            operator, version, title = operator_of(node, self.opsets)
            if operator is None:
                unknown[title] += 1
                example.setdefault(title, node.name or node.output[0])
            else:
                planned.append(PlannedNode(node, operator, version))
        if unknown:
            listed = ", ".join(
                f"{title} ({count} node{'s' * (count > 1)}, e.g. {example[title]!r})"
                for title, count in sorted(unknown.items())
            )
            raise ModelError(
                f"the PyTorch bridge cannot run these operators of the model: {listed}; "
                "onnx_igpc.torch_bridge.register_operator adds an operator"
            )
        return planned


def is_constant(node: NodeProto) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


def _schema_version(node: NodeProto, versions: dict[str, int]) -> int:
    domain = "" if node.domain == "ai.onnx" else node.domain
    opset = versions.get(domain, versions.get("ai.onnx", 1) if not domain else 1)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, domain)
    except onnx.defs.SchemaError:
        return opset
    return int(schema.since_version)


def _has_subgraph(node: NodeProto) -> bool:
    return any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute)


def _title(node: NodeProto, version: int) -> str:
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if node.op_type == "If":
        return f"{name} with a condition computed at run time"
    if find_operator(node.domain, node.op_type, version) is not None:
        return f"{name} with a graph inside"
    return f"{name} (version {version})"


def _read_for(graph: GraphProto, outputs: list[str]) -> set[str]:
    """The names of all values that outputs of a graph depend on, themselves included."""
    live = _live(list(graph.node), outputs)
    names = {name for node in live for name in (*node.input, *_captured(node))}
    return names.union(outputs)


def _live(nodes: list[NodeProto], outputs: list[str]) -> list[NodeProto]:
    """The nodes that the outputs depend on, in their order."""
    needed, live = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            live.append(node)
            needed.update(node.input)
            needed.update(_captured(node))
    return live[::-1]


def _captured(node: NodeProto) -> set[str]:
    """Names that sub-graphs of a node may read from around them."""
    names: set[str] = set()
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names.update(output.name for output in graph.output)
            for inner in graph.node:
                names.update(inner.input)
                names |= _captured(inner)
    return names
