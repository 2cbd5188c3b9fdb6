"""Every lowering on layouts that hypothesis makes up: the same outputs, in onnxruntime and as M x + b."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from onnx_igpc.fitting.fit import random_weights
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.extended import extended_layout
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.lowering.catalogue import LOWERINGS
from tests.helpers import random_feeds, run, runs_listed_weights
from tests.lowering_cases import lowered, network, possible, rewritten_as, sites_of

_SETTINGS = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@st.composite
def _shares(draw: st.DrawFn, total: int, parts: int) -> list[int]:
    """``total`` in ``parts`` parts of at least 1."""
    cuts = draw(
        st.lists(
            st.integers(1, max(1, total - 1)), min_size=parts - 1, max_size=parts - 1, unique=True
        )
    )
    bounds = [0, *sorted(cuts), total]
    return [b - a for a, b in pairwise(bounds)]


@st.composite
def layouts(draw: st.DrawFn, C: int, F: int, wide: bool, one_l: bool) -> GroupLayout:
    """Published or extended, with or without an L and a sum, even or not; or all with one L and no sum."""
    kind = draw(st.sampled_from(["v1", "v2", "v2", "extended", "extended"]))
    if one_l:
        kind = "extended"
    if kind != "extended":
        ch = draw(st.sampled_from([4, 8, 16] if wide else [1, 2, 3, 4, 5, 8, 16]))
        return plan_layout(C, F, ch, kind)
    groups = draw(st.integers(1, min(4, C)))
    order = draw(st.permutations(range(C))) if draw(st.booleans()) else list(range(C))
    widths = draw(_shares(C, groups))
    has_l = one_l or draw(st.booleans())
    has_sum = has_l and not one_l and draw(st.booleans())
    D = F if has_sum or not has_l else draw(st.integers(groups, 24))
    assume(groups <= D)
    rows = draw(_shares(D, groups))
    k_groups, first = [], 0
    for width, count in zip(widths, rows, strict=True):
        k_groups.append((order[first : first + width], count))
        first += width
    h = 1 if one_l else draw(st.integers(1, min(3, F, min(rows))))
    return extended_layout(C, F, k_groups, h if has_l else None, has_sum=has_sum)


@st.composite
def models(draw: st.DrawFn, wide: bool, one_l: bool = False) -> OpenModel:
    """A network with one rewritten site; a ``wide`` one reads whole blocks of channels."""
    if wide:
        C = draw(st.sampled_from([32, 48, 64, 96, 128]))
        F = draw(st.one_of(st.integers(4, 48), st.sampled_from([16, 32, 48])))
    else:
        C, F = draw(st.integers(2, 40)), draw(st.integers(1, 40))
    layout = draw(layouts(C, F, wide, one_l))
    assume(layout.replaced)
    dims = draw(st.sampled_from([1, 2, 2, 2, 3]))
    options: dict[str, Any] = {
        "opset": draw(st.sampled_from([11, 12, 13, 15, 17, 18, 21, 23])),
        "dtype": draw(st.sampled_from([np.float32, np.float32, np.float16])),
        "bias": draw(st.booleans()),
        "batch": draw(st.sampled_from([1, 2, "batch"])),
        "weights": draw(st.sampled_from(["initializer", "constant", "input"])),
    }
    assume(options["weights"] != "input" or runs_listed_weights(options["dtype"]))
    if draw(st.booleans()):
        options["strides"] = [draw(st.sampled_from([1, 2]))] * dims
    if draw(st.sampled_from([False, False, True])):
        options["pads"] = [1] * 2 * dims
    weights = random_weights(layout, 1, "site", activated=True)
    return rewritten_as(network(C, F, dims=dims, **options), layout, weights)


@pytest.mark.parametrize("label", LOWERINGS)
def test_random_layouts(label: str) -> None:
    applied = 0

    @_SETTINGS
    @given(models(label.endswith(("4", "8", "16")), one_l=label.startswith("rows")))
    def check(model: OpenModel) -> None:
        nonlocal applied
        if not possible(model)[label]:
            return
        applied += 1
        after, done = lowered(model, label)
        _assert_computes_the_matrix(model, after.proto)
        if label == "literal":
            assert after.proto == model.proto
        else:
            assert [site.lowering for site in done] == [label]

    check()
    assert applied, "the strategy never made a layout that the lowering is for"


def _assert_computes_the_matrix(before: OpenModel, after: onnx.ModelProto) -> None:
    """M x + b of the site as it was recognised, against what the lowered graph makes of x."""
    (site,) = sites_of(before)
    tapped = onnx.ModelProto()
    tapped.CopyFrom(after)
    kinds = {
        entry.name: entry for entry in onnx.shape_inference.infer_shapes(after).graph.value_info
    }
    for name in (site.input, site.output):
        entry = tapped.graph.output.add()
        entry.CopyFrom(kinds[name])
        entry.type.tensor_type.ClearField("shape")
    values = run(tapped, random_feeds(after, 5))
    x = values[site.input].astype(np.float64)
    pads, strides = site.attribute("pads") or [], site.attribute("strides") or []
    rank = site.spatial_rank
    pads = pads or [0] * 2 * rank
    x = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[rank + i]) for i in range(rank))])
    x = x[(slice(None), slice(None), *(slice(None, None, s) for s in strides or [1] * rank))]
    expected = np.einsum("fc,nc...->nf...", site.matrix(), x)
    if site.bias is not None:
        expected += site.bias.reshape(-1, *[1] * rank)
    found = values[site.output].astype(np.float64)
    scale = float(np.abs(expected).max()) or 1.0
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (1e-2 if site.dtype == np.float16 else 1e-5) * scale
