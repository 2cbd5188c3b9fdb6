"""ResNet-50 (He et al. 2015, arXiv:1512.03385) in the variant of torchvision, known as V1.5.

The stride of a stage lies on the 3x3 convolution of its first block, not on the 1x1 before it.
"""

from __future__ import annotations

import onnx

from sample_models.geometry import Feature, Pads
from sample_models.graph_builder import BatchNormSettings, GraphBuilder
from sample_models.initializers import he_normal
from sample_models.options import BuildOptions

STEM_FILTERS = 64
EXPANSION = 4

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""(filters of the bottleneck, blocks, stride of the first block) of the stages: table 1."""

# As torchvision has them: momentum 0.1 of the new statistics is 0.9 of the old ones.
_BATCH_NORM = BatchNormSettings(epsilon=1e-5, momentum=0.9)
_AROUND_1 = Pads(1, 1, 1, 1)
_AROUND_3 = Pads(3, 3, 3, 3)


def build(options: BuildOptions) -> onnx.ModelProto:
    """Writes ResNet-50; the classifier ``fc`` is fully connected, layer names are torchvision's.

    Args:
        options: see `BuildOptions`.

    Returns:
        Model from ``input`` (batch, 3, *options.size) to ``logits`` (batch, options.classes).
    """
    graph = GraphBuilder("resnet50", options.size, seed=options.seed)
    x = graph.conv(
        graph.image, STEM_FILTERS, 7, "conv1", stride=2, padding=_AROUND_3, initializer=he_normal
    )
    x = graph.batch_norm(x, "bn1", _BATCH_NORM)
    x = graph.activation(x, "relu", "relu")
    x = graph.max_pool(x, 3, 2, "maxpool", padding=_AROUND_1)
    for stage, (filters, blocks, first_stride) in enumerate(STAGES, start=1):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            x = _bottleneck(graph, x, filters, stride, f"layer{stage}.{block}")
    pooled = graph.flatten(graph.global_average_pool(x, "avgpool"), "flatten")
    return graph.finish(graph.dense(pooled, options.classes, "fc"))


def _bottleneck(graph: GraphBuilder, x: Feature, filters: int, stride: int, name: str) -> Feature:
    """1x1, 3x3, 1x1 and the shortcut around them, projected where shapes differ (figure 5)."""
    wide = filters * EXPANSION
    shortcut = x
    if stride > 1 or x.channels != wide:
        shortcut = _conv(graph, x, wide, 1, f"{name}.downsample.0", stride)
        shortcut = graph.batch_norm(shortcut, f"{name}.downsample.1", _BATCH_NORM)
    y = graph.batch_norm(_conv(graph, x, filters, 1, f"{name}.conv1"), f"{name}.bn1", _BATCH_NORM)
    y = graph.activation(y, "relu", f"{name}.relu1")
    y = _conv(graph, y, filters, 3, f"{name}.conv2", stride)
    y = graph.batch_norm(y, f"{name}.bn2", _BATCH_NORM)
    y = graph.activation(y, "relu", f"{name}.relu2")
    y = graph.batch_norm(_conv(graph, y, wide, 1, f"{name}.conv3"), f"{name}.bn3", _BATCH_NORM)
    return graph.activation(graph.add(y, shortcut, f"{name}.add"), "relu", f"{name}.relu")


def _conv(
    graph: GraphBuilder, x: Feature, filters: int, kernel: int, name: str, stride: int = 1
) -> Feature:
    """Convolution without bias, padded on all sides alike."""
    padding = _AROUND_1 if kernel > 1 else Pads()
    return graph.conv(
        x, filters, kernel, name, stride=stride, padding=padding, initializer=he_normal
    )
