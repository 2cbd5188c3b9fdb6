"""A MobileNet with shortcuts for 32x32 images, small enough to be trained on a CPU within the hour.

It is the baseline of ``benchmarks/cifar10``: nearly all of its weights are in
pointwise convolutions of 128 to 384 channels, so that compressing those is put to a test.
"""

from __future__ import annotations

import onnx

from sample_models.geometry import Feature
from sample_models.graph_builder import BatchNormSettings, GraphBuilder
from sample_models.initializers import he_normal, variance_scaling
from sample_models.options import BuildOptions

STEM = ((32, 1), (64, 2), (128, 1))
"""(filters, stride) of the dense 3x3 convolutions at the start: maps of 32x32, then 16x16."""

BLOCKS = (
    (128, 1),
    (256, 2),
    *((256, 1),) * 5,
    (384, 2),
    *((384, 1),) * 4,
)
"""(filters, stride) of the depthwise separable blocks: maps of 16x16, then 8x8, then 4x4."""

# In the fans of Keras one filter of a depthwise kernel sums over its own window: fan_out.
_DEPTHWISE_INITIALIZER = variance_scaling(2.0, "fan_out", "truncated_normal")

# Runs of some thousand steps: with 0.99 the running statistics would lag behind the fast phases.
_BATCH_NORM = BatchNormSettings(momentum=0.9)


def build(options: BuildOptions) -> onnx.ModelProto:
    """Writes the network; the classifier ``predictions`` is a Gemm.

    A block that keeps the shape adds its input to its output, in front of the last activation (as in
    He et al. 2015, arXiv:1512.03385). Weights are drawn by He's rule, so that it trains well from
    scratch.

    Args:
        options: see `BuildOptions`; ``alpha`` multiplies the filters of every layer.

    Returns:
        Model from ``input`` (batch, 3, *options.size) to ``logits`` (batch, options.classes).
    """
    graph = GraphBuilder("cifar_net", options.size, seed=options.seed)
    x = graph.image
    for number, (filters, stride) in enumerate(STEM, start=1):
        name = f"conv{number}"
        x = graph.conv(
            x, int(filters * options.alpha), 3, name, stride=stride, initializer=he_normal
        )
        x = graph.batch_norm(x, f"{name}_bn", _BATCH_NORM)
        x = graph.activation(x, "relu", f"{name}_relu")
    for number, (filters, stride) in enumerate(BLOCKS, start=1):
        x = _separable_block(graph, x, int(filters * options.alpha), stride, number)
    pooled = graph.flatten(graph.global_average_pool(x, "pool"), "flatten")
    return graph.finish(graph.dense(pooled, options.classes, "predictions"))


def _separable_block(
    graph: GraphBuilder, x: Feature, filters: int, stride: int, number: int
) -> Feature:
    if stride == 2:
        x = graph.max_pool(x, 2, 2, f"pool_{number}")
    name = f"conv_dw_{number}"
    y = graph.depthwise_conv(x, 3, name, initializer=_DEPTHWISE_INITIALIZER)
    y = graph.batch_norm(y, f"{name}_bn", _BATCH_NORM)
    y = graph.activation(y, "relu", f"{name}_relu")
    name = f"conv_pw_{number}"
    y = graph.conv(y, filters, 1, name, initializer=he_normal)
    y = graph.batch_norm(y, f"{name}_bn", _BATCH_NORM)
    if filters == x.channels:
        y = graph.add(x, y, f"block_{number}_add")
    return graph.activation(y, "relu", f"{name}_relu")
