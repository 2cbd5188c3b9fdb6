"""Sites are chosen by globs of their names, and left alone by those of an earlier run."""

from __future__ import annotations

import onnx
import pytest

from onnx_igpc.errors import UsageError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import find_sites
from tests.helpers import GraphBuilder
from tests.sites.finding import reason_of, reasons


def _three_sites(*names: str) -> onnx.ModelProto:
    builder = GraphBuilder()
    value = builder.input("x", [1, 8, 5, 5])
    for index, name in enumerate(names):
        value = builder.conv(value, f"v{index}", 8, 8, name=name)
    builder.output(builder.add("Relu", [value], "y"))
    return builder.model()


def test_include_and_exclude() -> None:
    model = _three_sites("block/a", "block/b", "neck/a")
    assert reasons(model, include=["block/*"]) == {
        "block/a": None,
        "block/b": None,
        "neck/a": "not matched by --include",
    }
    assert reasons(model, include=["block/*"], exclude=["*/a"]) == {
        "block/a": "excluded by --exclude */a",
        "block/b": None,
        "neck/a": "not matched by --include",
    }
    assert reasons(model, include=["block/a", "neck/?"])["block/b"] is not None
    assert reasons(model, exclude=["*"])["block/a"] == "excluded by --exclude *"


def test_nodes_without_a_name_go_by_their_output() -> None:
    model = _three_sites("", "", "named")
    assert list(reasons(model)) == ["v0", "v1", "named"]
    assert reasons(model, exclude=["v1"])["v1"] == "excluded by --exclude v1"


def test_nodes_with_one_name_are_told_apart_and_match_it() -> None:
    model = _three_sites("conv", "conv", "other")
    found = reasons(model)
    assert len(found) == 3
    assert all(name in found for name in ("conv:/v0", "conv:/v1", "other"))
    assert list(reasons(model, exclude=["conv"]).values()) == [
        "excluded by --exclude conv",
        "excluded by --exclude conv",
        None,
    ]
    assert list(reasons(model, include=["conv:/v1"]).values()) == [
        "not matched by --include",
        None,
        "not matched by --include",
    ]


def test_a_glob_that_matches_nothing_lists_near_matches() -> None:
    model = _three_sites("block1/expand", "block1/project", "stem")
    with pytest.raises(
        UsageError,
        match=r"`exclude` 'block1/expnd' matches no pointwise .*near matches: block1/expand",
    ) as caught:
        reasons(model, exclude=["block1/expnd"])
    assert "\n" not in str(caught.value)
    assert "stem" not in str(caught.value)
    with pytest.raises(UsageError, match="`include` 'zzz' matches no"):
        reasons(model, include=["zzz", "stem"])
    with pytest.raises(UsageError, match="matches no"):
        reasons(model, include=["STEM"])


def test_a_name_with_brackets_matches_itself() -> None:
    model = _three_sites("conv[0]", "conv[1]", "conv0")
    found = reasons(model, include=["conv[0]"])
    assert found["conv[0]"] is None
    assert found["conv[1]"] == "not matched by --include"


def test_nodes_of_an_earlier_run_are_left_alone() -> None:
    view = GraphView(OpenModel(_three_sites("block/a", "b", "c")))
    found = {s.name: s for s in find_sites(view, taken={"block/a": "block/original"}).all}
    assert reason_of(found["block/a"]) == "part of the already rewritten block/original"
    assert getattr(found["block/a"], "part_of", None) == "block/original"
    assert reason_of(found["b"]) is None
