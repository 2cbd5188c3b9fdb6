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

The same vocabulary describes a wider family, whose members :mod:`onnx_igpc.extended_layout` makes:
``y = L P K x`` without the sum, D intermediate channels, groups of any channels and of any sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Literal

Scheme = Literal["v1", "v2"]
SCHEMES: tuple[Scheme, ...] = ("v1", "v2")


@dataclass(frozen=True)
class GroupPath:
    """One grouped convolution: group g reads the g-th slice of ``inputs``.

    ``inputs`` indexes the channels of the stage's input and has
    ``groups * channels_per_group`` entries. The path makes ``groups * filters_per_group``
    consecutive filters, group by group.
    """

    groups: int
    channels_per_group: int
    filters_per_group: int
    inputs: tuple[int, ...]

    @property
    def filters(self) -> int:
        """Number of filters of all groups together."""
        return self.groups * self.filters_per_group

    @property
    def weight_shape(self) -> tuple[int, int]:
        """(filters, channels per group): the kernel without its spatial dimensions of 1."""
        return (self.filters, self.channels_per_group)

    @property
    def weights(self) -> int:
        """Number of weights of the kernel."""
        return self.filters * self.channels_per_group

    def group_inputs(self, group: int) -> tuple[int, ...]:
        """The input channels that ``group`` reads, in order."""
        start = group * self.channels_per_group
        return self.inputs[start : start + self.channels_per_group]


@dataclass(frozen=True)
class GroupedStage:
    """K or L: grouped convolutions over one input whose filters are concatenated path by path.

    Published groups with different numbers of filters take two paths: one with the filters that all
    groups have, one with a further filter for each of the first groups. Elsewhere in the family,
    each path has the groups of one size.
    """

    in_channels: int
    paths: tuple[GroupPath, ...]

    @property
    def out_channels(self) -> int:
        return sum(path.filters for path in self.paths)

    @property
    def weights(self) -> int:
        return sum(path.weights for path in self.paths)

    @property
    def groups(self) -> int:
        """Number of groups, counting a group that appears in several paths once."""
        first, *others = self.paths
        known = {first.group_inputs(group) for group in range(first.groups)}
        further = {path.group_inputs(group) for path in others for group in range(path.groups)}
        return first.groups + len(further - known)

    @property
    def channels_per_group(self) -> int:
        return self.paths[0].channels_per_group

    @property
    def reads_input_as_is(self) -> bool:
        """Whether the first path reads the whole input in order, so that it needs no Gather."""
        return self.paths[0].inputs == tuple(range(self.in_channels))

    @property
    def input_order(self) -> tuple[int, ...]:
        """Every channel that is read, in the order in which the paths first read it."""
        return tuple(dict.fromkeys(i for path in self.paths for i in path.inputs))

    @property
    def replicated(self) -> tuple[int, ...]:
        """Input channels appended once more to fill the last groups, in order (V2)."""
        return self.paths[0].inputs[self.in_channels :]


@dataclass(frozen=True)
class GroupLayout:
    """What one dense pointwise convolution becomes.

    Computes ``k = K(x)``; where there is an L, ``y = L(k[interleave]) + k``, or without ``has_sum``
    ``y = L(k[interleave])``, and otherwise ``y = k``; then ``y[output_interleave]``. An interleave
    of ``None`` is the identity. K makes F channels where they are the layer's or are added to it,
    and any number D otherwise. A layer that the scheme leaves alone has a ``kept_reason`` and one
    dense group as K.
    """

    scheme: str
    in_channels: int
    out_channels: int
    channels_per_group: int
    k: GroupedStage
    l: GroupedStage | None = None  # noqa: E741 - the paper's name
    interleave: tuple[int, ...] | None = None
    output_interleave: tuple[int, ...] | None = None
    kept_reason: str | None = None
    has_sum: bool = True

    @property
    def replaced(self) -> bool:
        """Whether the layer is rewritten at all."""
        return self.kept_reason is None

    @property
    def weights(self) -> int:
        """Weights of K and L together, without biases; C * F for a kept layer."""
        return self.k.weights + (self.l.weights if self.l else 0)

    @property
    def dense_weights(self) -> int:
        """Weights of the dense layer, C * F."""
        return self.in_channels * self.out_channels


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


def interleave_permutation(channels: int, step: int) -> tuple[int, ...]:
    """Indices of INTERLEAVE(x, step): ``out[p] = in[perm[p]]``, every ``step``-th channel first.

    ``channels`` need not be a multiple of ``step``; a step of 0 or 1 is the identity.
    """
    if step <= 1:
        return tuple(range(channels))
    return tuple(i for start in range(step) for i in range(start, channels, step))


def compose_gathers(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """Indices of one gather that equals gathering by ``first`` and then by ``second``."""
    return tuple(first[i] for i in second)


def invert_permutation(permutation: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes ``permutation``."""
    inverse = [0] * len(permutation)
    for position, source in enumerate(permutation):
        inverse[source] = position
    return tuple(inverse)


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
