"""What is trained: the small network that a CPU can train within the hour, and a full-size one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx

from onnx_igpc.torch_bridge.training.recipe import Recipe
from sample_models import build

HERE = Path(__file__).parent
_AUGMENT = ("flip", "shift=4")


_FROM_SCRATCH = Recipe(
    optimizer="sgd",
    lr=0.1,
    weight_decay=5e-4,
    batch_size=128,
    warmup=0.1,
    augment=_AUGMENT,
    amp="bf16",
)


@dataclass(frozen=True)
class Setup:
    """A network and its recipes.

    Attributes:
        build: makes the untrained network.
        baseline: recipes of the baseline, one after the other; it learns from labels, and is the mean of what
            they end with.
        arms: recipe of every arm; the arm decides ``feature_loss`` and ``seed``.
        arm_images: how many of the training images an arm gets; None for all.
        trained: the baseline that is kept beside the code, if there is one.
        published: makes the network that the published ones are rewrites of; they are trained from
            scratch with the baseline's recipes, in the paper's form.
        published_channels: channels per group of these.
    """

    build: Callable[[], onnx.ModelProto]
    baseline: tuple[Recipe, ...]
    arms: Recipe
    arm_images: int | None = None
    trained: Path | None = None
    published: Callable[[], onnx.ModelProto] | None = None
    published_channels: tuple[int, ...] = ()


SETUPS = {
    "small": Setup(
        build=partial(build, "cifar_net"),
        baseline=(
            replace(_FROM_SCRATCH, epochs=26, schedule="linear"),
            replace(_FROM_SCRATCH, epochs=8, lr=0.03, warmup=0.05, schedule="linear", seed=1),
        ),
        # 2,343 steps of 64 images, where the baseline has 13,260 of 128.
        arms=Recipe(base="many", epochs=3, augment=_AUGMENT, amp="bf16"),
        trained=HERE / "baseline.onnx",
    ),
    # The network of the papers for 32x32 images: the first strides skipped, variants of 16 and 32
    # channels per group (Schwarz Schuler et al. 2022, Entropy 24(9), 1264).
    "full": Setup(
        build=partial(build, "efficientnet_b0", size=32, classes=10, skip_stride=3),
        baseline=(replace(_FROM_SCRATCH, epochs=50),),
        arms=Recipe(base="many", epochs=10, augment=_AUGMENT, amp="bf16"),
        published=partial(
            build, "efficientnet_b0", variant="k", size=32, classes=10, skip_stride=3
        ),
        published_channels=(16, 32),
    ),
}
"""By the name that ``--setup`` takes."""
