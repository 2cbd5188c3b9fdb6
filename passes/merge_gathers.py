"""Merging a Gather of channels with the Gather of channels before it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnx_igpc.graph.edit import GraphEdit
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import copied, scopes
from onnx_igpc.graph.view import GraphView, NodeRef
from onnx_igpc.layout.permutations import compose_gathers
from onnx_igpc.passes.base import Pass, PassResult


class MergeGathers(Pass):
    """Let a Gather read what the Gather before it reads.

    Rules:

    * Both gather along axis 1 with constant, one-dimensional, non-negative indices.
    * Only nodes named in ``nodes`` are rewritten (all, where it is ``None``); the Gather before goes
      if nothing else reads it.
    """

    def __init__(self, nodes: Collection[str] | None = None) -> None:
        self.nodes = nodes

    def run(self, model: OpenModel) -> PassResult:
        result = PassResult()
        # A chain of three becomes one in two rounds, because each round reads a fresh view, which costs
        # more than to see whether there is anything to merge.
        while _has_chain(model) and self._merge_once(model, result):
            pass
        return result

    def _merge_once(self, model: OpenModel, result: PassResult) -> bool:
        view, edit = GraphView(model), GraphEdit(model, result.removed)
        merged = False
        for ref in view.nodes:
            if self.nodes is not None and ref.proto.name not in self.nodes:
                continue
            outer = channel_gather(view, ref)
            before = view.producer(ref.node.inputs[0]) if outer else None
            inner = channel_gather(view, before) if before else None
            if outer is None or before is None or inner is None:
                continue
            if before.scope.holder is not ref.scope.holder:
                continue
            indices = np.asarray(compose_gathers(inner, outer), dtype=np.int64)
            base = ref.name
            node = copied(ref.proto)
            node.input[0] = before.proto.input[0]
            node.input[1] = edit.constant(ref.scope.holder, f"{base}/merged_indices", indices)
            edit.replace(ref, [node])
            if base not in result.changed:
                result.changed.append(base)
            merged = True
        result.add_removed(edit.apply())
        return merged


def _has_chain(model: OpenModel) -> bool:
    """Whether any Gather reads what another one of its scope makes."""
    for scope in scopes(model.proto):
        gathers = [node for node in scope.holder.node if node.op_type == "Gather"]
        made = {name for node in gathers for name in node.output}
        if any(node.input[0] in made for node in gathers if node.input):
            return True
    return False


def channel_gather(view: GraphView, ref: NodeRef) -> list[int] | None:
    """The channels that a node gathers along axis 1, if it is such a Gather with constant indices."""
    if ref.op_type != "Gather" or not ref.is_standard or ref.attribute("axis", 0) != 1:
        return None
    constant = view.constant(ref.node.inputs[1], ref.scope)
    if constant is None:
        return None
    indices = constant.values()
    if indices.ndim != 1 or (indices < 0).any():
        return None
    return [int(index) for index in indices]
