"""Layouts against the published ones, to the last index, and the invariants for any size.

``data/published_layouts.json`` lists 264 layouts of the two schemes as the authors' code gives
them: index lists as runs of [first channel, length], permutations by their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onnx_igpc.layout.group_layout import GroupedStage
from onnx_igpc.layout.permutations import (
    compose_gathers,
    interleave_permutation,
    invert_permutation,
)
from onnx_igpc.layout.schemes import SCHEMES, plan_layout

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "published_layouts.json").read_text())

sizes = st.integers(1, 400)
chs = st.one_of(st.sampled_from([2, 4, 8, 12, 16, 24, 32, 64, 128]), st.integers(1, 200))


def runs(indices: tuple[int, ...]) -> list[list[int]]:
    found: list[list[int]] = []
    for index in indices:
        if found and sum(found[-1]) == index:
            found[-1][1] += 1
        else:
            found.append([index, 1])
    return found


def reads_in_order(stage: GroupedStage) -> bool:
    return stage.paths[0].inputs == tuple(range(stage.in_channels))


def describe(stage: GroupedStage | None) -> dict[str, Any] | None:
    if stage is None:
        return None
    return {
        "channels_per_group": stage.channels_per_group,
        "gather_runs": None if reads_in_order(stage) else runs(stage.paths[0].inputs),
        "paths": [[path.groups, path.filters_per_group] for path in stage.paths],
        "weights": stage.weights,
    }


def sha256(permutation: tuple[int, ...] | None) -> str | None:
    if permutation is None:
        return None
    return hashlib.sha256(json.dumps(list(permutation)).encode()).hexdigest()


@pytest.mark.parametrize(
    "entry", PUBLISHED, ids=lambda e: f"{e['scheme']}-{e['ch']}-{e['C']}x{e['F']}"
)
def test_agrees_with_published_layout(entry: dict[str, Any]) -> None:
    layout = plan_layout(entry["C"], entry["F"], entry["ch"], entry["scheme"])
    assert layout.replaced == entry["replaced"]
    if not layout.replaced:
        assert layout.weights == entry["C"] * entry["F"]
        return
    assert describe(layout.k) == entry["k"]
    assert describe(layout.l) == entry["l"]
    where = entry["where"] or ""
    assert (layout.interleave is not None) == where.startswith("between")
    assert (layout.output_interleave is not None) == where.startswith("after")
    assert sha256(layout.interleave or layout.output_interleave) == entry["permutation_sha256"]


def test_second_path_reads_the_first_groups() -> None:
    layout = plan_layout(1020, 250, 16)
    first, second = layout.k.paths
    assert (first.groups, first.filters) == (64, 192)
    assert (second.groups, second.filters) == (58, 58)
    assert layout.k.replicated == (0, 1, 2, 3)
    assert second.inputs == first.inputs[:928]


@pytest.mark.parametrize(
    ("C", "F", "ch", "scheme", "reason"),
    [
        (24, 24, 16, "v2", "24 channels is not more than 2 x 16"),
        (16, 96, 16, "v2", "16 channels is not more than 16"),
        (64, 64, 32, "v2", "64 channels is not more than 2 x 32"),
        (64, 1, 16, "v2", "a single filter cannot be split into groups"),
        (24, 24, 16, "v1", "24 channels is fewer than 2 x 16"),
        (37, 53, 4, "v1", "37 channels and 53 filters share no divisor from 2 to 9"),
    ],
)
def test_kept_reason(C: int, F: int, ch: int, scheme: str, reason: str) -> None:
    assert plan_layout(C, F, ch, scheme).kept_reason == reason


def test_capped_groups_can_be_whole_copies() -> None:
    """9 -> 4 at ch 2: the fourth group is a copy of the first."""
    k = plan_layout(9, 4, 2).k.paths[0]
    assert [k.group_inputs(g) for g in range(4)] == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 1, 2)]


@given(C=sizes, F=sizes, ch=chs, scheme=st.sampled_from(SCHEMES))
@example(C=9, F=4, ch=2, scheme="v2")
@example(C=257, F=2, ch=16, scheme="v2")
@example(C=64, F=64, ch=32, scheme="v1")
def test_invariants(C: int, F: int, ch: int, scheme: str) -> None:
    layout = plan_layout(C, F, ch, scheme)
    assert layout.weights <= C * F
    assert layout.k.in_channels == C
    stages = [layout.k] + ([layout.l] if layout.l else [])
    for stage in stages:
        assert stage.out_channels == F
        read = {i for path in stage.paths for i in path.inputs}
        assert read == set(range(stage.in_channels))
        for path in stage.paths:
            assert len(path.inputs) == path.groups * path.channels_per_group
            for group in range(path.groups):
                channels = path.group_inputs(group)
                assert len(set(channels)) == len(channels)
    if layout.l is not None:
        assert layout.l.in_channels == layout.k.out_channels
    for permutation in (layout.interleave, layout.output_interleave):
        if permutation is not None:
            assert sorted(permutation) == list(range(F))


@given(C=sizes, F=sizes, ch=chs)
def test_v2_group_width_is_ch_unless_filters_cap_the_groups(C: int, F: int, ch: int) -> None:
    layout = plan_layout(C, F, ch)
    if layout.replaced:
        capped = -(-C // ch) > F
        assert layout.k.channels_per_group == (-(-C // F) if capped else ch)


@given(C=sizes, F=sizes, ch=chs)
def test_v1_groups_divide_both_and_hold_at_least_ch(C: int, F: int, ch: int) -> None:
    layout = plan_layout(C, F, ch, "v1")
    groups = layout.k.groups
    assert C % groups == 0
    assert F % groups == 0
    if layout.replaced:
        assert layout.k.channels_per_group >= ch
    larger = [d for d in range(groups + 1, C // ch + 1) if C % d == 0 and F % d == 0]
    assert larger == []


@given(channels=st.integers(1, 300), step=st.integers(0, 40))
def test_interleave_is_concatenated_strided_slices(channels: int, step: int) -> None:
    x = np.arange(channels)
    expected = np.concatenate([x[start::step] for start in range(step)]) if step > 1 else x
    assert list(interleave_permutation(channels, step)) == expected.tolist()


@given(data=st.data(), channels=st.integers(1, 50))
def test_gathers_compose_and_permutations_invert(data: st.DataObject, channels: int) -> None:
    permutation = tuple(data.draw(st.permutations(range(channels))))
    gather = tuple(data.draw(st.lists(st.integers(0, channels - 1), min_size=1)))
    x = np.arange(100, 100 + channels)
    composed = compose_gathers(permutation, gather)
    np.testing.assert_array_equal(x[list(permutation)][list(gather)], x[list(composed)])
    assert compose_gathers(permutation, invert_permutation(permutation)) == tuple(range(channels))


@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_numbers_below_one_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        plan_layout(*arguments)


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of v1, v2"):
        plan_layout(64, 64, 16, "v3")
