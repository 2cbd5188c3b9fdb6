"""The arms: the dense network, the published ones, and one whose interleaves are taken out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import onnx

import onnx_igpc
from benchmarks.cifar10.setups import SETUPS as CIFAR10_SETUPS
from onnx_igpc.calibration.fitters import RandomFitter
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.passes import GroupPointwise
from onnx_igpc.report.result import open_copy
from onnx_igpc.sites.find import Rewritable
from onnx_igpc.torch_bridge.training.recipe import Recipe
from sample_models import build


@dataclass(frozen=True)
class Arm:
    """One network and the seed of its weights, of the order of the images and of their augmentation.

    Attributes:
        scheme: ``v1`` or ``v2``; None is the dense network.
        channels: channels per group.
        interleaved: whether the channels are interleaved between K and L, and behind K where the
            scheme does that.
    """

    scheme: str | None = None
    channels: int = 0
    interleaved: bool = True
    seed: int = 0

    @property
    def plain_name(self) -> str:
        """The name without the seed, as ``v2-16``; what ``--arm`` matches."""
        if self.scheme is None:
            return "dense"
        return f"{self.scheme}-{self.channels}" + ("" if self.interleaved else "-not-interleaved")

    @property
    def name(self) -> str:
        return f"{self.plain_name}-{self.seed}"

    @property
    def label(self) -> str:
        """What a table calls it."""
        if self.scheme is None:
            return "dense"
        words = f"{self.scheme.upper()}, {self.channels} channels per group"
        return words if self.interleaved else f"{words}, not interleaved"


ALL_ARMS = (
    Arm(),
    Arm("v2", 16),
    Arm("v2", 16, interleaved=False),
    Arm("v2", 32),
    Arm("v1", 16),
    Arm("v1", 32),
)
"""The most telling first."""


@dataclass(frozen=True)
class Setup:
    """What is trained, and how.

    Attributes:
        dense: makes the dense network with the weights of a ``seed``.
        skeleton: makes the network that the published ones are rewrites of.
        recipe: of every arm; the arm decides the seed.
        arms: of the setup, without their seeds.
    """

    dense: Callable[..., onnx.ModelProto]
    skeleton: Callable[..., onnx.ModelProto]
    recipe: Recipe
    arms: tuple[Arm, ...] = ALL_ARMS

    def seeded_arms(self, seeds: int) -> list[Arm]:
        """Every arm with every seed: all arms with the first one first."""
        return [replace(arm, seed=seed) for seed in range(seeds) for arm in self.arms]

    def untrained(self, arm: Arm) -> onnx.ModelProto:
        """The network of an arm with random weights."""
        if arm.scheme is None:
            return self.dense(seed=arm.seed)
        skeleton = self.skeleton(seed=arm.seed)
        if not arm.interleaved:
            return without_interleaves(skeleton, arm)
        return onnx_igpc.compress(
            skeleton,
            onnx_igpc.Published(arm.channels, scheme=arm.scheme, form="paper", seed=arm.seed),
        ).model


_CIFAR_NET = partial(build, "cifar_net")
_EFFICIENTNET = partial(build, "efficientnet_b0", size=32, classes=10, skip_stride=3)
_TINY = partial(build, "cifar_net", alpha=0.5)

SETUPS = {
    # The recipe of the first stage of benchmarks/cifar10, of which this network is the baseline.
    "small": Setup(_CIFAR_NET, _CIFAR_NET, CIFAR10_SETUPS["small"].baseline[0]),
    "full": Setup(
        _EFFICIENTNET,
        partial(_EFFICIENTNET, variant="k"),
        CIFAR10_SETUPS["full"].baseline[0],
        (Arm(), Arm("v2", 16), Arm("v2", 32)),
    ),
    "tiny": Setup(
        _TINY, _TINY, replace(CIFAR10_SETUPS["small"].baseline[0], epochs=1, batch_size=8, lr=0.01)
    ),
}
"""By the name that ``--setup`` takes."""


def without_interleaves(skeleton: onnx.ModelProto, arm: Arm) -> onnx.ModelProto:
    """The published network of an arm with every interleave replaced by the identity.

    K and L start with the weights that they have in the interleaved network of the same seed.
    """
    assert arm.scheme is not None
    scheme = arm.scheme

    def plan(site: Rewritable) -> GroupLayout:
        layout = plan_layout(site.in_channels, site.out_channels, arm.channels, scheme)
        return replace(layout, interleave=None, output_interleave=None)

    opened = open_copy(skeleton)
    GroupPointwise(plan, RandomFitter(arm.seed, paper=True).weigh, "paper").run(opened)
    return opened.proto
