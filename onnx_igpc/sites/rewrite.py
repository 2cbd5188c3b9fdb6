"""What becomes of a site, and the functions that decide it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.graph.traversal import NodeHolder
from onnx_igpc.layout.extended import dense_layout
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.sites.find import Kept, Rewritable


@dataclass
class SiteTensors:
    """Names of the constants of one rewritten weight, shared by all sites that share the weight."""

    holder: NodeHolder
    k: list[str] = field(default_factory=list)
    l: list[str] = field(default_factory=list)  # noqa: E741 - the paper's name
    indices: dict[tuple[int, ...], str] = field(default_factory=dict)


@dataclass(frozen=True)
class StageIo:
    """What a stage reads and makes: tensor names, for checking the written graph."""

    input: str
    output: str


Form = Literal["linear", "paper"]
Planner = Callable[[Rewritable], GroupLayout]
# Given the site, its layout and the scale that a following BatchNorm gives each filter.
Weigher = Callable[[Rewritable, GroupLayout, np.ndarray | None], tuple[IgpcWeights, float | None]]
# Given the site, its layout and new weights: the bias that goes with them, None for the one it has.
Rebiaser = Callable[[Rewritable, GroupLayout, IgpcWeights], np.ndarray | None]


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A site that was rewritten, and where everything is.

    ``nodes`` were inserted where the ``replaced``
    ones were. ``stages`` has what K and L read and make; ``input`` and ``output`` are the tensors that the
    whole site reads and makes; ``convolutions`` are the first outputs of the grouped convolutions,
    ``bias`` the values that are added once (linear form), shape (F,).
    """

    site: Rewritable
    layout: GroupLayout
    tensors: SiteTensors
    form: Form = "linear"
    error: float | None = None
    stages: dict[str, StageIo] = field(default_factory=dict)
    bias: np.ndarray | None = None
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    input: str = ""
    output: str = ""
    nodes: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    convolutions: tuple[str, ...] = ()
    shares_weight_with: str | None = None
    activation: str | None = None


def kept_layout(site: Rewritable, reason: str) -> GroupLayout:
    """The dense layout of a site that is kept for ``reason``."""
    return dense_layout(site.in_channels, site.out_channels, reason)


def site_identity(site: Rewritable) -> tuple[object, ...]:
    """Equal for sites that read one stored weight and see the same values."""
    plain = all(link.op_type in ("Identity", "Constant") for link in site.weight.chain)
    seen = "" if plain else hashlib.sha256(site.weight.values().tobytes()).hexdigest()
    return id(site.weight.root), seen, str(site.dtype), site.spatial_rank


# What became of a pointwise convolution.
Outcome = Rewritten | Kept


class Fitter(Protocol):
    """Gives sites their weights, in graph order: for each site ``weigh`` where its weight is new, then
    ``rebias``."""

    def weigh(
        self, site: Rewritable, layout: GroupLayout, scale: np.ndarray | None
    ) -> tuple[IgpcWeights, float | None]:
        """Weights of K and L and their relative error; ``scale``, (F,), is what a following BatchNorm
        multiplies each filter with."""

    def rebias(
        self, site: Rewritable, layout: GroupLayout, weights: IgpcWeights
    ) -> np.ndarray | None:
        """The bias, (F,), that goes with the weights; ``None`` for the one the site has."""
