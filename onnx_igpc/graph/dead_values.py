"""Removing what an edit left without a reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import onnx

from onnx_igpc.graph.traversal import NodeHolder, Scope, scopes

# A value: the id of the graph or function that defines it, and its name.
OwnedName = tuple[int, str]


@dataclass
class Removed:
    """What was removed: nodes and then initializers in ``names``, ``inputs`` of the graph that were
    the entries of such initializers (older exporters list weights as inputs)."""

    names: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)


def remove_dead(
    model: onnx.ModelProto, lost: Iterable[str], unread: Collection[tuple[str, str]] = frozenset()
) -> Removed:
    """Remove values that lost their last reader, and what only they were made from.

    * Only the values named in ``lost``, and what becomes dead with them, are looked at: what was dead
      before is not ours to remove. Several scopes can use a name; ``unread`` are the
      :func:`unread_values` of the model before it was changed, to tell such apart.
    * A value is alive if a node that sees it, in a sub-graph too, a graph output or a function output
      reads it.
    * An initializer that is removed loses its input entry, its value_info and its quantization
      annotation too.
    * A node is removed when all its outputs are dead.
    """
    found = list(scopes(model))
    readers = _count_readers(found)
    producers = {
        (id(scope.holder), name): (scope, node)
        for scope in found
        for node in scope.holder.node
        for name in node.output
        if name
    }
    dead: set[OwnedName] = set()
    nodes: list[tuple[NodeHolder, onnx.NodeProto]] = []
    pending = [
        (id(scope.holder), name)
        for name in sorted({*lost} - {""})
        for scope in found
        if (scope.path, name) not in unread
    ]
    visible = _Visible(found)
    while pending:
        value = pending.pop(0)
        if value in dead or readers[value] > 0:
            continue
        if value not in producers:
            dead.add(value)
            continue
        scope, node = producers[value]
        outputs = [(id(scope.holder), name) for name in node.output]
        if any(readers[other] > 0 for other in outputs):
            continue
        nodes.append((scope.holder, node))
        dead.update(outputs)
        for name in node.input:
            read = visible.value(scope, name)
            readers[read] -= 1
            pending.append(read)
    removed = Removed([node.name or node.output[0] for _, node in nodes])
    _remove_nodes(nodes)
    _remove_tensors(found, dead, removed)
    return removed


def _remove_tensors(found: list[Scope], dead: set[OwnedName], removed: Removed) -> None:
    for scope in found:
        holder = scope.holder
        names = {name for owner, name in dead if owner == id(holder)}
        _delete(holder.value_info, lambda entry, names=names: entry.name in names)
        if not isinstance(holder, onnx.GraphProto):
            continue
        gone = {tensor.name for tensor in holder.initializer if tensor.name in names}
        removed.names += sorted(gone)
        removed.inputs += [entry.name for entry in holder.input if entry.name in gone]
        _delete(holder.initializer, lambda entry, gone=gone: entry.name in gone)
        _delete(holder.input, lambda entry, gone=gone: entry.name in gone)
        _delete(
            holder.quantization_annotation,
            lambda entry, names=names: entry.tensor_name in names,
        )


def unread_values(model: onnx.ModelProto) -> frozenset[tuple[str, str]]:
    """The values that nothing reads, by the path of their scope and their name."""
    found = list(scopes(model))
    readers = _count_readers(found)
    return frozenset(
        (scope.path, name)
        for scope in found
        for name in _defined(scope.holder)
        if not readers[id(scope.holder), name]
    )


class _Visible:
    """Which value a name means in a scope: scopes that cannot see each other may share names."""

    def __init__(self, found: list[Scope]) -> None:
        self._defined = {id(scope.holder): _defined(scope.holder) for scope in found}

    def value(self, scope: Scope, name: str) -> OwnedName:
        for holder in (scope.holder, *scope.parents):
            if name in self._defined[id(holder)]:
                return id(holder), name
        return id(scope.holder), name


def _defined(holder: NodeHolder) -> set[str]:
    """The names of the inputs, initializers and nodes' outputs of one graph or function."""
    names = {name for node in holder.node for name in node.output}
    if isinstance(holder, onnx.FunctionProto):
        return names | set(holder.input)
    names |= {entry.name for entry in holder.input}
    names |= {tensor.name for tensor in holder.initializer}
    return names | {sparse.values.name for sparse in holder.sparse_initializer}


def _count_readers(found: list[Scope]) -> Counter[OwnedName]:
    """How often each value is read, by nodes and as an output, anywhere in the model."""
    readers: Counter[OwnedName] = Counter()
    visible = _Visible(found)
    for scope in found:
        holder = scope.holder
        for node in holder.node:
            readers.update(visible.value(scope, name) for name in node.input)
        if isinstance(holder, onnx.GraphProto):
            names = [entry.name for entry in holder.output]
        else:
            names = list(holder.output)
        readers.update(visible.value(scope, name) for name in names)
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
