"""Folding BatchNormalization into the convolution before it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnx_igpc.graph.edit import GraphEdit
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import copied
from onnx_igpc.graph.view import GraphView, NodeRef
from onnx_igpc.passes.base import Pass, PassResult
from onnx_igpc.sites.batch_norm import BatchNorm, following_batch_norm


class FoldBatchNorm(Pass):
    """Fold BatchNormalization into the Conv that alone feeds it.

    Rules:

    * The Conv has constant weights (any kernel, any groups) and its output has no other reader.
    * The BatchNormalization has constant tensors, uses inference statistics (training_mode 0) and
      has no other output.
    * The Conv keeps its name and takes over the BatchNormalization's output; new weights and bias
      have the dtype of the old ones. Values that would overflow it are not folded.
    * Nodes named in ``leave`` stay as they are.
    """

    def __init__(self, leave: Collection[str] = ()) -> None:
        self.leave = leave
        self.renamed: dict[tuple[str, str], str] = {}
        """The former output of each folded Conv, by scope and the one it makes now."""

    def run(self, model: OpenModel) -> PassResult:
        result = PassResult()
        # A second BatchNormalization behind the first is behind the Conv in the next round.
        while self._fold_once(model, result):
            pass
        return result

    def _fold_once(self, model: OpenModel, result: PassResult) -> bool:
        view, edit = GraphView(model), GraphEdit(model, result.removed)
        folded = False
        for ref in view.nodes:
            if ref.op_type != "Conv" or not ref.is_standard:
                continue
            norm = following_batch_norm(view, ref)
            if norm is None or ref.proto.name in self.leave:
                continue
            label = norm.ref.name
            reason = self._fold(view, edit, ref, norm)
            if reason:
                result.kept[label] = reason
            else:
                result.changed.append(label)
                folded = True
                path, former = ref.scope.path, str(ref.proto.output[0])
                first = self.renamed.pop((path, former), former)
                self.renamed[path, str(norm.ref.proto.output[0])] = first
        result.add_removed(edit.apply())
        return folded

    def _fold(self, view: GraphView, edit: GraphEdit, ref: NodeRef, norm: BatchNorm) -> str | None:
        if norm.ref.attribute("training_mode", 0):
            return "it is in training mode"
        if len([name for name in norm.ref.proto.output if name]) > 1:
            return "its statistics are outputs"
        constant = view.constant(ref.node.inputs[1], ref.scope)
        if constant is None:
            return "the weight before it is computed at run time"
        has_bias = ref.has_input(2)
        old_bias = view.constant(ref.node.inputs[2], ref.scope) if has_bias else None
        if has_bias and old_bias is None:
            return "the bias before it is computed at run time"
        weight = constant.values()
        before = old_bias.values().astype(np.float64) if old_bias else np.zeros_like(norm.mean)
        factor = norm.factor
        shape = (-1, *[1] * (weight.ndim - 1))
        with np.errstate(over="ignore"):
            folded = (weight.astype(np.float64) * factor.reshape(shape)).astype(weight.dtype)
            bias = ((before - norm.mean) * factor + norm.bias).astype(weight.dtype)
        if not (np.isfinite(folded).all() and np.isfinite(bias).all()):
            return f"the folded weights would not be finite in {weight.dtype}"
        base = ref.name
        node = copied(ref.proto)
        del node.input[1:]
        node.input.append(edit.constant(ref.scope.holder, f"{base}/folded_weight", folded))
        node.input.append(edit.constant(ref.scope.holder, f"{base}/folded_bias", bias))
        node.output[0] = norm.ref.proto.output[0]
        edit.replace(ref, [])
        edit.replace(norm.ref, [node])
        return None
