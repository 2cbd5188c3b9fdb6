"""A small MobileNet for the 8x8 grey images of scikit-learn's handwritten digits.

It is small enough to be trained in a minute on a laptop, and has enough pointwise convolutions of
real width (64 to 192 channels) for the rewrites to mean something.
"""

from __future__ import annotations

import onnx

from sample_models.graph_builder import BatchNormSettings, GraphBuilder
from sample_models.initializers import he_normal, variance_scaling
from sample_models.options import BuildOptions

STEM_FILTERS = 64

BLOCKS = (
    (64, 1),
    (96, 1),
    (96, 1),
    (128, 2),
    (128, 1),
    (160, 1),
    (160, 1),
    (192, 2),
    (192, 1),
)
"""(filters, stride) of the depthwise separable blocks: maps of 8x8, then 4x4, then 2x2."""

# In the fans of Keras one filter of a depthwise kernel sums over its own window: fan_out.
_DEPTHWISE_INITIALIZER = variance_scaling(2.0, "fan_out", "truncated_normal")

# Training runs of a few hundred steps: with 0.99 the running statistics would lag behind.
_BATCH_NORM = BatchNormSettings(momentum=0.9)


def build(options: BuildOptions) -> onnx.ModelProto:
    """Writes the digits network; the classifier ``conv_preds`` is a 1x1 convolution with bias.

    Weights are drawn by He's rule, so that it trains well from scratch.

    Args:
        options: see `BuildOptions`; ``alpha`` multiplies the filters of every layer.

    Returns:
        Model from ``input`` (batch, 1, *options.size) to ``logits`` (batch, options.classes);
        the pixels are expected in 0..1.
    """
    graph = GraphBuilder("digits_net", options.size, channels=1, seed=options.seed)
    x = graph.conv(
        graph.image, int(STEM_FILTERS * options.alpha), 3, "conv1", initializer=he_normal
    )
    x = graph.batch_norm(x, "conv1_bn", _BATCH_NORM)
    x = graph.activation(x, "relu6", "conv1_relu")
    for number, (filters, stride) in enumerate(BLOCKS, start=1):
        name = f"conv_dw_{number}"
        x = graph.depthwise_conv(x, 3, name, stride=stride, initializer=_DEPTHWISE_INITIALIZER)
        x = graph.batch_norm(x, f"{name}_bn", _BATCH_NORM)
        x = graph.activation(x, "relu6", f"{name}_relu")
        name = f"conv_pw_{number}"
        x = graph.conv(x, int(filters * options.alpha), 1, name, initializer=he_normal)
        x = graph.batch_norm(x, f"{name}_bn", _BATCH_NORM)
        x = graph.activation(x, "relu6", f"{name}_relu")
    x = graph.global_average_pool(x, "global_average_pooling2d")
    x = graph.conv(x, options.classes, 1, "conv_preds", bias=True)
    return graph.finish(graph.flatten(x, "flatten"))
