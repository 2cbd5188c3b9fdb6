"""What onnxruntime's quantizer loses on the way, put back: whatever is still there looks as it did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx

from onnx_igpc.graph.traversal import scopes, sort_nodes, subgraphs

_MODEL_FIELDS = (
    *("producer_name", "producer_version", "domain", "model_version", "doc_string"),
    "metadata_props",
)
_GRAPH_FIELDS = ("name", "doc_string", "metadata_props")
_PART_FIELDS = ("doc_string", "metadata_props")
_STANDARD = ("", "ai.onnx")


def restore(
    original: onnx.ModelProto, quantized: onnx.ModelProto, named: frozenset[str]
) -> list[str]:
    """Give ``quantized`` back what ``original`` says of the model, the graph and all that is left of it.

    Inputs and outputs become those of the original to the byte; so do the entries of values and
    constants that are still there. ``named``: names of nodes that only the quantizer needed.

    Returns:
        What could not be kept, in sentences.
    """
    _copy_fields(original, quantized, _MODEL_FIELDS)
    _restore_graph(original.graph, quantized.graph, named)
    lost = _restore_functions(original, quantized)
    _restore_opsets(original, quantized)
    if original.training_info:
        lost.append("what the model says of its training is left out: its weights are integers now")
    return lost


def _restore_graph(
    original: onnx.GraphProto, graph: onnx.GraphProto, named: frozenset[str]
) -> None:
    stored = {tensor.name for tensor in (*original.initializer, *graph.initializer)}
    _replace(graph.input, [value for value in original.input if value.name not in stored])
    _replace(graph.output, original.output)
    _restore_parts(original, graph, named)


def _restore_parts(
    original: onnx.GraphProto, graph: onnx.GraphProto, named: frozenset[str]
) -> None:
    """A graph's own fields, its nodes, constants and values, and the graphs inside of it.

    The quantizer may leave a node behind one whose inner graphs read what it makes.
    """
    sort_nodes(graph)
    _copy_fields(original, graph, _GRAPH_FIELDS)
    tensors = {tensor.name: tensor for tensor in original.initializer}
    for tensor in graph.initializer:
        if tensor.name in tensors:
            _copy_fields(tensors[tensor.name], tensor, _PART_FIELDS)
    nodes = {node.name or node.output[0]: node for node in original.node}
    for node in graph.node:
        twin = nodes.get(node.output[0] if node.name in named else node.name)
        if twin is not None and twin.op_type == node.op_type:
            _copy_fields(twin, node, _PART_FIELDS)
            for (_, before), (_, after) in zip(subgraphs(twin), subgraphs(node), strict=True):
                _restore_parts(before, after, named)
        if node.name in named:
            node.name = ""
    made = {name for node in graph.node for name in node.output}
    made |= {tensor.name for tensor in graph.initializer}
    _replace(graph.value_info, [value for value in original.value_info if value.name in made])
    notes = [each for each in original.quantization_annotation if each.tensor_name in made]
    _replace(graph.quantization_annotation, notes)


def _restore_functions(original: onnx.ModelProto, quantized: onnx.ModelProto) -> list[str]:
    """The functions that are still called, as they were; onnxruntime puts others in place of their calls."""
    called = {
        (node.domain, node.op_type) for scope in scopes(quantized) for node in scope.holder.node
    }
    kept = [each for each in original.functions if (each.domain, each.name) in called]
    gone = [each.name for each in original.functions if (each.domain, each.name) not in called]
    _replace(quantized.functions, kept)
    return [f"functions put in the place of their calls: {', '.join(gone)}"] if gone else []


def _restore_opsets(original: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    """The domains that the original imports, and those that are used; the quantizer lists all it knows."""
    versions = {each.domain: each.version for each in quantized.opset_import}
    used = {node.domain for scope in scopes(quantized) for node in scope.holder.node}
    imports = []
    for entry in original.opset_import:
        version = entry.version
        if entry.domain in _STANDARD:
            version = max(version, versions.get("", versions.get("ai.onnx", version)))
        imports.append(onnx.helper.make_opsetid(entry.domain, version))
    known = {each.domain for each in imports}
    for domain in sorted(used - known - {*_STANDARD}):
        imports.append(onnx.helper.make_opsetid(domain, versions[domain]))
    _replace(quantized.opset_import, imports)


def _copy_fields(source: Any, target: Any, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(source, name)
        if isinstance(value, (str, int)):
            target.ClearField(name)
            if value:
                setattr(target, name, value)
        else:
            _replace(getattr(target, name), value)


def _replace(target: Any, values: Sequence[Any]) -> None:
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del target[:]
    target.extend(copies)
