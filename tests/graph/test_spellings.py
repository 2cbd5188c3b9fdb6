"""Spellings that onnxruntime reads and onnx.checker does not: settled where a model is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_igpc import compress
from onnx_igpc.errors import ModelError
from onnx_igpc.graph.checks import load_checked
from onnx_igpc.graph.spellings import settle_spellings
from tests.helpers import GraphBuilder, pointwise_model, run


def in_domain_ai_onnx(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        node.domain = "ai.onnx"
    model.opset_import[0].domain = "ai.onnx"
    return model


def with_branches() -> onnx.ModelProto:
    """An If whose branches have no name, and whose nodes lie in the domain ai.onnx."""
    branches = []
    for op_type in ("Relu", "Neg"):
        branch = GraphBuilder()
        branch.output(branch.add(op_type, ["conv"], f"{op_type}_out"), ["batch", 32, 5, 5])
        branches.append(branch.graph(""))
    builder = GraphBuilder()
    builder.input("x", ["batch", 32, 5, 5])
    builder.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    builder.conv("x", "conv", 32, 32)
    builder.add("If", ["flag"], "picked", then_branch=branches[0], else_branch=branches[1])
    builder.conv("picked", "last", 32, 32, kernel=3, group=32)
    builder.output("last", ["batch", 32, 3, 3])
    model = builder.model(check=False)
    for branch in (node_attribute.g for node_attribute in model.graph.node[1].attribute):
        branch.node[0].domain = "ai.onnx"
    return model


def test_ai_onnx_is_the_standard_domain(tmp_path: Path) -> None:
    plain = pointwise_model(batch_norm=True)
    aliased = in_domain_ai_onnx(pointwise_model(batch_norm=True))
    onnx.save(aliased, tmp_path / "aliased.onnx")
    settled = load_checked(tmp_path / "aliased.onnx")
    assert settled == plain
    for source in (aliased, tmp_path / "aliased.onnx"):
        result = compress(source)
        assert len(result.report.sites) == 1
        wanted = run(compress(plain).model)["y"]
        np.testing.assert_allclose(run(result.model)["y"], wanted, rtol=1e-5, atol=1e-5)
    assert aliased.opset_import[0].domain == "ai.onnx", "the caller's model stays as it is"


def test_graphs_without_a_name_get_one(tmp_path: Path) -> None:
    model = pointwise_model()
    model.graph.name = ""
    onnx.save(model, tmp_path / "nameless.onnx")
    assert len(compress(tmp_path / "nameless.onnx").report.sites) == 1


def test_branches_are_settled_too(tmp_path: Path) -> None:
    model = with_branches()
    onnx.save(model, tmp_path / "branches.onnx")
    settled = load_checked(tmp_path / "branches.onnx")
    branches = [attribute.g for attribute in settled.graph.node[1].attribute]
    assert [branch.node[0].domain for branch in branches] == ["", ""]
    assert all(branch.name for branch in branches)


def test_one_version_imported_under_both_names_is_imported_once() -> None:
    model = pointwise_model()
    model.opset_import.append(helper.make_opsetid("ai.onnx", model.opset_import[0].version))
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    settle_spellings(model)
    assert [(e.domain, e.version) for e in model.opset_import] == [("", 17), ("elsewhere", 1)]


def test_two_versions_of_one_domain_stay_for_the_checker_to_judge() -> None:
    model = pointwise_model()
    model.opset_import.append(helper.make_opsetid("ai.onnx", 11))
    before = list(model.opset_import)
    settle_spellings(model)
    assert list(model.opset_import) == before


def test_other_models_stay_as_they_are() -> None:
    model = pointwise_model(weights="constant")
    before = onnx.ModelProto()
    before.CopyFrom(model)
    settle_spellings(model)
    assert model == before


def test_inputs_without_a_shape_are_named(tmp_path: Path) -> None:
    model = pointwise_model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "shapeless.onnx")
    with pytest.raises(
        ModelError, match=r"not valid ONNX.*\(input x: export the model with shapes"
    ):
        load_checked(tmp_path / "shapeless.onnx")


def test_a_domain_that_only_sounds_like_it_stays(tmp_path: Path) -> None:
    model = pointwise_model()
    model.graph.node[0].domain = "ai.onnx.ml"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match="not valid ONNX"):
        load_checked(tmp_path / "other.onnx")
