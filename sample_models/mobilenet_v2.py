"""MobileNet V2 (Sandler et al. 2018, arXiv:1801.04381), as in keras.applications."""

from __future__ import annotations

import onnx

from sample_models.geometry import Feature
from sample_models.graph_builder import BatchNormSettings, GraphBuilder
from sample_models.options import BuildOptions
from sample_models.rounding import round_channels

STEM_FILTERS = 32
LAST_FILTERS = 1280

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""(expansion, filters, blocks, stride of the first block) of the stages: table 2 of the paper."""

_BATCH_NORM = BatchNormSettings(momentum=0.999)


def build(options: BuildOptions) -> onnx.ModelProto:
    """Writes MobileNet V2; the classifier ``predictions`` is fully connected.

    Args:
        options: see `BuildOptions`; ``alpha`` multiplies the filters of the blocks, and those of
            the last convolution where it is above 1.

    Returns:
        Model from ``input`` (batch, 3, *options.size) to ``logits`` (batch, options.classes).
    """
    graph = GraphBuilder("mobilenet_v2", options.size, seed=options.seed)
    stem = round_channels(STEM_FILTERS * options.alpha)
    x = graph.conv(graph.image, stem, 3, "Conv1", stride=2)
    x = graph.batch_norm(x, "bn_Conv1", _BATCH_NORM)
    x = graph.activation(x, "relu6", "Conv1_relu")
    number = 0
    for expansion, filters, blocks, first_stride in STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            x = _block(graph, x, expansion, round_channels(filters * options.alpha), stride, number)
            number += 1
    last = round_channels(LAST_FILTERS * max(1.0, options.alpha))
    x = _pointwise(graph, x, last, "Conv_1", "Conv_1_bn")
    x = graph.activation(x, "relu6", "out_relu")
    pooled = graph.flatten(graph.global_average_pool(x, "global_average_pooling2d"), "flatten")
    return graph.finish(graph.dense(pooled, options.classes, "predictions"))


def _block(
    graph: GraphBuilder, x: Feature, expansion: int, filters: int, stride: int, number: int
) -> Feature:
    """Inverted residual with a linear bottleneck (section 3.3); layer names as in Keras."""
    prefix = f"block_{number}_" if number else "expanded_conv_"
    shortcut = x
    if expansion > 1:
        x = _pointwise(graph, x, x.channels * expansion, f"{prefix}expand", f"{prefix}expand_BN")
        x = graph.activation(x, "relu6", f"{prefix}expand_relu")
    x = graph.depthwise_conv(x, 3, f"{prefix}depthwise", stride=stride)
    x = graph.batch_norm(x, f"{prefix}depthwise_BN", _BATCH_NORM)
    x = graph.activation(x, "relu6", f"{prefix}depthwise_relu")
    x = _pointwise(graph, x, filters, f"{prefix}project", f"{prefix}project_BN")
    if stride == 1 and filters == shortcut.channels:
        x = graph.add(shortcut, x, f"{prefix}add")
    return x


def _pointwise(graph: GraphBuilder, x: Feature, filters: int, name: str, norm: str) -> Feature:
    """1x1 convolution without bias, BatchNormalization."""
    return graph.batch_norm(graph.conv(x, filters, 1, name), norm, _BATCH_NORM)
