"""What a budget chose, as part of the report tree."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from onnx_igpc.report.typed_json import IfKnown


@dataclass(kw_only=True)
class TriedShare:
    """A choice under a budget of time: its time as a share of the dense model's, and its damage."""

    predicted: float
    measured: float
    damage: float


@dataclass(kw_only=True)
class LatencyReport:
    """The choice taken under a budget of time, and all ``tried``; ``precision`` as in :class:`LoweringReport`."""

    precision: IfKnown[str] = None
    predicted: float
    measured: float
    damage: float
    dense_seconds: float
    tried: list[TriedShare]


@dataclass(kw_only=True)
class TriedPlan:
    """A whole plan that was fitted and measured on data left out of the fits.

    ``share`` is what it leaves of what the budget counts, ``predicted`` the sum of its sites' damages,
    ``measured`` the damage of the whole, ``agreement`` in [0, 1] for a model with class scores.
    """

    share: float
    predicted: float
    measured: float
    agreement: IfKnown[float] = None


SelectedUnit = Literal["blocks", "channels"]


@dataclass(kw_only=True)
class SelectionReport:
    """What a budget chose.

    ``measure`` is that of the damage, of whole plans on ``samples``, each by fits that it had no part in; of single
    sites on about 50 of them. ``curve`` has the share left and the least predicted damage, ``chosen`` what was taken;
    ``tried`` are the plans that were measured as a whole, that one last. ``unit``: what was
    chosen from, where not the layouts of sites.
    """

    target: str
    family: str
    grouping: str
    measure: str
    samples: int | None
    predicted_damage: float
    measured_damage: IfKnown[float] = None
    curve: list[tuple[float, float]]
    chosen: tuple[float, float]
    unit: IfKnown[SelectedUnit] = None
    damage_by_site: dict[str, float]
    tried: IfKnown[list[TriedPlan]] = None
    latency: IfKnown[LatencyReport] = None

    def portable(self) -> SelectionReport:
        return replace(self, latency=None)
