"""Builders of the networks of the grouped pointwise convolution papers and a few more, straight to ONNX.

Not installed: import it from the root of a clone, or run ``python -m sample_models``. BatchNorm
layers are kept, the batch dimension is dynamic, the weights are random (nothing is downloaded).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import onnx

from onnx_igpc.errors import UsageError
from sample_models import (
    cifar_net,
    densenet,
    digits_net,
    efficientnet,
    inception_v3,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    resnet50,
)
from sample_models.options import BuildOptions, Network, Variant

__all__ = ["NETWORKS", "BuildOptions", "Network", "Variant", "build", "paper_excludes"]


def _efficientnets() -> dict[str, Network]:
    return {
        f"efficientnet_{scale}": Network(
            partial(efficientnet.build, scale),
            size=(scaling.resolution, scaling.resolution),
            takes=frozenset({"skip_stride"}),
        )
        for scale, scaling in efficientnet.SCALINGS.items()
    }


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        **_efficientnets(),
        "mobilenet_v1": Network(mobilenet_v1.build, size=(224, 224), takes=frozenset({"alpha"})),
        "mobilenet_v2": Network(
            mobilenet_v2.build,
            size=(224, 224),
            variants=("plain",),
            takes=frozenset({"alpha"}),
        ),
        "mobilenet_v3_large": Network(
            mobilenet_v3.build, size=(224, 224), takes=frozenset({"alpha"})
        ),
        "densenet_bc_l100": Network(densenet.build, size=(32, 32), classes=10),
        "inception_v3": Network(
            inception_v3.build, size=(299, 299), kept_in_paper=inception_v3.KEPT_IN_PAPER
        ),
        "resnet50": Network(resnet50.build, size=(224, 224), variants=("plain",)),
        "cifar_net": Network(
            cifar_net.build,
            size=(32, 32),
            classes=10,
            variants=("plain",),
            takes=frozenset({"alpha"}),
        ),
        "digits_net": Network(
            digits_net.build,
            size=(8, 8),
            classes=10,
            variants=("plain",),
            takes=frozenset({"alpha"}),
        ),
    }
)
"""Every network by name."""


def build(
    name: str,
    *,
    variant: Variant = "plain",
    classes: int | None = None,
    size: int | tuple[int, int] | None = None,
    alpha: float = 1.0,
    skip_stride: int | None = None,
    seed: int = 0,
) -> onnx.ModelProto:
    """Builds a network with random weights.

    Args:
        name: a key of `NETWORKS`.
        variant: ``plain``, the network of its own paper; or ``k``, what the published network with
            grouped pointwise convolutions is a rewrite of.
        classes: number of classes; None takes the network's default.
        size: side of the square input image, or (height, width); None takes the default.
        alpha: width multiplier (MobileNets and digits_net).
        skip_stride: EfficientNet for small images: the stem and the first ``skip_stride`` stages
            keep the resolution. The k networks for 32x32 images use 3.
        seed: seed of the weights.

    Returns:
        Model from ``input`` (batch, channels, height, width) to ``logits`` (batch, classes), both
        float32.

    Raises:
        UsageError: unknown name, an option that the network does not have, or a value that makes
            no network.
    """
    network = NETWORKS.get(name)
    if network is None:
        raise UsageError(f"unknown network {name!r}; choose one of {', '.join(NETWORKS)}")
    options = BuildOptions(
        classes=network.classes if classes is None else classes,
        size=network.size if size is None else (size, size) if isinstance(size, int) else size,
        variant=variant,
        seed=seed,
        alpha=alpha,
        skip_stride=skip_stride,
    )
    _check(name, network, options)
    return network.build(options)


def paper_excludes(name: str) -> tuple[str, ...]:
    """Globs of node names that the published k network of ``name`` leaves dense.

    Raises:
        UsageError: unknown name.
    """
    if name not in NETWORKS:
        raise UsageError(f"unknown network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name].kept_in_paper


def _check(name: str, network: Network, options: BuildOptions) -> None:
    """Raises UsageError for what no builder of this network can heed."""
    if options.variant not in network.variants:
        known = " or ".join(network.variants)
        raise UsageError(f"{name} has no variant {options.variant!r}; it has {known}")
    if options.classes < 1:
        raise UsageError(f"a network needs at least one class, not {options.classes}")
    if min(options.size) < 1:
        raise UsageError(f"an image of {options.size[0]}x{options.size[1]} pixels has no pixels")
    if options.seed < 0:
        raise UsageError(f"the seed must not be negative, but is {options.seed}")
    if options.alpha != 1.0 and "alpha" not in network.takes:
        raise UsageError(f"{name} has no width multiplier; leave out --alpha")
    # Below 1/32 the first layer would have no filter; above 8 the model would not fit one file.
    if not 1 / 32 <= options.alpha <= 8:
        raise UsageError(f"--alpha must lie between 1/32 and 8, but is {options.alpha:g}")
    if options.skip_stride is not None:
        if "skip_stride" not in network.takes:
            raise UsageError("only EfficientNets can skip strides; leave out --skip-stride")
        if options.skip_stride < 0:
            raise UsageError(f"--skip-stride must not be negative, but is {options.skip_stride}")
