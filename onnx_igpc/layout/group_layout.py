"""What a layout is: the paths, stages and permutations of one interleaved grouped pointwise convolution."""

from __future__ import annotations

from dataclasses import dataclass


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
