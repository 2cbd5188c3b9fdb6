"""Profiles: which provider ran which of the model's nodes, whatever onnxruntime calls them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.errors import ModelError
from onnx_igpc.runtime.profile import ExecutionProfile, NodeRun, misplaced_message, read_profile
from onnx_igpc.runtime.session import make_session
from tests import runtime_graphs as graphs


def run_profiled(
    model: onnx.ModelProto, folder: Path, optimization: str = "all", runs: int = 2
) -> ExecutionProfile:
    session = make_session(model, threads=1, optimization=optimization, profile=folder / "p")
    [spec] = session.get_inputs()
    dtype = np.float16 if "float16" in spec.type else np.float32
    for _ in range(runs):
        session.run(None, {spec.name: np.ones((1, *spec.shape[1:]), dtype)})
    return read_profile(session.end_profiling(), model)


def residual(names: bool) -> onnx.ModelProto:
    """Conv -> Clip -> Conv, added to the first Conv's result: what gets fused and renamed."""

    def node(op: str, inputs: list[str], output: str) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=f"n_{output}" if names else None)

    w = np.random.default_rng(0).standard_normal((16, 16, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node(
                "Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0, np.float32))
            ),
            node("Conv", ["x", "w"], "a"),
            node("Clip", ["a", "zero", "six"], "b"),
            node("Conv", ["b", "v"], "c"),
            node("Add", ["c", "b"], "y"),
        ],
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 6, 6])],
        [
            numpy_helper.from_array(w, "w"),
            numpy_helper.from_array(w + 1, "v"),
            numpy_helper.from_array(np.array(6, np.float32), "six"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("optimization", ["none", "basic", "extended", "all"])
@pytest.mark.parametrize("names", [True, False])
def test_convolutions_are_found_under_every_name(
    tmp_path: Path, optimization: str, names: bool
) -> None:
    profile = run_profiled(residual(names), tmp_path, optimization)
    convolutions = [run.node for run in profile.nodes if "Conv" in run.op_type]
    assert convolutions == (["n_a", "n_c"] if names else ["a", "c"])
    assert all(run.calls == 2 for run in profile.nodes)


def test_float16_convolution_is_found_behind_the_inserted_casts(tmp_path: Path) -> None:
    model = graphs.classifier(elem_type=TensorProto.FLOAT16, dims=(1, 16, 8, 8), classes=16)
    profile = run_profiled(model, tmp_path)
    assert [run.node for run in profile.nodes if "Conv" in run.op_type] == ["conv"]


def test_first_run_can_be_left_out(tmp_path: Path) -> None:
    session = make_session(residual(True), profile=tmp_path / "p")
    for _ in range(3):
        session.run(None, {"x": np.ones((1, 16, 6, 6), np.float32)})
    path = session.end_profiling()
    assert {run.calls for run in read_profile(path).nodes} == {3}
    assert {run.calls for run in read_profile(path, skip_first=True).nodes} == {2}


def test_shares_sum_to_one(tmp_path: Path) -> None:
    profile = run_profiled(residual(True), tmp_path, "none")
    [share] = profile.shares()
    assert share.provider == "CPUExecutionProvider"
    assert (share.nodes, share.time_share) == (4, 1.0)
    assert profile.ran_on("cpu") == 4
    assert profile.ran_on("cuda") == 0
    assert profile.misplaced("cpu") == []


def node_run(name: str, op_type: str, provider: str, microseconds: int) -> NodeRun:
    return NodeRun(name, op_type, f"{provider}ExecutionProvider", None, (), 1, microseconds)


def test_compute_nodes_on_another_provider_are_named() -> None:
    profile = ExecutionProfile(
        (
            node_run("a", "FusedConv", "CUDA", 30),
            node_run("b", "NhwcFusedConv", "CPU", 60),
            node_run("g", "Gather", "CPU", 10),
            node_run("m", "MatMul", "CPU", 0),
        )
    )
    assert [run.name for run in profile.misplaced("cuda")] == ["b", "m"]
    assert [run.name for run in profile.misplaced("cpu")] == ["a"]
    assert profile.describe() == "cpu ran 3 of 4 nodes (70.0 % of the time), cuda 1"
    message = misplaced_message(profile.misplaced("cuda"), "cuda")
    assert message == "asked for cuda, but onnxruntime ran NhwcFusedConv b on cpu, MatMul m on cpu"


@pytest.mark.parametrize("escaped", [True, False])
def test_names_of_any_characters(escaped: bool, tmp_path: Path) -> None:
    """onnxruntime 1.28 wrote names into the profile without escapes."""
    name = 'a\\d "q", \n\x01{b}'
    model = graphs.identity()
    model.graph.node[0].name = name
    session = make_session(model, optimization="none", profile=tmp_path / "p")
    [spec] = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    session.run(None, {spec.name: np.ones(shape, np.float32)})
    path = Path(session.end_profiling())
    if not escaped:
        path.write_text(path.read_text().replace(json.dumps(name)[1:-1], name))
        assert name in path.read_text()
    assert [run.node for run in read_profile(path, model).nodes] == [name]


def test_what_is_not_a_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text("no")
    with pytest.raises(ModelError, match="not an onnxruntime profile"):
        read_profile(path)
    path.write_text(json.dumps([{"cat": "Session", "name": "x"}]))
    with pytest.raises(ModelError, match="no executed node"):
        read_profile(path)
