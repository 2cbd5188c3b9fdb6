"""Layouts beyond the published ones: the parts they are made of, their matrices, JSON, the nodes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_igpc.evaluation.site_check import check_sites
from onnx_igpc.fitting.fit import random_weights, stage_groups
from onnx_igpc.fitting.weights import IgpcWeights, igpc_matrix, relative_error, stage_matrix
from onnx_igpc.graph.checks import check_graph
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.extended import (
    dense_layout,
    extended_layout,
    low_rank_layout,
    with_input_order,
    without_input_order,
)
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.layout.path_sources import path_sources
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.layout.serialization import layout_from_dict, layout_to_dict
from onnx_igpc.passes import GroupPointwise
from onnx_igpc.sites.find import Rewritable
from tests.helpers import pointwise_model, run


@st.composite
def layouts(draw: st.DrawFn) -> GroupLayout:
    """Any member of the family on up to 12 channels."""
    C, F = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    order = draw(st.permutations(range(C)))
    cuts = sorted(draw(st.sets(st.integers(1, C - 1), max_size=3))) if C > 1 else []
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, C], strict=True)]
    if draw(st.booleans()):
        parts.append(list(range(C)))
    has_sum = draw(st.booleans())
    if has_sum or draw(st.booleans()):
        ends = sorted(draw(st.lists(st.integers(0, F), min_size=len(parts) - 1, max_size=3 + 1)))
        ends = [*ends[: len(parts) - 1], F]
        counts = [b - a for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    else:
        counts = [draw(st.integers(1, 4)) for _ in parts]
    groups = list(zip(parts, counts, strict=False))
    D = sum(count for _, count in groups)
    if not has_sum and D == F and draw(st.booleans()):
        return extended_layout(C, F, groups, None)
    h = draw(st.integers(1, min(3, D, F)))
    rows, filters = draw(st.permutations(range(D))), draw(st.permutations(range(F)))
    l_groups = [(rows[i::h], filters[i::h]) for i in range(h)]
    return extended_layout(C, F, groups, l_groups, has_sum=has_sum)


def applied(layout: GroupLayout, weights: IgpcWeights, x: np.ndarray) -> np.ndarray:
    """What the layout says in words, one group after the other; x has shape (C, n)."""

    def stage(part: GroupedStage, arrays: tuple[np.ndarray, ...], x: np.ndarray) -> np.ndarray:
        made = []
        for path, values in zip(part.paths, arrays, strict=True):
            for group in range(path.groups):
                first = group * path.filters_per_group
                rows = values[first : first + path.filters_per_group]
                made.append(rows @ x[list(path.group_inputs(group))])
        return np.concatenate(made)

    k = stage(layout.k, weights.k, x)
    y = k
    if layout.l is not None:
        y = stage(layout.l, weights.l, k if layout.interleave is None else k[[*layout.interleave]])
        if layout.has_sum:
            y = y + k
    return y if layout.output_interleave is None else y[[*layout.output_interleave]]


@given(layouts(), st.integers(0, 99))
def test_matrix_is_what_the_parts_compute(layout: GroupLayout, seed: int) -> None:
    weights = random_weights(layout, seed, "site", activated=False)
    x = np.random.default_rng(seed).normal(size=(layout.in_channels, 5))
    y = applied(layout, weights, x)
    assert y.shape == (layout.out_channels, 5)
    np.testing.assert_allclose(igpc_matrix(layout, weights) @ x, y, atol=1e-12)


@given(layouts())
def test_json_is_lossless(layout: GroupLayout) -> None:
    assert layout_from_dict(json.loads(json.dumps(layout_to_dict(layout)))) == layout


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.sampled_from(["v1", "v2"]))
def test_published_layouts_are_their_parameters_in_json(C: int, F: int, ch: int, s: str) -> None:
    layout = plan_layout(C, F, ch, s)
    data = layout_to_dict(layout)
    assert data == {"scheme": s, "C": C, "F": F, "ch": ch}
    assert layout_from_dict(data) == layout


@given(st.integers(9, 40), st.integers(2, 40), st.integers(2, 4), st.randoms())
def test_published_layout_in_another_order(C: int, F: int, ch: int, random: Any) -> None:
    published = plan_layout(C, F, ch)
    order = random.sample(range(C), C)
    layout = with_input_order(published, order)
    data = layout_to_dict(layout)
    assert set(data) <= {"scheme", "C", "F", "ch", "input_order", "k", "kept_reason"}
    assert layout_from_dict(json.loads(json.dumps(data))) == layout
    back, found = without_input_order(layout)
    assert with_input_order(back, found) == layout
    if published.k.paths[0].inputs == tuple(range(C)):
        assert (back, found) == (published, tuple(order))


def test_groups_of_one_size_are_one_convolution() -> None:
    layout = extended_layout(8, 6, [([0, 4], 1), ([1, 2, 3], 2), ([5, 6], 1), ([7], 0)])
    assert [(p.groups, p.channels_per_group, p.filters_per_group) for p in layout.k.paths] == [
        (2, 2, 1),
        (1, 3, 2),
    ]
    assert layout.k.groups == 3
    assert layout.weights == 2 * 2 + 3 * 2 + 4 * 6
    assert layout.interleave is None
    assert layout.output_interleave is None
    assert layout.dense_weights == 48


def test_l_groups_by_number_take_contiguous_filters_and_share_rows() -> None:
    layout = extended_layout(4, 6, [([0, 1], 4), ([2, 3], 4)], 2)
    assert layout.l is not None
    groups = [([*f], [*r]) for f, r in stage_groups(layout.l, layout.interleave)]
    assert groups == [([0, 1, 2], [0, 1, 4, 5]), ([3, 4, 5], [2, 3, 6, 7])]
    assert layout.output_interleave is None
    assert layout.weights == 8 * 2 + 6 * 4


def test_rows_are_numbered_as_listed_whatever_path_they_lie_in() -> None:
    """Row 1, which reads channels 1 and 2, is moved behind row 2; L must still find both."""
    k_groups = [([0], 1), ([1, 2], 1), ([3], 1)]
    layout = extended_layout(4, 2, k_groups, [([1], [0]), ([0, 2], [1])])
    K = np.eye(3)[[0, 2, 1]]
    assert stage_matrix(layout.k, [np.ones((2, 1)), np.ones((1, 2))]).tolist() == [
        [1, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 1, 1, 0],
    ]
    weights = IgpcWeights((np.ones((2, 1)), np.ones((1, 2))), (np.ones((1, 1)), np.ones((1, 2))))
    assert igpc_matrix(layout, weights).tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert K.shape == (3, 3)


def test_corners() -> None:
    low_rank = low_rank_layout(8, 6, 3)
    assert low_rank.weights == 3 * (8 + 6)
    assert low_rank.interleave is None
    assert not low_rank.has_sum
    dense = dense_layout(8, 6, "best as it is")
    assert dense.weights == dense.dense_weights == 48
    assert not dense.replaced
    # Published V2 said in the words of the family is published V2.
    v2 = plan_layout(32, 32, 8)
    assert v2.l is not None
    k_groups = [(inputs.tolist(), len(rows)) for rows, inputs in stage_groups(v2.k)]
    l_groups = [(rows.tolist(), f.tolist()) for f, rows in stage_groups(v2.l, v2.interleave)]
    layout = extended_layout(32, 32, k_groups, l_groups, has_sum=True)
    assert (layout.k, layout.weights, layout.has_sum) == (v2.k, v2.weights, True)
    weights = random_weights(v2, 0, "site", activated=False)
    theirs = igpc_matrix(v2, weights)
    problem = stage_groups(layout.l, layout.interleave) if layout.l else []
    ours = [(f.tolist(), sorted(rows.tolist())) for f, rows in problem]
    assert ours == [(f, sorted(rows)) for rows, f in l_groups]
    assert relative_error(theirs, theirs) == 0


@pytest.mark.parametrize(
    ("k_groups", "l_groups", "has_sum", "message"),
    [
        ([], 1, False, "no rows"),
        ([([0, 1], 0)], 1, False, "no rows"),
        ([([0, 0], 1)], 1, False, "all different"),
        ([([], 1)], 1, False, "all different"),
        ([([0], -1)], 1, False, "needs rows"),
        ([([0, 4], 1)], 1, False, "not among the 4"),
        ([([0, 1], 2)], 1, True, "2 rows, but 3"),
        ([([0, 1], 2)], None, False, "2 rows, but 3"),
        ([([0, 1], 2)], [([0], [0, 1, 2])], False, "the 2 rows"),
        ([([0, 1], 2)], [([0, 1], [0, 1])], False, "the 3 filters"),
        ([([0, 1], 2)], [([0, 1], [0, 1, 2]), ([], [])], False, "without rows"),
        ([([0, 1], 2)], 3, False, "without rows"),
    ],
)
def test_impossible_layouts(k_groups: Any, l_groups: Any, has_sum: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extended_layout(4, 3, k_groups, l_groups, has_sum=has_sum)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"scheme": "v2", "C": 8, "F": 8},
        {"scheme": "v3", "C": 8, "F": 8, "ch": 2},
        {"scheme": "v2", "C": "8", "F": 8, "ch": 2},
        {"scheme": "v2", "C": 8, "F": 8, "ch": 2, "input_order": [0, 0, 1, 2, 3, 4, 5, 6]},
        {"scheme": "v2", "C": 8, "F": 8, "ch": 2, "interleave": [0]},
        {"scheme": "extended", "C": 8, "F": 8, "ch": 2, "k": [[1, 8]]},
        {"scheme": "extended", "C": 8, "F": 8, "ch": 2, "k": [[1, 8, 2, 1]]},
        {"scheme": "extended", "C": 8, "F": 8, "ch": 2, "k": [[1, 8, 2, [0, 1]]]},
    ],
)
def test_damaged_json(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a layout"):
        layout_from_dict(data)


def test_a_wrong_input_order_is_refused() -> None:
    with pytest.raises(ValueError, match="not an order of 8"):
        with_input_order(plan_layout(8, 8, 2), range(7))


def rewritten(
    layout: GroupLayout, opset: int = 17, dtype: type[np.generic] = np.float32
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model with one site before and after, both checked."""
    C, F = layout.in_channels, layout.out_channels
    before = pointwise_model(C, F, opset=opset, dtype=dtype, stride=2, activation=None)
    model = OpenModel(onnx.ModelProto.FromString(before.SerializeToString()))

    def weigh(site: Rewritable, layout: GroupLayout, scale: Any) -> tuple[IgpcWeights, None]:
        return random_weights(layout, 0, site.name, activated=False), None

    group = GroupPointwise(lambda site: layout, weigh)
    result = group.run(model)
    assert result.changed == ["conv_node"]
    assert check_sites(model, result.rewritten).startswith("1 of 1 compute M x + b")
    check_graph(before, model)
    return before, model.proto


ORDER = (3, 0, 2, 1, 7, 5, 6, 4, 8, 11, 10, 9)


@pytest.mark.parametrize("opset", [9, 12, 13, 18])
@pytest.mark.parametrize(
    ("layout", "nodes"),
    [
        (low_rank_layout(12, 12, 4), ["Conv", "Conv"]),
        (extended_layout(12, 12, [(range(6), 3), (range(6, 12), 3)]), ["Conv", "Conv"]),
        (extended_layout(12, 12, [(ORDER[:6], 3), (ORDER[6:], 3)]), ["Gather", "Conv", "Conv"]),
        (
            extended_layout(12, 12, [(range(6), 3), (range(6, 12), 2)]),
            ["Split", "Conv", "Conv", "Concat", "Conv"],
        ),
        (
            extended_layout(12, 12, [(ORDER[:7], 3), (ORDER[7:], 2)]),
            ["Gather", "Split", "Conv", "Conv", "Concat", "Conv"],
        ),
        (
            extended_layout(12, 12, [(ORDER[:6], 2), (ORDER[6:], 2), (range(12), 2)]),
            ["Gather", "Conv", "Conv", "Concat", "Conv"],
        ),
        (
            extended_layout(12, 12, [(range(6), 2), (range(6, 12), 2)], 2),
            ["Conv", "Gather", "Conv"],
        ),
        (
            extended_layout(12, 12, [(range(12), 4)], [([0, 1], ORDER[:6]), ([2, 3], ORDER[6:])]),
            ["Conv", "Conv", "Gather"],
        ),
        (
            extended_layout(12, 12, [(range(12), 4)], [([0], range(5)), ([1, 2, 3], range(5, 12))]),
            ["Conv", "Split", "Conv", "Conv", "Concat"],
        ),
        (
            extended_layout(
                12,
                12,
                [(ORDER[:4], 4), (ORDER[4:8], 4), (ORDER[8:], 4)],
                [(range(i, 12, 3), range(4 * i, 4 * i + 4)) for i in range(3)],
                has_sum=True,
            ),
            ["Gather", "Conv", "Gather", "Conv", "Add"],
        ),
        (
            with_input_order(plan_layout(12, 12, 4), ORDER),
            ["Gather", "Conv", "Gather", "Conv", "Add"],
        ),
        (
            with_input_order(plan_layout(12, 12, 5), ORDER),
            ["Gather", "Conv", "Gather", "Conv", "Add"],
        ),
    ],
)
def test_written_with_the_fewest_nodes(layout: GroupLayout, nodes: list[str], opset: int) -> None:
    _, model = rewritten(layout, opset)
    written = [node.op_type for node in model.graph.node]
    assert written[: len(nodes)] == nodes
    # The last depthwise convolution and the Identity of the little model.
    assert written[len(nodes) :] == ["Conv", "Identity"]


@settings(max_examples=25)
@given(layouts().filter(lambda layout: layout.weights < layout.dense_weights))
def test_any_layout_is_written_as_its_matrix(layout: GroupLayout) -> None:
    _, model = rewritten(layout)
    assert run(model)["y"].shape == (2, layout.out_channels, 3, 3)


def test_half_precision() -> None:
    rewritten(extended_layout(12, 12, [(ORDER[:7], 3), (ORDER[7:], 2)]), dtype=np.float16)


def test_published_stages_gather_path_by_path() -> None:
    """Two published paths overlap: the second reads a part of what the first reads."""
    layout = plan_layout(12, 9, 5)
    sources = path_sources(layout.k, None)
    assert sources.order is None
    assert sources.parts == {}
    assert all(each is not None for each in sources.gathers)
