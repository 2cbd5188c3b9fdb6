"""MobileNet V3 Large (Howard et al. 2019, arXiv:1905.02244), as in keras.applications.

Variant ``k`` is the skeleton of kMobileNet V3 (Schwarz Schuler et al. 2022, Mendel): the layers are
the same, only the BatchNormalization after pointwise convolutions has the default momentum.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from sample_models.geometry import Feature
from sample_models.graph_builder import Activation, BatchNormSettings, GraphBuilder
from sample_models.options import BuildOptions
from sample_models.rounding import round_channels

STEM_FILTERS = 16
LAST_EXPANSION = 6
LAST_POINT_FILTERS = 1280
SE_RATIO = 0.25


@dataclass(frozen=True)
class Block:
    """One row of table 1 of the paper; the expanded width is ``expansion`` times the input's."""

    expansion: float
    filters: int
    kernel: int
    stride: int
    squeeze_excite: bool
    activation: Activation


BLOCKS = (
    Block(1, 16, 3, 1, False, "relu"),
    Block(4, 24, 3, 2, False, "relu"),
    Block(3, 24, 3, 1, False, "relu"),
    Block(3, 40, 5, 2, True, "relu"),
    Block(3, 40, 5, 1, True, "relu"),
    Block(3, 40, 5, 1, True, "relu"),
    Block(6, 80, 3, 2, False, "hard_swish"),
    Block(2.5, 80, 3, 1, False, "hard_swish"),
    Block(2.3, 80, 3, 1, False, "hard_swish"),
    Block(2.3, 80, 3, 1, False, "hard_swish"),
    Block(6, 112, 3, 1, True, "hard_swish"),
    Block(6, 112, 3, 1, True, "hard_swish"),
    Block(6, 160, 5, 2, True, "hard_swish"),
    Block(6, 160, 5, 1, True, "hard_swish"),
    Block(6, 160, 5, 1, True, "hard_swish"),
)

_BATCH_NORM = BatchNormSettings(momentum=0.999)


def build(options: BuildOptions) -> onnx.ModelProto:
    """Writes MobileNet V3 Large; the classifier ``Logits`` is a 1x1 convolution with bias.

    Args:
        options: see `BuildOptions`; ``alpha`` multiplies the filters of the blocks, and those of
            the last hidden layer where it is above 1.

    Returns:
        Model from ``input`` (batch, 3, *options.size) to ``logits`` (batch, options.classes).
    """
    graph = GraphBuilder("mobilenet_v3_large", options.size, seed=options.seed)
    pointwise_norm = BatchNormSettings() if options.variant == "k" else _BATCH_NORM
    writer = _BlockWriter(graph, pointwise_norm)
    x = graph.conv(graph.image, STEM_FILTERS, 3, "Conv", stride=2)
    x = graph.batch_norm(x, "Conv/BatchNorm", _BATCH_NORM)
    x = graph.activation(x, "hard_swish", "Conv/activation")
    for number, block in enumerate(BLOCKS):
        x = writer.block(x, block, round_channels(block.filters * options.alpha), number)

    x = writer.pointwise(x, round_channels(x.channels * LAST_EXPANSION), "Conv_1", "hard_swish")
    x = graph.global_average_pool(x, "global_average_pooling2d")
    hidden = round_channels(LAST_POINT_FILTERS * max(1.0, options.alpha))
    x = graph.conv(x, hidden, 1, "Conv_2", bias=True)
    x = graph.activation(x, "hard_swish", "Conv_2/activation")
    x = graph.conv(x, options.classes, 1, "Logits", bias=True)
    return graph.finish(graph.flatten(x, "flatten"))


@dataclass(frozen=True)
class _BlockWriter:
    """Adds the inverted residual blocks to ``graph``."""

    graph: GraphBuilder
    pointwise_norm: BatchNormSettings

    def block(self, x: Feature, block: Block, filters: int, number: int) -> Feature:
        """Expand, depthwise, squeeze-and-excitation, project; layer names as in Keras."""
        prefix = f"expanded_conv_{number}/" if number else "expanded_conv/"
        shortcut = x
        expanded = round_channels(x.channels * block.expansion)
        if number:
            x = self.pointwise(x, expanded, f"{prefix}expand", block.activation)
        x = self.graph.depthwise_conv(x, block.kernel, f"{prefix}depthwise", stride=block.stride)
        x = self.graph.batch_norm(x, f"{prefix}depthwise/BatchNorm", _BATCH_NORM)
        x = self.graph.activation(x, block.activation, f"{prefix}depthwise/activation")
        if block.squeeze_excite:
            x = self._squeeze_excite(x, f"{prefix}squeeze_excite/")
        x = self.pointwise(x, filters, f"{prefix}project", "linear")
        if block.stride == 1 and filters == shortcut.channels:
            x = self.graph.add(shortcut, x, f"{prefix}Add")
        return x

    def pointwise(self, x: Feature, filters: int, name: str, activation: Activation) -> Feature:
        """1x1 convolution without bias, BatchNormalization, activation."""
        x = self.graph.conv(x, filters, 1, name)
        x = self.graph.batch_norm(x, f"{name}/BatchNorm", self.pointwise_norm)
        return self.graph.activation(x, activation, f"{name}/activation")

    def _squeeze_excite(self, x: Feature, prefix: str) -> Feature:
        """One factor per channel from the mean of the map (section 5.3 of the paper)."""
        gate = self.graph.global_average_pool(x, f"{prefix}AvgPool")
        gate = self.graph.conv(
            gate, round_channels(x.channels * SE_RATIO), 1, f"{prefix}Conv", bias=True
        )
        gate = self.graph.activation(gate, "relu", f"{prefix}Relu")
        gate = self.graph.conv(gate, x.channels, 1, f"{prefix}Conv_1", bias=True)
        gate = self.graph.activation(gate, "hard_sigmoid", f"{prefix}HardSigmoid")
        return self.graph.multiply(x, gate, f"{prefix}Mul")
