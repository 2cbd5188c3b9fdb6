"""The options that the builders of all networks share, and what a network says about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import onnx

Variant = Literal["plain", "k"]


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        classes: number of classes, at least 1.
        size: (height, width) of the input image.
        variant: ``plain`` is the network of its own paper; ``k`` is what the network with grouped
            pointwise convolutions is a rewrite of, with dense convolutions still in place.
        seed: seed of the weights.
        alpha: width multiplier, where the network has one.
        skip_stride: EfficientNet for small images: the stem and all of the first ``skip_stride``
            stages keep the resolution; None builds the usual strides.
    """

    classes: int
    size: tuple[int, int]
    variant: Variant = "plain"
    seed: int = 0
    alpha: float = 1.0
    skip_stride: int | None = None


@dataclass(frozen=True)
class Network:
    """One entry of the registry.

    Attributes:
        build: writes the model.
        size: default (height, width) of the input image.
        classes: default number of classes.
        variants: the variants that differ from each other.
        takes: names among ``alpha`` and ``skip_stride`` that the builder heeds.
        kept_in_paper: globs of node names whose pointwise convolutions the published k network
            leaves dense although its rule would replace them. Classifier heads are not listed:
            they are Gemm nodes, or 1x1 convolutions that a rewriter recognises as heads.
    """

    build: Callable[[BuildOptions], onnx.ModelProto]
    size: tuple[int, int]
    classes: int = 1000
    variants: tuple[Variant, ...] = ("plain", "k")
    takes: frozenset[str] = field(default_factory=frozenset)
    kept_in_paper: tuple[str, ...] = ()
