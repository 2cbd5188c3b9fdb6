"""Removing what a rewrite left without a reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import onnx

from onnx_igpc.graph_walk import NodeHolder, scopes
from onnx_igpc.model_io import OpenModel
from onnx_igpc.passes.base import Pass, PassResult


class RemoveDead(Pass):
    """Remove values that lost their last reader, and what only they were made from.

    Rules:

    * Only the given values, and what becomes dead with them, are looked at: what was dead before is
      not ours to remove.
    * A value is alive if any node anywhere, a graph output or a function output reads its name.
    * An initializer that is removed loses its input entry (older exporters list weights as inputs),
      its value_info and its quantization annotation too; ``inputs_removed`` lists such inputs.
    * A node is removed when all its outputs are dead.
    """

    def __init__(self, orphans: Iterable[str]) -> None:
        self.orphans = set(orphans)
        self.inputs_removed: list[str] = []

    def run(self, model: OpenModel) -> PassResult:
        result = PassResult()
        readers = _count_readers(model.proto)
        producers = {
            name: (scope.holder, node)
            for scope in scopes(model.proto)
            for node in scope.holder.node
            for name in node.output
            if name
        }
        dead: set[str] = set()
        removed: list[tuple[NodeHolder, onnx.NodeProto]] = []
        pending = sorted(self.orphans)
        while pending:
            name = pending.pop(0)
            if name in dead or readers[name] > 0:
                continue
            if name in producers:
                holder, node = producers[name]
                if any(readers[other] > 0 for other in node.output):
                    continue
                removed.append((holder, node))
                dead.update(node.output)
                for other in node.input:
                    readers[other] -= 1
                    pending.append(other)
            else:
                dead.add(name)
        result.changed = [node.name or node.output[0] for _, node in removed]
        _remove_nodes(removed)
        result.changed += self._remove_tensors(model.proto, dead)
        return result

    def _remove_tensors(self, proto: onnx.ModelProto, dead: set[str]) -> list[str]:
        removed = []
        for scope in scopes(proto):
            graph = scope.holder
            if not isinstance(graph, onnx.GraphProto):
                continue
            gone = {tensor.name for tensor in graph.initializer if tensor.name in dead}
            removed += sorted(gone)
            self.inputs_removed += [entry.name for entry in graph.input if entry.name in gone]
            _delete(graph.initializer, lambda entry: entry.name in dead)
            _delete(graph.input, lambda entry, gone=gone: entry.name in gone)
            _delete(graph.value_info, lambda entry: entry.name in dead)
            _delete(graph.quantization_annotation, lambda entry: entry.tensor_name in dead)
        return removed


def _count_readers(proto: onnx.ModelProto) -> Counter[str]:
    """How often each name is read, by nodes and as an output, anywhere in the model."""
    readers: Counter[str] = Counter()
    for scope in scopes(proto):
        holder = scope.holder
        for node in holder.node:
            readers.update(node.input)
        if isinstance(holder, onnx.GraphProto):
            readers.update(entry.name for entry in holder.output)
        else:
            readers.update(holder.output)
    return readers


def _remove_nodes(removed: list[tuple[NodeHolder, onnx.NodeProto]]) -> None:
    by_holder: dict[int, tuple[NodeHolder, set[tuple[str, ...]]]] = {}
    for holder, node in removed:
        by_holder.setdefault(id(holder), (holder, set()))[1].add(tuple(node.output))
    for holder, outputs in by_holder.values():
        _delete(holder.node, lambda node, outputs=outputs: tuple(node.output) in outputs)


def _delete(entries, matches) -> None:  # type: ignore[no-untyped-def]
    """Delete the entries of a repeated field for which ``matches`` holds, leaving the others be."""
    for index in range(len(entries) - 1, -1, -1):
        if matches(entries[index]):
            del entries[index]
