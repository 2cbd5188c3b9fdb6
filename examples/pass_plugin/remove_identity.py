"""A pass for onnx-igpc that removes nodes which pass their input on as it is."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from onnx_igpc.passes import OpenModel, Pass, PassResult, opset_version, subgraphs

# Before this version, Dropout says by an attribute whether it trains.
_OPSET_DROPOUT_INFERS = 7


class RemoveIdentity(Pass):
    """Let the readers of an Identity or Dropout read its input, and remove the node.

    Rules:

    * The node lies in the main graph. A Dropout is removed from opset 7 on, where it does not train and
      nobody reads its mask.
    * A node whose output is an output of the graph, is read in a sub-graph or has a quantization
      annotation is left alone: those names are not ours to change.
    * ``changed`` names the removed nodes and the readers that have another input now.
    """

    def run(self, model: OpenModel) -> PassResult:
        graph = model.proto.graph
        result = PassResult()
        read_in_place = {output.name for output in graph.output}
        read_in_place |= {name for node in graph.node for name in _read_inside(node)}
        read_in_place |= {entry.tensor_name for entry in graph.quantization_annotation}
        read = read_in_place | {name for node in graph.node for name in node.input}
        source: dict[str, str] = {}
        for node in graph.node:
            if not _passes_on(node, opset_version(model.proto), read):
                continue
            if node.output[0] in read_in_place:
                result.kept[node.name] = f"{node.output[0]!r} is read under its name"
                continue
            # Nodes are in the order in which they run: what this one reads is known already.
            source[node.output[0]] = source.get(node.input[0], node.input[0])
            result.changed.append(node.name or node.output[0])
        for node in graph.node:
            if any(name in source for name in node.input) and node.output[0] not in source:
                node.input[:] = [source.get(name, name) for name in node.input]
                result.changed.append(node.name or node.output[0])
        _remove(graph.node, [index for index, n in enumerate(graph.node) if n.output[0] in source])
        gone = [index for index, each in enumerate(graph.value_info) if each.name in source]
        _remove(graph.value_info, gone)
        return result


def _passes_on(node: onnx.NodeProto, opset: int, read: set[str]) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Identity":
        return True
    mask = node.output[1] if len(node.output) > 1 else ""
    trains = len(node.input) > 2 and bool(node.input[2])
    return (
        node.op_type == "Dropout"
        and opset >= _OPSET_DROPOUT_INFERS
        and not trains
        and mask not in read
    )


def _read_inside(node: onnx.NodeProto) -> Iterator[str]:
    """The names that are read anywhere in the sub-graphs of a node."""
    for _, graph in subgraphs(node):
        yield from (output.name for output in graph.output)
        for inner in graph.node:
            yield from inner.input
            yield from _read_inside(inner)


def _remove(entries: object, indices: list[int]) -> None:
    for index in reversed(indices):
        del entries[index]  # type: ignore[attr-defined]
