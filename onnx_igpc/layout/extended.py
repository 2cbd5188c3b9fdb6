"""Layouts beyond the published ones, made of the same parts: K, an interleave, L and perhaps a sum.

The freedom from divisibility of the papers' V2, taken further: each group of K reads channels of
any choice and number and makes any number of rows (intermediate channels), D of them together; each
group of L reads rows of any choice. Published V2 is the corner D = F with the sum, low rank
(``y = L K x`` with dense K and L) the corner with one group each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout, GroupPath
from onnx_igpc.layout.permutations import invert_permutation

EXTENDED = "extended"

KGroup = tuple[Sequence[int], int]
"""A group of K: the input channels that it reads and the number of rows that it makes."""

LGroup = tuple[Sequence[int], Sequence[int]]
"""A group of L: the rows of K that it reads and the filters that it makes."""

# Input channels, filters and, among all groups of a stage, the position of one group.
_Group = tuple[tuple[int, ...], int, int]


def extended_layout(
    in_channels: int,
    out_channels: int,
    k_groups: Sequence[KGroup],
    l_groups: int | Sequence[LGroup] | None = 1,
    *,
    has_sum: bool = False,
) -> GroupLayout:
    """The layout whose K and L have the given groups.

    Rows of K are numbered group by group as ``k_groups`` lists them. Groups of one size become one
    grouped convolution; without the sum, rows are moved so that they can. A group without rows is
    left out.

    Args:
        in_channels: C.
        out_channels: F.
        k_groups: the groups of K; a group may read any channels, also those of another group.
        l_groups: the groups of L, which share out all rows and all filters; or their number h, for
            contiguous filters in equal parts and the rows of each group of K shared out alike; or
            ``None`` for K alone. With the sum, row p of K is added to the p-th filter that
            ``l_groups`` lists.
        has_sum: whether K's output is added to L's. K must make F rows then, as it must alone.

    Raises:
        ValueError: channels, rows or filters that do not exist or are left over.
    """
    C, F = in_channels, out_channels
    made = [(tuple(inputs), rows) for inputs, rows in k_groups if rows]
    _check_k(C, F, made, fixed=has_sum or l_groups is None)
    parts = _numbered(made)
    k, positions = _stage(C, parts, ordered=has_sum or l_groups is None)
    width = max(path.channels_per_group for path in k.paths)
    if l_groups is None:
        return GroupLayout(EXTENDED, C, F, width, k, has_sum=False)
    if isinstance(l_groups, int):
        l_groups = _contiguous_l_groups(F, [rows for _, rows in made], l_groups)
    _check_l(F, k.out_channels, l_groups)
    reads = [sorted(positions[row] for row in rows) for rows, _ in l_groups]
    filters = [f for _, group in l_groups for f in group]
    in_order = has_sum or filters == list(range(F))
    starts = [sum(len(rows) for rows in reads[:index]) for index in range(len(reads))]
    l_parts = _numbered(
        [
            (tuple(range(start, start + len(rows))), len(group))
            for start, rows, (_, group) in zip(starts, reads, l_groups, strict=True)
        ]
    )
    l_stage, l_positions = _stage(k.out_channels, l_parts, ordered=in_order)
    interleave = [row for rows in reads for row in rows]
    order = [0] * F
    for position, f in zip(l_positions, filters, strict=True):
        order[f] = position
    # The groups' slices come path by path, so that the interleave takes what they would gather.
    gathered = [interleave[i] for path in l_stage.paths for i in path.inputs]
    return GroupLayout(
        EXTENDED,
        C,
        F,
        width,
        k,
        l=_reading_in_order(l_stage),
        interleave=_unless_identity(gathered),
        output_interleave=_unless_identity(order),
        has_sum=has_sum,
    )


def k_row_positions(in_channels: int, k_groups: Sequence[KGroup]) -> list[int]:
    """Where each row, as ``k_groups`` numbers them, lies in K of a layout without the sum."""
    made = [(tuple(inputs), rows) for inputs, rows in k_groups if rows]
    return _stage(in_channels, _numbered(made), ordered=False)[1]


def low_rank_layout(in_channels: int, out_channels: int, rank: int) -> GroupLayout:
    """y = L K x with dense K and L and ``rank`` intermediate channels; raises as above."""
    return extended_layout(in_channels, out_channels, [(range(in_channels), rank)])


def dense_layout(in_channels: int, out_channels: int, reason: str) -> GroupLayout:
    """The layer as it is, kept for ``reason``."""
    path = GroupPath(1, in_channels, out_channels, tuple(range(in_channels)))
    stage = GroupedStage(in_channels, (path,))
    return GroupLayout(
        EXTENDED, in_channels, out_channels, in_channels, stage, kept_reason=reason, has_sum=False
    )


def with_input_order(layout: GroupLayout, order: Sequence[int]) -> GroupLayout:
    """The layout that reads ``x[order]`` as ``layout`` reads x.

    Raises:
        ValueError: ``order`` is not a permutation of the input channels.
    """
    if sorted(order) != list(range(layout.in_channels)):
        raise ValueError(f"not an order of {layout.in_channels} input channels")
    paths = tuple(
        replace(path, inputs=tuple(order[i] for i in path.inputs)) for path in layout.k.paths
    )
    return replace(layout, k=replace(layout.k, paths=paths))


def without_input_order(layout: GroupLayout) -> tuple[GroupLayout, tuple[int, ...]]:
    """The layout for ``x[order]`` that needs no reordering, and ``order``.

    ``with_input_order`` undoes it. This is what a layer becomes whose producer takes over the order.
    """
    order = layout.k.input_order
    missing = sorted(set(range(layout.in_channels)) - set(order))
    order += tuple(missing)
    return with_input_order(layout, invert_permutation(order)), order


def _check_k(C: int, F: int, groups: Sequence[tuple[tuple[int, ...], int]], fixed: bool) -> None:
    if not groups:
        raise ValueError("K has no rows")
    for inputs, rows in groups:
        if rows < 0 or not inputs or len(set(inputs)) < len(inputs):
            raise ValueError("a group of K needs rows, and input channels that are all different")
        if min(inputs) < 0 or max(inputs) >= C:
            raise ValueError(f"a group of K reads a channel that is not among the {C}")
    total = sum(rows for _, rows in groups)
    if fixed and total != F:
        raise ValueError(f"K makes {total} rows, but {F} are added to L's output or are the output")


def _check_l(F: int, rows: int, groups: Sequence[LGroup]) -> None:
    if any(not len(read) or not len(made) for read, made in groups):
        raise ValueError("a group of L without rows to read or filters to make")
    if sorted(row for read, _ in groups for row in read) != list(range(rows)):
        raise ValueError(f"the groups of L do not share out the {rows} rows of K")
    if sorted(f for _, made in groups for f in made) != list(range(F)):
        raise ValueError(f"the groups of L do not share out the {F} filters")


def _contiguous_l_groups(F: int, rows: Sequence[int], groups: int) -> list[LGroup]:
    """``groups`` groups of L over contiguous filters, each with its part of every group's rows."""
    read: list[list[int]] = [[] for _ in range(groups)]
    first = 0
    for count in rows:
        for index, part in enumerate(_shares(count, groups)):
            read[index].extend(range(first, first + part))
            first += part
    made: list[range] = []
    for part in _shares(F, groups):
        start = made[-1].stop if made else 0
        made.append(range(start, start + part))
    return list(zip(read, made, strict=True))


def _shares(total: int, parts: int) -> list[int]:
    return [(index + 1) * total // parts - index * total // parts for index in range(parts)]


def _numbered(groups: Sequence[tuple[tuple[int, ...], int]]) -> list[_Group]:
    return [(inputs, count, index) for index, (inputs, count) in enumerate(groups)]


def _stage(
    in_channels: int, groups: Sequence[_Group], ordered: bool
) -> tuple[GroupedStage, list[int]]:
    """A stage with one path for each size of group, and where each row came to lie.

    With ``ordered`` rows stay where they are: only neighbours share a path.
    """

    def size(group: _Group) -> tuple[int, int]:
        return len(group[0]), group[1]

    if not ordered:
        first_of_size = {size(group): group[2] for group in reversed(groups)}
        groups = sorted(groups, key=lambda group: first_of_size[size(group)])
    buckets = [list(bucket) for _, bucket in groupby(groups, key=size)]
    # A group that reads everything may read it in any order: that in which the others do.
    narrow = [i for b in buckets for inputs, *_ in b for i in inputs if len(inputs) < in_channels]
    everything = tuple(dict.fromkeys([*narrow, *range(in_channels)]))
    paths = []
    starts: dict[int, int] = {}
    row = 0
    for bucket in buckets:
        width, count = size(bucket[0])
        inputs = everything * len(bucket) if width == in_channels else _joined(bucket)
        paths.append(GroupPath(len(bucket), width, count, inputs))
        for _, made, index in bucket:
            starts[index] = row
            row += made
    by_index = sorted(groups, key=lambda group: group[2])
    positions = [starts[index] + offset for _, made, index in by_index for offset in range(made)]
    return GroupedStage(in_channels, tuple(paths)), positions


def _joined(bucket: Sequence[_Group]) -> tuple[int, ...]:
    return tuple(i for inputs, *_ in bucket for i in inputs)


def _reading_in_order(stage: GroupedStage) -> GroupedStage:
    """The stage with paths that read one slice after the other."""
    paths = []
    first = 0
    for path in stage.paths:
        last = first + len(path.inputs)
        paths.append(replace(path, inputs=tuple(range(first, last))))
        first = last
    return replace(stage, paths=tuple(paths))


def _unless_identity(order: Sequence[int]) -> tuple[int, ...] | None:
    return None if list(order) == list(range(len(order))) else tuple(order)
