"""MobileNet V1 (Howard et al. 2017, arXiv:1704.04861), as in keras.applications.

Variant ``k`` is the skeleton of kMobileNet (Schwarz Schuler et al. 2022, Mendel): swish instead of
ReLU6 after the pointwise convolutions.
"""

from __future__ import annotations

import onnx

from sample_models.geometry import Feature, Pads
from sample_models.graph_builder import GraphBuilder
from sample_models.options import BuildOptions

STEM_FILTERS = 32

BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
"""(filters, stride) of the thirteen depthwise separable blocks (table 1 of the paper)."""

# keras.applications pads the end of both axes before each stride of 2, whatever the map size is.
_STRIDE_2_PADS = Pads(top=0, left=0, bottom=1, right=1)


def build(options: BuildOptions) -> onnx.ModelProto:
    """Writes MobileNet V1; the classifier ``conv_preds`` is a 1x1 convolution with bias.

    Args:
        options: see `BuildOptions`; ``alpha`` multiplies the filters of every layer.

    Returns:
        Model from ``input`` (batch, 3, *options.size) to ``logits`` (batch, options.classes).

    Raises:
        UsageError: the image is too small for five strides of 2.
    """
    graph = GraphBuilder("mobilenet_v1", options.size, seed=options.seed)
    stem_filters = int(STEM_FILTERS * options.alpha)
    x = graph.conv(graph.image, stem_filters, 3, "conv1", stride=2, padding=_STRIDE_2_PADS)
    x = graph.batch_norm(x, "conv1_bn")
    x = graph.activation(x, "relu6", "conv1_relu")
    for number, (filters, stride) in enumerate(BLOCKS, start=1):
        x = _separable_block(graph, x, int(filters * options.alpha), stride, number, options)
    x = graph.global_average_pool(x, "global_average_pooling2d")
    x = graph.conv(x, options.classes, 1, "conv_preds", bias=True)
    return graph.finish(graph.flatten(x, "reshape_2"))


def _separable_block(
    graph: GraphBuilder,
    x: Feature,
    filters: int,
    stride: int,
    number: int,
    options: BuildOptions,
) -> Feature:
    x = graph.depthwise_conv(
        x,
        3,
        f"conv_dw_{number}",
        stride=stride,
        padding="same" if stride == 1 else _STRIDE_2_PADS,
    )
    x = graph.batch_norm(x, f"conv_dw_{number}_bn")
    x = graph.activation(x, "relu6", f"conv_dw_{number}_relu")
    x = graph.conv(x, filters, 1, f"conv_pw_{number}")
    x = graph.batch_norm(x, f"conv_pw_{number}_bn")
    if options.variant == "k":
        return graph.activation(x, "swish", f"conv_pw_{number}_swish")
    return graph.activation(x, "relu6", f"conv_pw_{number}_relu")
