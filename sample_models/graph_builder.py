"""Writes the ONNX graph of a CNN layer by layer, with node names like those of Keras layers.

A method adds one layer and returns the `Feature` it computes; channels and map size are known at
every step, so padding is written as numbers and a map that vanishes is noticed where it happens.
Node ``stem_conv`` computes tensor ``stem_conv`` from initializer ``stem_conv/kernel``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from sample_models.geometry import Feature, Padding, Pads, Vector, output_size, window_of
from sample_models.initializers import Fans, Initializer, glorot_uniform

OPSET = 17
# The IR version that came with opset 17: newer ones shut out older runtimes and bring nothing here.
IR_VERSION = 8

FIXED_TENSORS_KEY = "onnx_igpc.fixed_tensors"
"""Model metadata key: JSON list of the initializers that are constants, not trainable weights."""

Activation = Literal["linear", "relu", "relu6", "swish", "sigmoid", "hard_sigmoid", "hard_swish"]


@dataclass(frozen=True)
class BatchNormSettings:
    """What the BatchNormalization layers of a network have in common.

    Attributes:
        epsilon: added to the variance.
        momentum: share of the old running statistics kept in a training step (as in Keras).
        scale: whether gamma is trained; without it gamma is a shared constant of ones.
    """

    epsilon: float = 1e-3
    momentum: float = 0.99
    scale: bool = True


class GraphBuilder:
    """One ONNX model in the making; `finish` returns it.

    Args:
        name: name of the graph.
        size: (height, width) of the input image; the batch dimension stays dynamic.
        channels: channels of the input image.
        seed: seed of the weights. Each tensor is drawn from the seed and its own name, so a layer
            has the same weights in every variant of a network that draws it by the same rule.
    """

    def __init__(self, name: str, size: tuple[int, int], *, channels: int = 3, seed: int = 0):
        self.image = Feature("input", channels, *size)
        self._name = name
        self._seed = seed
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._fixed: set[str] = set()

    # ------------------------------------------------------------------ layers with weights

    def conv(
        self,
        x: Feature,
        filters: int,
        kernel: int | tuple[int, int],
        name: str,
        *,
        stride: int = 1,
        padding: Padding = "same",
        bias: bool = False,
        initializer: Initializer = glorot_uniform,
    ) -> Feature:
        """Dense convolution; weight of shape (filters, x.channels, *kernel), bias (filters,)."""
        window = window_of(kernel)
        area = window[0] * window[1]
        fans = Fans(x.channels * area, filters * area)
        weight = self._weight(f"{name}/kernel", (filters, x.channels, *window), fans, initializer)
        return self._conv(x, filters, window, name, weight, 1, stride, padding, bias)

    def depthwise_conv(
        self,
        x: Feature,
        kernel: int,
        name: str,
        *,
        stride: int = 1,
        padding: Padding = "same",
        initializer: Initializer = glorot_uniform,
    ) -> Feature:
        """Depthwise convolution without bias; weight of shape (x.channels, 1, kernel, kernel)."""
        window = window_of(kernel)
        area = window[0] * window[1]
        # Keras stores this kernel as (height, width, channels, 1) and reads the fans off that.
        fans = Fans(x.channels * area, area)
        weight = self._weight(f"{name}/kernel", (x.channels, 1, *window), fans, initializer)
        return self._conv(x, x.channels, window, name, weight, x.channels, stride, padding, False)

    def dense(
        self, x: Vector, units: int, name: str, *, initializer: Initializer = glorot_uniform
    ) -> Vector:
        """Fully connected layer (Gemm); weight of shape (units, x.size), bias (units,)."""
        fans = Fans(x.size, units)
        weight = self._weight(f"{name}/kernel", (units, x.size), fans, initializer)
        bias = self._constant(f"{name}/bias", np.zeros(units, np.float32))
        return Vector(self._node("Gemm", name, [x.name, weight, bias], transB=1), units)

    def batch_norm(
        self, x: Feature, name: str, settings: BatchNormSettings | None = None
    ) -> Feature:
        """BatchNormalization as initialised by Keras: gamma 1, beta 0, mean 0, variance 1."""
        settings = settings or BatchNormSettings()
        ones = np.ones(x.channels, np.float32)
        zeros = np.zeros(x.channels, np.float32)
        if settings.scale:
            gamma = self._constant(f"{name}/gamma", ones)
        else:
            gamma = self._constant(f"ones_{x.channels}", ones)
            self._fixed.add(gamma)
        inputs = [
            x.name,
            gamma,
            self._constant(f"{name}/beta", zeros),
            self._constant(f"{name}/moving_mean", zeros),
            self._constant(f"{name}/moving_variance", ones),
        ]
        output = self._node(
            "BatchNormalization",
            name,
            inputs,
            epsilon=settings.epsilon,
            momentum=settings.momentum,
        )
        return Feature(output, x.channels, x.height, x.width)

    # --------------------------------------------------------------- layers without weights

    def activation(self, x: Feature, kind: Activation, name: str) -> Feature:
        """Elementwise activation in the spelling that runtimes and rewriters know best."""
        if kind == "linear":
            return x
        if kind == "swish":
            gate = self._node("Sigmoid", f"{name}/sigmoid", [x.name])
            output = self._node("Mul", name, [x.name, gate])
        elif kind == "relu6":
            low = self._constant("relu6/min", np.array(0, np.float32))
            high = self._constant("relu6/max", np.array(6, np.float32))
            output = self._node("Clip", name, [x.name, low, high])
        elif kind == "hard_sigmoid":
            # relu6(x + 3) / 6, the "hard sigmoid" of MobileNet V3 (Howard et al. 2019, sec. 5.2);
            # the slope of the ONNX default is another one.
            output = self._node("HardSigmoid", name, [x.name], alpha=1 / 6, beta=0.5)
        else:
            operator = {"relu": "Relu", "sigmoid": "Sigmoid", "hard_swish": "HardSwish"}[kind]
            output = self._node(operator, name, [x.name])
        return Feature(output, x.channels, x.height, x.width)

    def max_pool(
        self, x: Feature, kernel: int, stride: int, name: str, *, padding: Padding = "valid"
    ) -> Feature:
        """Maximum over the part of each window that lies inside the map."""
        height, width, pads = output_size(x, (kernel, kernel), stride, padding, name)
        attributes: dict[str, list[int]] = {
            "kernel_shape": [kernel, kernel],
            "strides": [stride, stride],
        }
        if pads != Pads():
            attributes["pads"] = pads.attribute()
        return Feature(
            self._node("MaxPool", name, [x.name], **attributes), x.channels, height, width
        )

    def average_pool(
        self, x: Feature, kernel: int, stride: int, name: str, *, padding: Padding = "valid"
    ) -> Feature:
        """Mean over the part of each window that lies inside the map, as TensorFlow counts it."""
        height, width, pads = output_size(x, (kernel, kernel), stride, padding, name)
        output = self._node(
            "AveragePool",
            name,
            [x.name],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=pads.attribute(),
            count_include_pad=0,
        )
        return Feature(output, x.channels, height, width)

    def global_average_pool(self, x: Feature, name: str) -> Feature:
        """Mean over the whole map: (batch, channels, 1, 1)."""
        return Feature(self._node("GlobalAveragePool", name, [x.name]), x.channels, 1, 1)

    def add(self, x: Feature, y: Feature, name: str) -> Feature:
        """Sum of two equal shapes."""
        return Feature(self._node("Add", name, [x.name, y.name]), x.channels, x.height, x.width)

    def multiply(self, x: Feature, gate: Feature, name: str) -> Feature:
        """``x`` times one factor per channel, ``gate`` of shape (batch, channels, 1, 1)."""
        return Feature(self._node("Mul", name, [x.name, gate.name]), x.channels, x.height, x.width)

    def concat(self, parts: Sequence[Feature], name: str) -> Feature:
        """The channels of all parts one after the other."""
        output = self._node("Concat", name, [part.name for part in parts], axis=1)
        channels = sum(part.channels for part in parts)
        return Feature(output, channels, parts[0].height, parts[0].width)

    def interleave(self, x: Feature, step: int, name: str) -> Feature:
        """Channel interleave: ``concat(x[0::step], x[1::step], ..., x[step-1::step])``.

        Source: the interleaving layer of Schwarz Schuler et al. 2021, "Grouped Pointwise
        Convolutions Significantly Reduces Parameters in EfficientNet", as a Gather.
        """
        order = [i for first in range(step) for i in range(first, x.channels, step)]
        indices = self._constant(f"{name}/indices", np.array(order, np.int64))
        output = self._node("Gather", name, [x.name, indices], axis=1)
        return Feature(output, x.channels, x.height, x.width)

    def flatten(self, x: Feature, name: str) -> Vector:
        """(batch, channels, height, width) to (batch, channels * height * width)."""
        output = self._node("Flatten", name, [x.name], axis=1)
        return Vector(output, x.channels * x.height * x.width)

    # ------------------------------------------------------------------------------ the end

    def finish(self, logits: Vector) -> onnx.ModelProto:
        """The model: ``input`` (batch, channels, height, width) to ``logits`` (batch, classes).

        The softmax of the published builders is left off: it has no weights, losses and
        distillation want logits, and the largest logit names the same class.
        """
        producer = next(node for node in self._nodes if node.output[0] == logits.name)
        producer.output[0] = "logits"
        image_shape: list[str | int | None] = [
            "batch",
            self.image.channels,
            self.image.height,
            self.image.width,
        ]
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, image_shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", logits.size])],
            initializer=list(self._initializers.values()),
        )
        model = helper.make_model(
            graph,
            producer_name="onnx-igpc sample_models",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        if self._fixed:
            helper.set_model_props(model, {FIXED_TENSORS_KEY: json.dumps(sorted(self._fixed))})
        return model

    # ------------------------------------------------------------------------------ private

    def _conv(
        self,
        x: Feature,
        filters: int,
        window: tuple[int, int],
        name: str,
        weight: str,
        groups: int,
        stride: int,
        padding: Padding,
        bias: bool,
    ) -> Feature:
        height, width, pads = output_size(x, window, stride, padding, name)
        inputs = [x.name, weight]
        if bias:
            inputs.append(self._constant(f"{name}/bias", np.zeros(filters, np.float32)))
        output = self._node(
            "Conv",
            name,
            inputs,
            kernel_shape=list(window),
            strides=[stride, stride],
            pads=pads.attribute(),
            group=groups,
        )
        return Feature(output, filters, height, width)

    def _weight(
        self, name: str, shape: tuple[int, ...], fans: Fans, initializer: Initializer
    ) -> str:
        generator = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        return self._constant(name, initializer(generator, shape, fans))

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(value, name)
        return name

    def _node(self, operator: str, name: str, inputs: list[str], **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name
