"""Group layouts: which channels a grouped pointwise convolution reads and which filters it makes.

The arithmetic of the published schemes, to the last edge case, in plain Python:

* V1, "with divisibility constraints": Schwarz Schuler et al., "Grouped Pointwise Convolutions
  Significantly Reduces Parameters in EfficientNet", CCIA 2021, and "Grouped Pointwise Convolutions
  Reduce Parameters in Convolutional Neural Networks", Mendel 28(1), 2022.
* V2, "without divisibility constraints": Schwarz Schuler et al., "An Enhanced Scheme for Reducing
  the Complexity of Pointwise Convolutions in CNNs for Image Classification Based on Interleaved
  Grouped Filters without Divisibility Constraints", Entropy 24(9), 2022.

Notation: a pointwise convolution has C input channels and F filters; ``ch`` is the schemes' only
hyper-parameter. K and L are grouped pointwise convolutions, P is the channel interleave between
them, and a rewritten layer computes ``y = L P K x + K x``, or ``y = K x`` where there is no L.

The same vocabulary describes a wider family, whose members :mod:`onnx_igpc.layout.extended` makes:
``y = L P K x`` without the sum, D intermediate channels, groups of any channels and of any sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import gcd
from typing import Literal

from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout, GroupPath
from onnx_igpc.layout.permutations import interleave_permutation

Scheme = Literal["v1", "v2"]
SCHEMES: tuple[Scheme, ...] = ("v1", "v2")


# A network repeats its layers, and every layout is asked for again when it is reported.
@lru_cache(maxsize=256)
def plan_layout(
    in_channels: int, out_channels: int, channels_per_group: int, scheme: str = "v2"
) -> GroupLayout:
    """The layout that ``scheme`` gives a pointwise convolution.

    In V1 ``channels_per_group`` is the least number of channels per group of K; in V2 it is the
    exact number, except where there are fewer filters than groups.

    Raises:
        ValueError: a number below 1, or an unknown scheme.
    """
    for name, value in (
        ("in_channels", in_channels),
        ("out_channels", out_channels),
        ("channels_per_group", channels_per_group),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if scheme == "v1":
        return _plan_v1(in_channels, out_channels, channels_per_group)
    if scheme == "v2":
        return _plan_v2(in_channels, out_channels, channels_per_group)
    raise ValueError(f"unknown scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")


def _dense_stage(in_channels: int, out_channels: int) -> GroupedStage:
    path = GroupPath(1, in_channels, out_channels, tuple(range(in_channels)))
    return GroupedStage(in_channels, (path,))


def _kept(scheme: Scheme, C: int, F: int, ch: int, reason: str) -> GroupLayout:
    return GroupLayout(scheme, C, F, ch, _dense_stage(C, F), kept_reason=reason)


def _interleave_or_none(channels: int, step: int) -> tuple[int, ...] | None:
    permutation = interleave_permutation(channels, step)
    return None if permutation == tuple(range(channels)) else permutation


def _plan_v1(C: int, F: int, ch: int) -> GroupLayout:
    """V1: as many groups as the largest common divisor of C and F that leaves ch channels each."""
    groups = _largest_common_divisor(C, F, at_most=max(1, C // ch))
    if groups == 1:
        if C < 2 * ch:
            reason = f"{C} channels is fewer than 2 x {ch}"
        else:
            reason = f"{C} channels and {F} filters share no divisor from 2 to {C // ch}"
        return _kept("v1", C, F, ch, reason)
    k = _even_stage(C, F, groups)
    permutation = _interleave_or_none(F, F // groups)
    if C >= F:
        return GroupLayout("v1", C, F, ch, k, l=_even_stage(F, F, groups), interleave=permutation)
    return GroupLayout("v1", C, F, ch, k, output_interleave=permutation)


def _largest_common_divisor(a: int, b: int, at_most: int) -> int:
    common = gcd(a, b)
    return max(d for d in _divisors(common) if d <= at_most)


def _divisors(number: int) -> Iterable[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return {*small, *(number // d for d in small)}


def _even_stage(in_channels: int, out_channels: int, groups: int) -> GroupedStage:
    path = GroupPath(
        groups, in_channels // groups, out_channels // groups, tuple(range(in_channels))
    )
    return GroupedStage(in_channels, (path,))


def _plan_v2(C: int, F: int, ch: int) -> GroupLayout:
    """V2: groups of exactly ch channels, made up with copies of the first input channels."""
    if not (C > 2 * ch or (F > C and C > ch)):
        limit = f"{ch}" if F > C else f"2 x {ch}"
        return _kept("v2", C, F, ch, f"{C} channels is not more than {limit}")
    if F == 1:
        return _kept("v2", C, F, ch, "a single filter cannot be split into groups")
    k = _replicated_stage(C, F, ch)
    if F > C:
        return GroupLayout("v2", C, F, ch, k)
    return GroupLayout(
        "v2", C, F, ch, k, l=_replicated_stage(F, F, ch), interleave=_interleave_or_none(F, F // ch)
    )


def _replicated_stage(C: int, F: int, ch: int) -> GroupedStage:
    """The papers' grouped convolution without divisibility constraints (Entropy 2022, section 3)."""
    groups = min(-(-C // ch), F)
    if groups == 1:
        return _dense_stage(C, F)
    # With fewer filters than groups of ch channels, groups are as many as filters and wider.
    width = ch if groups * ch >= C else -(-C // groups)
    gathered = tuple(i % C for i in range(groups * width))
    base, extra = divmod(F, groups)
    paths = [GroupPath(groups, width, base, gathered)]
    if extra:
        paths.append(GroupPath(extra, width, 1, gathered[: width * extra]))
    return GroupedStage(C, tuple(paths))
