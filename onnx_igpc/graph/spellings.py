"""Spellings that runtimes accept and onnx.checker does not, brought into the one that both read."""

from __future__ import annotations

import onnx

from onnx_igpc.graph.traversal import scopes

_STANDARD = "ai.onnx"
_GRAPH_NAME = "graph"


def settle_spellings(model: onnx.ModelProto) -> None:
    """Write the standard domain as ``""`` throughout, and name graphs that have no name, in place.

    ``ai.onnx`` is another name of the domain ``""``, and everything that looks for an operator
    would have to know both. Where a model imports both, and in different versions, nothing is done to
    the imports: which one holds is for the checker to say.
    """
    for scope in scopes(model):
        for node in scope.holder.node:
            if node.domain == _STANDARD:
                node.ClearField("domain")
        if isinstance(scope.holder, onnx.GraphProto) and not scope.holder.name:
            scope.holder.name = _GRAPH_NAME
    for owner in (model, *model.functions):
        _settle_imports(owner)


def _settle_imports(owner: onnx.ModelProto | onnx.FunctionProto) -> None:
    versions = {entry.version for entry in owner.opset_import if entry.domain in ("", _STANDARD)}
    if len(versions) != 1:
        return
    others = [entry for entry in owner.opset_import if entry.domain not in ("", _STANDARD)]
    settled = [onnx.helper.make_opsetid("", versions.pop()), *others]
    if len(settled) < len(owner.opset_import) or any(
        entry.domain == _STANDARD for entry in owner.opset_import
    ):
        del owner.opset_import[:]
        owner.opset_import.extend(settled)
