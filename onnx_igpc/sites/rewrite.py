"""What becomes of a site, and the functions that decide it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.sites.find import PointwiseSite
from onnx_igpc.sites.igpc_nodes import SiteTensors, StageIo

Form = Literal["linear", "paper"]


Planner = Callable[[PointwiseSite], GroupLayout]


# Given the site, its layout and the scale that a following BatchNorm gives each filter.
Weigher = Callable[
    [PointwiseSite, GroupLayout, np.ndarray | None], tuple[IgpcWeights, float | None]
]


# Given the site, its layout and new weights: the bias that goes with them, None for the one it has.
Rebiaser = Callable[[PointwiseSite, GroupLayout, IgpcWeights], np.ndarray | None]


@dataclass(frozen=True, eq=False)
class SiteRewrite:
    """What became of one site: kept with a reason, or rewritten, and then where everything is.

    ``nodes`` were inserted where the ``replaced``
    ones were. ``stages`` has what K and L read and make; ``input`` and ``output`` are the tensors that the
    whole site reads and makes; ``convolutions`` are the first outputs of the grouped convolutions,
    ``bias`` the values that are added once (linear form), shape (F,).
    """

    site: PointwiseSite
    kept_reason: str | None = None
    layout: GroupLayout | None = None
    form: Form = "linear"
    error: float | None = None
    tensors: SiteTensors | None = None
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
