"""What must be true of every rewrite: whatever the report does not list is byte-equal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx

from onnx_igpc.graph.cost import FIXED_TENSORS_KEY
from onnx_igpc.graph.traversal import NodeHolder, Scope, scopes, subgraphs
from onnx_igpc.report.digest import DIGEST_KEY
from onnx_igpc.report.tree import RewriteReport

_NEW = ("/igpc/", "/folded_", "/merged_indices", "/permuted")


def assert_untouched(
    before: onnx.ModelProto, after: onnx.ModelProto, report: RewriteReport
) -> None:
    """Compare two models field by field, leaving out what ``report`` lists."""
    listed = _Listed(before, report)
    pairs = zip(scopes(before), scopes(after), strict=True)
    for old, new in pairs:
        assert old.path == new.path
        _compare_scope(old, new, listed)
    _compare_metadata(before, after)
    old_rest, new_rest = _copy(before), _copy(after)
    for model in (old_rest, new_rest):
        for field in ("graph", "functions", "metadata_props"):
            model.ClearField(field)
    assert old_rest.SerializeToString() == new_rest.SerializeToString()


class _Listed:
    """What the report says was changed, by name."""

    def __init__(self, before: onnx.ModelProto, report: RewriteReport) -> None:
        self.sites = {site.name for site in report.rewritten}
        self.replaced = {name for site in report.rewritten for name in site.replaced}
        self.inserted = {name for site in report.rewritten for name in site.nodes}
        self.removed = {*report.removed}
        self.permuted = set(report.permuted)
        self.inputs_removed = set(report.inputs_removed)
        self.existing = {_label(node) for scope in scopes(before) for node in scope.holder.node}
        self.folded: set[str] = set()
        for scope in scopes(before):
            makers = {name: node for node in scope.holder.node for name in node.output}
            for node in scope.holder.node:
                if _label(node) in report.folded and node.op_type == "BatchNormalization":
                    self.folded |= {_label(node), _label(makers[node.input[0]])}

    def allows(self, node: onnx.NodeProto, path: str) -> bool:
        """Whether a node of the original may be gone or different."""
        label = _label(node)
        if node.op_type == "Conv" and label in self.replaced and label not in self.folded:
            # Sites of one name in several scopes have the scope in theirs.
            return not self.sites.isdisjoint({label, f"{label}:{path}/{node.output[0]}"})
        listed = (self.removed, self.folded, self.replaced, self.permuted)
        return any(label in names for names in listed)

    def is_new(self, node: onnx.NodeProto) -> bool:
        """Whether a node of the result was made by the rewrite."""
        label = _label(node)
        derived = node.op_type in ("Constant", "Cast") and any(
            part in node.output[0] for part in _NEW
        )
        if label in self.existing:  # what an earlier run inserted is old now
            return label in self.folded or label in self.permuted
        return label in self.inserted or derived


def _compare_scope(old: Scope, new: Scope, listed: _Listed) -> None:
    # Nodes can share a name: what is allowed to be gone by its name may be there still.
    found = [_shallow(node) for node in new.holder.node if not listed.is_new(node)]
    rest = iter(found)
    current = next(rest, None)
    for node in old.holder.node:
        if _shallow(node) == current:
            current = next(rest, None)
        else:
            assert listed.allows(node, old.path), (
                f"{_label(node)} in {old.path or 'the main graph'}"
            )
    assert current is None, f"nodes in {new.path or 'the main graph'} that the report does not list"
    if isinstance(old.holder, onnx.GraphProto):
        assert isinstance(new.holder, onnx.GraphProto)
        _compare_graph_fields(old.holder, new.holder, listed)
    else:
        assert isinstance(new.holder, onnx.FunctionProto)
        gone = _values(old.holder) - _values(new.holder)
        kept_info = [each for each in old.holder.value_info if each.name not in gone]
        assert _bytes(new.holder.value_info) == _bytes(kept_info)
    assert _rest(new.holder) == _rest(old.holder)


def _compare_graph_fields(old: onnx.GraphProto, new: onnx.GraphProto, listed: _Listed) -> None:
    gone = _values(old) - _values(new)
    assert _bytes(new.input) == _bytes(
        entry for entry in old.input if entry.name not in listed.inputs_removed
    )
    assert _bytes(new.value_info) == _bytes(
        entry for entry in old.value_info if entry.name not in gone
    )
    assert _bytes(new.quantization_annotation) == _bytes(
        entry for entry in old.quantization_annotation if entry.tensor_name not in gone
    )
    original = {tensor.name: _bytes([tensor]) for tensor in old.initializer}
    fresh = [tensor for tensor in new.initializer if tensor.name not in original]
    assert all(any(part in tensor.name for part in _NEW) for tensor in fresh)
    stayed = [tensor for tensor in new.initializer if tensor.name in original]
    assert all(_bytes([tensor]) == original[tensor.name] for tensor in stayed)
    # In the old order; a name that is removed in one scope may be there still in another.
    names = [tensor.name for tensor in stayed]
    assert names == [name for name in original if name in set(names)]
    assert set(original) - set(names) <= listed.removed


def _values(holder: NodeHolder) -> set[str]:
    made = {name for node in holder.node for name in node.output}
    if isinstance(holder, onnx.GraphProto):
        made |= {entry.name for entry in holder.input}
        made |= {tensor.name for tensor in holder.initializer}
    return made


def _rest(holder: NodeHolder) -> bytes:
    """All other fields: names, doc strings, metadata, outputs, sparse initializers, attributes."""
    copy = type(holder)()
    copy.CopyFrom(holder)
    compared = ("node", "value_info", "initializer", "quantization_annotation")
    for field in (*compared, "input") if isinstance(copy, onnx.GraphProto) else compared[:2]:
        copy.ClearField(field)
    return bytes(copy.SerializeToString())


def _compare_metadata(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    own = (DIGEST_KEY, FIXED_TENSORS_KEY)
    assert _bytes(entry for entry in after.metadata_props if entry.key not in own) == _bytes(
        entry for entry in before.metadata_props if entry.key not in own
    )


def _shallow(node: onnx.NodeProto) -> bytes:
    """A node without its sub-graphs, which are compared as scopes of their own."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for _, graph in subgraphs(copy):
        graph.Clear()
    return bytes(copy.SerializeToString())


def _label(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _bytes(entries: Iterable[Any] | Sequence[Any]) -> list[bytes]:
    return [entry.SerializeToString() for entry in entries]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
