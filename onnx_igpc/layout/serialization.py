"""Layouts as JSON, for the digest: published ones by their parameters, others by their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onnx_igpc.layout.extended import with_input_order, without_input_order
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout, GroupPath
from onnx_igpc.layout.schemes import SCHEMES, plan_layout

MAX_CHANNELS = 2**22


def layout_to_dict(layout: GroupLayout) -> dict[str, Any]:
    """Plain numbers, strings and lists that :func:`layout_from_dict` reads back.

    A published layout is its scheme, C, F and ch; one with channels in another order has
    ``input_order`` and ``interleave`` besides; any other has its paths.
    """
    data: dict[str, Any] = {
        "scheme": layout.scheme,
        "C": layout.in_channels,
        "F": layout.out_channels,
        "ch": layout.channels_per_group,
    }
    if layout.scheme in SCHEMES:
        published = _published(data)
        if layout == published:
            return data
        if layout.interleave is not None and layout.interleave != published.interleave:
            data["interleave"] = list(layout.interleave)
        _, order = without_input_order(layout)
        if order != tuple(range(layout.in_channels)):
            data["input_order"] = list(order)
        if _published(data) == layout:
            return data
    data = {key: data[key] for key in ("scheme", "C", "F", "ch")}
    data["k"] = _stage_to_list(layout.k)
    if layout.l is not None:
        data["l"] = _stage_to_list(layout.l)
        data["sum"] = layout.has_sum
    for key in ("interleave", "output_interleave", "kept_reason"):
        value = getattr(layout, key)
        if value is not None:
            data[key] = list(value) if isinstance(value, tuple) else value
    return data


def layout_from_dict(data: Mapping[str, Any]) -> GroupLayout:
    """The layout that ``data`` was made from.

    Raises:
        ValueError: a part is missing, of the wrong kind, or out of range.
    """
    try:
        layout_size(data)
        return _explicit(data) if "k" in data else _published(data)
    except (KeyError, TypeError, ValueError, OverflowError, ArithmeticError) as error:
        raise ValueError(f"not a layout: {error}") from error


def layout_size(data: Mapping[str, Any]) -> int:
    """The channels and filters of a layout, and of the paths that ``data`` states, before any list of
    that length is made.

    Raises:
        ValueError: it has sizes that nothing has. Others as a part that is missing or of another kind
            raises them.
    """
    size = 0
    for key in ("C", "F", "ch"):
        size += _checked(data[key], key)
    for stage in ("k", "l"):
        for path in data.get(stage, ()):
            groups, channels, filters = (_checked(each, f"a size in {stage}") for each in path[:3])
            size += _checked(groups * channels, f"the channels of {stage}")
            size += _checked(groups * filters, f"the filters of {stage}")
    return size


def _checked(size: object, what: str) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_CHANNELS:
        raise ValueError(f"{what} is not a number from 1 to {MAX_CHANNELS}")
    return size


def _published(data: Mapping[str, Any]) -> GroupLayout:
    layout = plan_layout(data["C"], data["F"], data["ch"], data["scheme"])
    if "input_order" in data:
        layout = with_input_order(layout, data["input_order"])
    if "interleave" in data:
        order = tuple(data["interleave"])
        if sorted(order) != list(range(layout.k.out_channels)):
            raise ValueError("the interleave is no order of K's rows")
        layout = replace(layout, interleave=order)
    return layout


def _explicit(data: Mapping[str, Any]) -> GroupLayout:
    C = data["C"]
    k = _stage_from_list(C, data["k"])
    interleave, output_interleave = (
        tuple(data[key]) if key in data else None for key in ("interleave", "output_interleave")
    )
    return GroupLayout(
        data["scheme"],
        C,
        data["F"],
        data["ch"],
        k,
        _stage_from_list(k.out_channels, data["l"]) if "l" in data else None,
        interleave,
        output_interleave,
        kept_reason=data.get("kept_reason"),
        has_sum=data.get("sum", False) if "l" in data else data["scheme"] in SCHEMES,
    )


def _stage_to_list(stage: GroupedStage) -> list[list[Any]]:
    """One entry a path: groups, channels per group, filters per group, and where inputs do not
    begin at channel 0, the first of them; where they are not in order, all of them.
    """
    entries: list[list[Any]] = []
    for path in stage.paths:
        entry: list[Any] = [path.groups, path.channels_per_group, path.filters_per_group]
        first = path.inputs[0]
        if path.inputs != tuple(range(first, first + len(path.inputs))):
            entry.append(list(path.inputs))
        elif first:
            entry.append(first)
        entries.append(entry)
    return entries


def _stage_from_list(in_channels: int, entries: Sequence[Sequence[Any]]) -> GroupedStage:
    paths = []
    for groups, channels, filters, *given in entries:
        start = given[0] if given else 0
        inputs = range(start, start + groups * channels) if isinstance(start, int) else start
        if len(inputs) != groups * channels or not set(inputs) <= set(range(in_channels)):
            raise ValueError("a path reads channels that do not exist")
        paths.append(GroupPath(groups, channels, filters, tuple(inputs)))
    return GroupedStage(in_channels, tuple(paths))
