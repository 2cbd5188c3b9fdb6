"""DenseNet-BC L100 k=12 for 32x32 images (Huang et al. 2017, arXiv:1608.06993).

The builder follows the one used for the published comparison: the first convolution has a bias and
no BatchNormalization of its own. Variant ``k`` is the skeleton of kDenseNet-BC (Schwarz Schuler et
al. 2022, Mendel): the activation follows the pointwise convolution instead of preceding it, swish
instead of ReLU, and the channels are interleaved before each transition.
"""

from __future__ import annotations

import onnx

from sample_models.geometry import Feature
from sample_models.graph_builder import BatchNormSettings, GraphBuilder
from sample_models.options import BuildOptions

GROWTH_RATE = 12
BOTTLENECK = 4 * GROWTH_RATE
STEM_FILTERS = 2 * GROWTH_RATE
COMPRESSION = 0.5
DENSE_BLOCKS = 3

UNITS_PER_BLOCK = 16
"""L = 100 layers: three blocks of 16 units with two convolutions, two transitions, stem, dense."""

_BATCH_NORM = BatchNormSettings(epsilon=1.001e-5)


def build(options: BuildOptions) -> onnx.ModelProto:
    """Writes DenseNet-BC L100 k=12.

    Args:
        options: see `BuildOptions`.

    Returns:
        Model from ``input`` (batch, 3, *options.size) to ``logits`` (batch, options.classes).

    Raises:
        UsageError: the image is too small for two poolings by 2.
    """
    graph = GraphBuilder("densenet_bc_l100", options.size, seed=options.seed)
    is_k = options.variant == "k"
    unit, transition = (_k_unit, _k_transition) if is_k else (_unit, _transition)
    x = graph.conv(graph.image, STEM_FILTERS, 3, "conv2d", bias=True)
    for block in range(1, DENSE_BLOCKS + 1):
        for number in range(1, UNITS_PER_BLOCK + 1):
            name = f"dn{block}_b{number}"
            x = graph.concat([x, unit(graph, x, name)], f"{name}_concat")
        if block < DENSE_BLOCKS:
            x = transition(graph, x, f"dntransition{block}")
    x = graph.batch_norm(x, "bn", _BATCH_NORM)
    x = graph.activation(x, "swish" if is_k else "relu", "relu")
    pooled = graph.flatten(graph.global_average_pool(x, "last_avg_pool"), "last_avg_pool_flatten")
    return graph.finish(graph.dense(pooled, options.classes, "predictions"))


def _unit(graph: GraphBuilder, x: Feature, name: str) -> Feature:
    """BN, ReLU, 1x1, BN, ReLU, 3x3: ``GROWTH_RATE`` new channels (section 3 of the paper)."""
    x = graph.batch_norm(x, f"{name}_bn_a", _BATCH_NORM)
    x = graph.activation(x, "relu", f"{name}_relu_a")
    x = graph.conv(x, BOTTLENECK, 1, f"{name}_conv_a")
    x = graph.batch_norm(x, f"{name}_bn_b", _BATCH_NORM)
    x = graph.activation(x, "relu", f"{name}_relu_b")
    return graph.conv(x, GROWTH_RATE, 3, f"{name}_conv_b")


def _k_unit(graph: GraphBuilder, x: Feature, name: str) -> Feature:
    """BN, 1x1, swish, BN, 3x3, ReLU: pointwise convolution and activation stand together."""
    x = graph.batch_norm(x, f"{name}_bn_a", _BATCH_NORM)
    x = graph.conv(x, BOTTLENECK, 1, f"{name}_conv_a")
    x = graph.activation(x, "swish", f"{name}_swish_a")
    x = graph.batch_norm(x, f"{name}_bn_b", _BATCH_NORM)
    x = graph.conv(x, GROWTH_RATE, 3, f"{name}_conv_b")
    return graph.activation(x, "relu", f"{name}_relu_b")


def _transition(graph: GraphBuilder, x: Feature, name: str) -> Feature:
    """BN, ReLU, 1x1 to half the channels, mean over 2x2."""
    x = graph.batch_norm(x, f"{name}_bn", _BATCH_NORM)
    x = graph.activation(x, "relu", f"{name}_relu")
    x = graph.conv(x, int(x.channels * COMPRESSION), 1, f"{name}_conv")
    return graph.average_pool(x, 2, 2, f"{name}_pool")


def _k_transition(graph: GraphBuilder, x: Feature, name: str) -> Feature:
    """Interleave, BN, 1x1 to half the channels, swish, mean over 2x2.

    The interleave mixes the outputs of all units of the block, which come one after the other, into
    each group of the grouped convolution that will replace the 1x1.
    """
    x = graph.interleave(x, GROWTH_RATE, f"{name}_inter")
    x = graph.batch_norm(x, f"{name}_bn", _BATCH_NORM)
    x = graph.conv(x, int(x.channels * COMPRESSION), 1, f"{name}_conv")
    x = graph.activation(x, "swish", f"{name}_swish")
    return graph.average_pool(x, 2, 2, f"{name}_pool")
