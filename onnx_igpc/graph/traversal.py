"""Walking everything in a ModelProto: graphs inside graphs, function bodies, tensors.

All walks are iterative, so that nesting depth is limited by the file format, not by Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import TypeVar

import onnx
from google.protobuf.message import Message

NodeHolder = onnx.GraphProto | onnx.FunctionProto
_Message = TypeVar("_Message", bound=Message)


def copied(message: _Message) -> _Message:
    """A copy of a message and all in it."""
    copy: _Message = type(message)()
    copy.CopyFrom(message)
    return copy


@dataclass(frozen=True)
class Scope:
    """One list of nodes: the main graph, a sub-graph (If, Loop, Scan) or a function body.

    ``parents`` are the enclosing graphs from the inside out, whose values this scope can see.
    ``path`` says where the scope lies in words, empty for the main graph; no two scopes share one.
    """

    holder: NodeHolder
    parents: tuple[NodeHolder, ...] = ()
    path: str = ""

    @property
    def is_main(self) -> bool:
        return isinstance(self.holder, onnx.GraphProto) and not self.parents

    @property
    def in_function(self) -> bool:
        outermost = self.parents[-1] if self.parents else self.holder
        return isinstance(outermost, onnx.FunctionProto)


def subgraph_path(outer: str, node: onnx.NodeProto, attribute: str) -> str:
    """The path of a sub-graph: by the node's first output, since names of nodes may repeat."""
    where = next((name for name in node.output if name), node.name or node.op_type)
    return f"{outer}/{where}.{attribute}".lstrip("/")


def function_path(function: onnx.FunctionProto) -> str:
    """The path of a function body: functions of one name may lie in several domains."""
    parts = (function.domain, function.name, function.overload)
    return f"function {'.'.join(part for part in parts if part)}"


def subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs that ``node`` holds as attributes, with the attribute's name."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            for index, graph in enumerate(attribute.graphs):
                yield f"{attribute.name}[{index}]", graph


def scopes(model: onnx.ModelProto) -> Iterator[Scope]:
    """Every list of nodes in the model: the main graph first, then what it holds, then functions."""
    pending = [Scope(model.graph)]
    pending.extend(Scope(function, path=function_path(function)) for function in model.functions)
    while pending:
        scope = pending.pop(0)
        yield scope
        inner = []
        for node in scope.holder.node:
            for attribute, graph in subgraphs(node):
                path = subgraph_path(scope.path, node, attribute)
                inner.append(Scope(graph, (scope.holder, *scope.parents), path))
        pending[0:0] = inner


def live_nodes(holder: NodeHolder) -> list[onnx.NodeProto]:
    """The nodes of a graph or function body that its outputs need, in order."""
    return _live(holder)[0]


def _live(holder: NodeHolder) -> tuple[list[onnx.NodeProto], set[str]]:
    """The needed nodes, and every name that they read, those of enclosing graphs among them."""
    if isinstance(holder, onnx.GraphProto):
        needed = {output.name for output in holder.output}
    else:
        needed = set(holder.output)
    live = []
    for node in reversed(holder.node):
        if needed.isdisjoint(node.output):
            continue
        live.append(node)
        needed.update(node.input)
        for _, graph in subgraphs(node):
            needed |= _live(graph)[1]
    needed.discard("")
    return live[::-1], needed


def sort_nodes(holder: NodeHolder) -> None:
    """Put the nodes of a graph or function body behind the nodes whose values they, or graphs in them, read."""
    nodes = list(holder.node)
    made = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    reads: dict[int, set[int]] = {}
    for number, node in enumerate(nodes):
        names = set(node.input).union(*(_live(graph)[1] for _, graph in subgraphs(node)))
        reads[number] = {made[name] for name in names if name in made} - {number}
    if any(number < read for number in reads for read in reads[number]):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del holder.node[:]
        holder.node.extend(copies[number] for number in TopologicalSorter(reads).static_order())


def bind_attributes(
    function: onnx.FunctionProto, attributes: Mapping[str, onnx.AttributeProto]
) -> onnx.FunctionProto:
    """The body for one call: references to the function's attributes replaced by their values."""
    body = copied(function)
    pending = list(body.node)
    while pending:
        node = pending.pop()
        for _, graph in subgraphs(node):
            pending.extend(graph.node)
        if not any(attribute.ref_attr_name for attribute in node.attribute):
            continue
        bound_attributes = []
        for attribute in node.attribute:
            source = attributes.get(attribute.ref_attr_name, attribute)
            if source is attribute and attribute.ref_attr_name:
                continue  # left out by the caller and without a default
            value = copied(source)
            value.name = attribute.name
            bound_attributes.append(value)
        del node.attribute[:]
        node.attribute.extend(bound_attributes)
    return body


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that holds data: initializers, sparse initializers and node attributes."""
    graphs = [scope.holder for scope in scopes(model)]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    for holder in graphs:
        if isinstance(holder, onnx.GraphProto):
            yield from holder.initializer
            for sparse in holder.sparse_initializer:
                yield sparse.values
                yield sparse.indices
        for node in holder.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("sparse_tensor"):
                    yield attribute.sparse_tensor.values
                    yield attribute.sparse_tensor.indices


def all_names(model: onnx.ModelProto) -> set[str]:
    """Every name of a node, value or initializer anywhere in the model."""
    names: set[str] = set()
    for scope in scopes(model):
        holder = scope.holder
        for node in holder.node:
            names.add(node.name)
            names.update(node.input)
            names.update(node.output)
        if isinstance(holder, onnx.GraphProto):
            names.update(value.name for value in holder.input)
            names.update(value.name for value in holder.output)
            names.update(value.name for value in holder.value_info)
            names.update(tensor.name for tensor in holder.initializer)
            names.update(sparse.values.name for sparse in holder.sparse_initializer)
        else:
            names.update(holder.input)
            names.update(holder.output)
    names.discard("")
    return names


def opset_version(model: onnx.ModelProto, scope: Scope | None = None) -> int:
    """The version of the default operator set that ``scope`` (the main graph if none) uses."""
    imports = list(model.opset_import)
    if scope is not None and scope.in_function:
        outermost = scope.parents[-1] if scope.parents else scope.holder
        assert isinstance(outermost, onnx.FunctionProto)
        imports = list(outermost.opset_import) or imports
    for entry in imports:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    return 1
