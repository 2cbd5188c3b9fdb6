"""EfficientNet B0 to B7 (Tan and Le 2019, arXiv:1905.11946), as in keras.applications.

One baseline, B0, is scaled in width, depth and resolution. Inside each block: expand 1x1,
depthwise, squeeze-and-excitation of 1x1 convolutions with bias, project 1x1.
Variant ``k`` is the skeleton of kEffNet (Schwarz Schuler et al. 2021 and 2022): no activation after
the last pointwise convolution, and the weights of pointwise layers drawn by Glorot's rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

from sample_models.geometry import Feature, same_pads
from sample_models.graph_builder import GraphBuilder
from sample_models.initializers import Initializer, glorot_uniform, variance_scaling
from sample_models.options import BuildOptions
from sample_models.rounding import round_channels

STEM_FILTERS = 32
TOP_FILTERS = 1280
SE_RATIO = 0.25

_CONV_INITIALIZER = variance_scaling(2.0, "fan_out", "truncated_normal")
_DENSE_INITIALIZER = variance_scaling(1 / 3, "fan_out", "uniform")


@dataclass(frozen=True)
class Stage:
    """One row of table 1 of the EfficientNet paper."""

    kernel: int
    repeats: int
    filters: int
    expand_ratio: int
    stride: int


BASELINE = (
    Stage(3, 1, 16, 1, 1),
    Stage(3, 2, 24, 6, 2),
    Stage(5, 2, 40, 6, 2),
    Stage(3, 3, 80, 6, 2),
    Stage(5, 3, 112, 6, 1),
    Stage(5, 4, 192, 6, 2),
    Stage(3, 1, 320, 6, 1),
)


@dataclass(frozen=True)
class Scaling:
    """Compound scaling coefficients (section 3.3 of the EfficientNet paper).

    In the paper width = 1.1^phi, depth = 1.2^phi and resolution = 224 * 1.15^phi. The published
    networks use these numbers rounded by hand, which no formula in phi gives back, so the rounded
    coefficients are the facts and every channel number and repeat count follows from them.

    Attributes:
        width: multiplies the filters of every layer.
        depth: multiplies the repeats of every stage.
        resolution: side of the input image.
    """

    width: float
    depth: float
    resolution: int

    def filters(self, baseline: int) -> int:
        """Filters of a layer that has ``baseline`` filters in B0 of width 1: a multiple of 8."""
        return round_channels(baseline * self.width)

    def repeats(self, baseline: int) -> int:
        """Blocks of a stage that has ``baseline`` blocks in B0."""
        return math.ceil(baseline * self.depth)


SCALINGS = {
    "b0": Scaling(1.0, 1.0, 224),
    "b1": Scaling(1.0, 1.1, 240),
    "b2": Scaling(1.1, 1.2, 260),
    "b3": Scaling(1.2, 1.4, 300),
    "b4": Scaling(1.4, 1.8, 380),
    "b5": Scaling(1.6, 2.2, 456),
    "b6": Scaling(1.8, 2.6, 528),
    "b7": Scaling(2.0, 3.1, 600),
}


def build(scale: str, options: BuildOptions) -> onnx.ModelProto:
    """Writes one EfficientNet.

    Args:
        scale: a key of `SCALINGS`.
        options: see `BuildOptions`; ``skip_stride`` is heeded.

    Returns:
        Model from ``input`` (batch, 3, *options.size) to ``logits`` (batch, options.classes).
    """
    scaling = SCALINGS[scale]
    is_k = options.variant == "k"
    writer = _BlockWriter(
        GraphBuilder(f"efficientnet_{scale}", options.size, seed=options.seed),
        pointwise_initializer=glorot_uniform if is_k else _CONV_INITIALIZER,
    )
    x = writer.stem(scaling.filters(STEM_FILTERS), keep_size=options.skip_stride is not None)
    for index, stage in enumerate(BASELINE):
        keep_size = options.skip_stride is not None and index < options.skip_stride
        for repeat in range(scaling.repeats(stage.repeats)):
            stride = 1 if repeat > 0 or keep_size else stage.stride
            name = f"block{index + 1}{chr(ord('a') + repeat)}_"
            x = writer.block(x, stage, scaling.filters(stage.filters), stride, name)

    x = writer.pointwise(x, scaling.filters(TOP_FILTERS), "top_", "conv")
    graph = writer.graph
    if not is_k:
        x = graph.activation(x, "swish", "top_activation")
    pooled = graph.flatten(graph.global_average_pool(x, "avg_pool"), "avg_pool_flatten")
    return graph.finish(
        graph.dense(pooled, options.classes, "predictions", initializer=_DENSE_INITIALIZER)
    )


@dataclass(frozen=True)
class _BlockWriter:
    """Adds the parts of an EfficientNet to ``graph``."""

    graph: GraphBuilder
    pointwise_initializer: Initializer

    def stem(self, filters: int, keep_size: bool) -> Feature:
        """3x3 convolution of the image, stride 2 unless ``keep_size``.

        The padding is that of stride 2 in both cases, as in the k networks for small images: an
        even side loses one pixel when the size is kept (32 becomes 31).
        """
        image = self.graph.image
        pads = same_pads((image.height, image.width), (3, 3), 2)
        x = self.graph.conv(
            image,
            filters,
            3,
            "stem_conv",
            stride=1 if keep_size else 2,
            padding=pads,
            initializer=_CONV_INITIALIZER,
        )
        x = self.graph.batch_norm(x, "stem_bn")
        return self.graph.activation(x, "swish", "stem_activation")

    def block(self, x: Feature, stage: Stage, filters: int, stride: int, name: str) -> Feature:
        """Mobile inverted residual block; layer names start with ``name``."""
        shortcut = x
        if stage.expand_ratio != 1:
            x = self.pointwise(x, x.channels * stage.expand_ratio, name, "expand_conv")
            x = self.graph.activation(x, "swish", f"{name}expand_activation")
        x = self._depthwise(x, stage.kernel, stride, name)
        x = self._squeeze_excite(x, max(1, int(shortcut.channels * SE_RATIO)), name)
        x = self.pointwise(x, filters, name, "project_conv")
        if stride == 1 and filters == shortcut.channels:
            x = self.graph.add(x, shortcut, f"{name}add")
        return x

    def pointwise(self, x: Feature, filters: int, name: str, layer: str) -> Feature:
        """1x1 convolution without bias and its BatchNormalization, no activation."""
        x = self.graph.conv(x, filters, 1, f"{name}{layer}", initializer=self.pointwise_initializer)
        return self.graph.batch_norm(x, f"{name}{layer.replace('conv', 'bn')}")

    def _depthwise(self, x: Feature, kernel: int, stride: int, name: str) -> Feature:
        x = self.graph.depthwise_conv(
            x,
            kernel,
            f"{name}dwconv",
            stride=stride,
            initializer=_CONV_INITIALIZER,
        )
        x = self.graph.batch_norm(x, f"{name}bn")
        return self.graph.activation(x, "swish", f"{name}activation")

    def _squeeze_excite(self, x: Feature, squeezed: int, name: str) -> Feature:
        """One factor per channel from the mean of the map (Hu et al. 2018), ``squeezed`` wide."""
        initializer = self.pointwise_initializer
        gate = self.graph.global_average_pool(x, f"{name}se_squeeze")
        gate = self.graph.conv(
            gate, squeezed, 1, f"{name}se_reduce", bias=True, initializer=initializer
        )
        gate = self.graph.activation(gate, "swish", f"{name}se_reduce_activation")
        gate = self.graph.conv(
            gate, x.channels, 1, f"{name}se_expand", bias=True, initializer=initializer
        )
        gate = self.graph.activation(gate, "sigmoid", f"{name}se_expand_activation")
        return self.graph.multiply(x, gate, f"{name}se_excite")
