"""What each lowering writes: the operators it promises, and the reason where it is not for a site."""

from __future__ import annotations

import onnx
import pytest

from onnx_igpc.fitting.fit import random_weights
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.extended import low_rank_layout
from onnx_igpc.lowering.catalogue import LOWERINGS
from onnx_igpc.passes import lowering as passes_lowering
from onnx_igpc.passes.lower_blocks import LowerBlocks
from onnx_igpc.passes.lower_padded import LowerPadded
from onnx_igpc.passes.lower_slices import runs
from tests.lowering_cases import lowered, network, rewritten, rewritten_as, sites_of

# C, F, ch, scheme -> lowering -> the operators in the place of the site.
WRITTEN: dict[tuple[int, int, int, str], dict[str, list[str]]] = {
    (64, 32, 16, "v2"): {
        "dense": ["Conv"],
        "folded-sum": ["Conv", "Conv"],
        "blocks-8": ["Conv", "Conv"],
        "padded-16": ["Conv", "Gather", "Conv"],
        "merged-16": ["Conv", "Gather", "Conv", "Add"],
        "transpose": ["Conv", "Shape", "Reshape", "Transpose", "Reshape", "Conv", "Add"],
    },
    (40, 40, 16, "v2"): {
        # Three groups of 16 channels, the last one with 8 copies; 40 filters are 14, 13 and 13.
        "slices": [
            *["Slice", "Concat", "Conv", "Slice", "Conv", "Concat"],  # K
            *["Gather", "Conv", "Gather", "Conv", "Concat", "Add"],  # L
        ],
        "folded-sum": ["Gather", "Conv", "Gather", "Conv", "Concat", "Conv"],
    },
    (64, 96, 16, "v2"): {"merged-16": ["Conv"], "slices": []},
    (32, 32, 8, "v2"): {
        "matmul": [
            *["Reshape", "MatMul", "Reshape", "Transpose", "Reshape", "MatMul"],
            *["Reshape", "Reshape", "Add", "Add", "Shape", "Slice", "Concat", "Reshape"],
        ]
    },
}


@pytest.mark.parametrize("case", WRITTEN)
def test_operators(case: tuple[int, int, int, str]) -> None:
    C, F, ch, scheme = case
    model = rewritten(network(C, F), ch, scheme)
    for label, expected in WRITTEN[case].items():
        (site,) = sites_of(model)
        if not expected:
            assert LOWERINGS[label].refusal(site, 17)
            continue
        after, (done,) = lowered(model, label)
        made = [node.op_type for node in after.proto.graph.node if node.name in done.nodes]
        assert sorted(made) == sorted(expected), label


def test_groups_are_merged_no_further_than_to_whole_blocks() -> None:
    model = rewritten(network(128, 32), 16)  # 8 groups of 16 channels and 4 filters
    groups = {}
    for block in (8, 16):
        after, _ = lowered(model, f"merged-{block}")
        conv = next(node for node in after.proto.graph.node if node.name.endswith("lowered/K"))
        groups[block] = next(a.i for a in conv.attribute if a.name == "group")
    assert groups == {8: 4, 16: 2}


@pytest.mark.parametrize("lowering", [LowerBlocks, LowerPadded])
def test_whole_blocks_of_channels(lowering: type[LowerBlocks | LowerPadded]) -> None:
    """672 channels to 112 filters in groups of 16: 42 groups of 2 or 3 filters."""
    model = rewritten(network(672, 112), 16)
    after, _ = lowered(model, lowering(16).label)
    first = next(node for node in after.proto.graph.node if node.name.endswith("lowered/K"))
    group = next(a.i for a in first.attribute if a.name == "group")
    weight = next(t for t in after.proto.graph.initializer if t.name == first.input[1])
    assert weight.dims[1] % 16 == 0
    assert weight.dims[0] // group % 16 == 0
    assert group > 1


REFUSED = [
    ((16, 40, 8, "v2"), "folded-sum", "there is no L"),
    ((16, 64, 8, "v2"), "padded-8", "K is whole blocks already, and there is no L"),
    ((16, 40, 8, "v2"), "transpose", "there is no L"),
    ((40, 40, 16, "v2"), "transpose", "L has groups of several sizes"),
    ((40, 40, 16, "v2"), "padded-8", "L has groups of several sizes"),
    ((128, 32, 8, "v2"), "blocks-8", None),
    ((40, 40, 16, "v2"), "matmul", "its groups are of several sizes"),
    ((40, 60, 16, "v2"), "matmul", "K reads copied or reordered channels"),
    (
        (48, 48, 16, "v1"),
        "merged-16",
        "no stage has groups that can be merged to blocks of 16 chan",
    ),
    ((32, 32, 8, "v2"), "slices", "no Gather takes a few runs of consecutive channels"),
    ((33, 33, 4, "v1"), "padded-8", "K has no even groups of whole blocks of 8 channels"),
    ((64, 64, 8, "v2"), "blocks-16", "blocks of 16 channels would not be cheaper than the dense"),
]


@pytest.mark.parametrize(("case", "label", "reason"), REFUSED)
def test_refusals(case: tuple[int, int, int, str], label: str, reason: str | None) -> None:
    C, F, ch, scheme = case
    (site,) = sites_of(rewritten(network(C, F), ch, scheme))
    found = LOWERINGS[label].refusal(site, 17)
    assert found is None if reason is None else found is not None and found.startswith(reason)


def test_strides_are_not_for_products() -> None:
    (site,) = sites_of(rewritten(network(32, 32, strides=[2, 2]), 8))
    assert LOWERINGS["matmul"].refusal(site, 17) == "it has strides or padding"


def test_a_lowering_is_a_pass() -> None:
    """It runs alone, on all sites that it is for or on those that are named."""
    model = rewritten(network(32, 32), 8)
    result = LowerPadded(8, sites=["nobody"]).run(model)
    assert (result.changed, result.kept) == ([], {})
    result = LOWERINGS["transpose"].run(model)
    assert (result.changed, result.kept) == (["conv_node"], {})
    onnx.checker.check_model(model.proto, full_check=True)
    result = LOWERINGS["transpose"].run(model)
    assert result.kept == {"conv_node": "the nodes that the digest names are not in the model"}


def test_every_lowering_says_what_it_is() -> None:
    for label, lowering in LOWERINGS.items():
        assert isinstance(lowering, passes_lowering.Lowering)
        assert lowering.label == label
        assert "Rules:" in (type(lowering).__doc__ or "")


def test_runs() -> None:
    assert runs([0, 1, 2, 5, 6, 0, 4]) == [(0, 3), (5, 7), (0, 1), (4, 5)]


def low_rank(C: int, F: int, rank: int) -> OpenModel:
    layout = low_rank_layout(C, F, rank)
    return rewritten_as(network(C, F), layout, random_weights(layout, 0, "conv", False))


def test_rows_are_filled_up_and_read_with_zero_weights() -> None:
    model = low_rank(96, 64, 13)
    after, (done,) = lowered(model, "rows-4")
    stored = {tensor.name: tensor for tensor in after.proto.graph.initializer}
    k, last = (node for node in after.proto.graph.node if node.name in done.nodes)
    assert list(stored[k.input[1]].dims) == [16, 96, 1, 1]
    assert list(stored[last.input[1]].dims) == [64, 16, 1, 1]
    assert not onnx.numpy_helper.to_array(stored[last.input[1]])[:, 13:].any()


def test_rows_are_filled_up_where_that_is_of_use() -> None:
    def refusal(model: OpenModel, label: str) -> str | None:
        (site,) = sites_of(model)
        return LOWERINGS[label].refusal(site, 17)

    whole = low_rank(96, 64, 16)
    assert refusal(whole, "rows-4") == "every group of K makes a multiple of 4 rows"
    much = low_rank(20, 20, 9)
    assert (
        refusal(much, "rows-4")
        == "filled up to 4 rows it would not be cheaper than the dense layer"
    )
    published = rewritten(network(64, 32), 16)
    assert refusal(published, "rows-4") == "L is not one group, or K is added to it"
    assert refusal(rewritten(network(16, 40), 8), "rows-4") == "there is no L"
