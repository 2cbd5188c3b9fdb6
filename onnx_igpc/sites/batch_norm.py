"""The BatchNormalization that follows a convolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_igpc.graph.view import GraphView, NodeRef


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
