"""Folding BatchNormalization into the convolution before it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_igpc.graph.edit import GraphEdit
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView, NodeRef
from onnx_igpc.passes.base import Pass, PassResult


@dataclass(frozen=True)
class BatchNorm:
    """A BatchNormalization in inference: y = scale * (x - mean) / sqrt(variance + epsilon) + bias.

    All arrays are float64 of shape (channels,); ``dtypes`` are those of the four in the model.
    """

    ref: NodeRef
    scale: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float
    dtypes: tuple[np.dtype, ...]

    @property
    def factor(self) -> np.ndarray:
        """What each channel is multiplied by."""
        return self.scale / np.sqrt(self.variance + self.epsilon)

    @property
    def keeps_statistics(self) -> bool:
        """Whether it computes statistics, to use them or to give them out."""
        outputs = [name for name in self.ref.proto.output if name]
        return bool(self.ref.attribute("training_mode", 0)) or len(outputs) > 1


def following_batch_norm(view: GraphView, ref: NodeRef) -> BatchNorm | None:
    """The BatchNormalization that is the only reader of a node's output, if its tensors are constant and finite."""
    consumer = view.only_consumer(ref.node.outputs[0])
    if consumer is None or consumer.op_type != "BatchNormalization" or not consumer.is_standard:
        return None
    if consumer.is_parametrized:
        return None
    if consumer.scope.holder is not ref.scope.holder or len(consumer.node.inputs) != 5:
        return None
    if consumer.node.inputs[0] is not ref.node.outputs[0]:
        return None
    constants = [view.constant(tensor, consumer.scope) for tensor in consumer.node.inputs[1:]]
    stored = [constant.values() for constant in constants if constant]
    if len(stored) != 4 or len({each.shape for each in stored}) != 1 or stored[0].ndim != 1:
        return None
    with np.errstate(invalid="ignore"):  # signalling NaN, which are refused below
        values = [each.astype(np.float64) for each in stored]
    epsilon = float(consumer.attribute("epsilon", 1e-5))
    # Statistics that nothing real has: what the layer computes with them is not a number.
    if not all(np.isfinite(each).all() for each in values) or (values[3] + epsilon <= 0).any():
        return None
    dtypes = tuple(each.dtype for each in stored)
    return BatchNorm(consumer, values[0], values[1], values[2], values[3], epsilon, dtypes)


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
        view, edit = GraphView(model), GraphEdit(model)
        folded = False
        for ref in view.nodes:
            if ref.op_type != "Conv" or not ref.is_standard:
                continue
            norm = following_batch_norm(view, ref)
            if norm is None or ref.proto.name in self.leave:
                continue
            label = norm.ref.proto.name or norm.ref.proto.output[0]
            reason = self._fold(view, edit, ref, norm)
            if reason:
                result.kept[label] = reason
            else:
                result.changed.append(label)
                folded = True
                path, former = ref.scope.path, str(ref.proto.output[0])
                first = self.renamed.pop((path, former), former)
                self.renamed[path, str(norm.ref.proto.output[0])] = first
                result.orphans.update([*ref.proto.input[1:], *norm.ref.proto.input])
        edit.apply()
        return folded

    def _fold(self, view: GraphView, edit: GraphEdit, ref: NodeRef, norm: BatchNorm) -> str | None:
        if norm.ref.attribute("training_mode", 0):
            return "it is in training mode"
        if len([name for name in norm.ref.proto.output if name]) > 1:
            return "its statistics are outputs"
        constant = view.constant(ref.node.inputs[1], ref.scope)
        if constant is None:
            return "the weight before it is computed at run time"
        has_bias = len(ref.node.inputs) > 2 and bool(ref.node.inputs[2].name)
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
        base = ref.proto.name or ref.proto.output[0]
        node = onnx.NodeProto()
        node.CopyFrom(ref.proto)
        del node.input[1:]
        node.input.append(edit.constant(ref.scope.holder, f"{base}/folded_weight", folded))
        node.input.append(edit.constant(ref.scope.holder, f"{base}/folded_bias", bias))
        node.output[0] = norm.ref.proto.output[0]
        edit.replace(ref, [])
        edit.replace(norm.ref, [node])
        return None
