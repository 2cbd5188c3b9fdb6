"""Only what became dead is removed, and all that belongs to it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_igpc.graph.dead_values import Removed, remove_dead
from tests.helpers import GraphBuilder
from tests.passes.graphs import copy_of


def cleaned(before: onnx.ModelProto, *lost: str) -> tuple[onnx.ModelProto, Removed]:
    after = copy_of(before)
    removed = remove_dead(after, lost)
    onnx.checker.check_model(after, full_check=True)
    return after, removed


def start(*stored: str, listed: bool = False) -> GraphBuilder:
    """x -> Neg -> y, beside initializers that nothing reads."""
    builder = GraphBuilder(weights="input" if listed else "initializer")
    builder.input("x", [2])
    for name in stored:
        builder.stored(name, np.zeros(2, np.float32))
    builder.add("Neg", ["x"], "y")
    builder.output("y")
    return builder


def test_only_what_lost_a_reader_is_removed() -> None:
    before = start("w", "dead before").model()
    after, removed = cleaned(before, "w")
    assert removed.names == ["w"]
    assert [tensor.name for tensor in after.graph.initializer] == ["dead before"]


def test_what_is_read_stays() -> None:
    builder = start("w")
    builder.add("Abs", ["w"], "z")
    builder.output("z")
    before = builder.model()
    after, removed = cleaned(before, "w", "x", "y", "unknown")
    assert after == before
    assert removed == Removed()


def test_what_is_an_output_stays() -> None:
    builder = start("w")
    builder.output("w", [2])
    before = builder.model()
    assert cleaned(before, "w")[0] == before


def test_the_nodes_that_only_dead_values_were_made_from_go_too() -> None:
    builder = start("w", "shared")
    builder.add("Add", ["w", "shared"], "sum")
    builder.add("Identity", ["sum"], "same")
    builder.add("Abs", ["shared"], "z")
    builder.output("z")
    after, removed = cleaned(builder.model(), "same")
    assert removed.names == ["same_node", "sum_node", "w"]
    assert [node.name for node in after.graph.node] == ["y_node", "z_node"]
    assert [tensor.name for tensor in after.graph.initializer] == ["shared"]


def test_a_node_with_another_output_that_is_read_stays() -> None:
    builder = start("w")
    builder.nodes.append(helper.make_node("Split", ["w"], ["a", "b"], name="halves", num_outputs=2))
    builder.add("Abs", ["b"], "z")
    builder.output("z")
    builder.opset = 18
    before = builder.model()
    assert cleaned(before, "a")[0] == before
    del before.graph.node[-1], before.graph.output[-1]
    assert cleaned(before, "a")[1].names == ["halves", "w"]


@pytest.mark.parametrize("ir_version", [3, 8])
def test_an_initializer_loses_its_input_entry(ir_version: int) -> None:
    before = start("w", "stays", listed=True).model(ir_version=ir_version)
    after, removed = cleaned(before, "w")
    assert removed.inputs == ["w"]
    assert [entry.name for entry in after.graph.input] == ["x", "stays"]


def test_value_info_and_quantization_annotation_go_with_the_value() -> None:
    builder = start("w", "stays")
    builder.add("Identity", ["w"], "same")
    before = builder.model()
    for name in ("w", "same", "stays", "y"):
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
        before.graph.value_info.append(info)
        before.graph.quantization_annotation.add(tensor_name=name)
    after, _ = cleaned(before, "same")
    assert [entry.name for entry in after.graph.value_info] == ["stays", "y"]
    left = [entry.tensor_name for entry in after.graph.quantization_annotation]
    assert left == ["stays", "y"]


def test_a_value_that_is_gone_already_leaves_no_value_info() -> None:
    before = start().model()
    before.graph.value_info.append(helper.make_tensor_value_info("gone", TensorProto.FLOAT, [2]))
    before.graph.value_info.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [2]))
    after, _ = cleaned(before, "gone")
    assert [entry.name for entry in after.graph.value_info] == ["other"]


def branches(**stored: list[str]) -> GraphBuilder:
    """y = If: each branch has initializers of its own, and adds those that it ``reads``."""
    builder = GraphBuilder()
    builder.input("condition", [], TensorProto.BOOL)
    graphs = {}
    for name in ("then_branch", "else_branch"):
        inner = GraphBuilder()
        for each in stored.get(f"{name}_own", []):
            inner.stored(each, np.ones(2, np.float32))
        reads = stored.get(name, [])
        inner.add("Sum", reads or ["outer"], f"{name}_out")
        inner.output(f"{name}_out", [2])
        graphs[name] = inner.graph(name)
    for name in ("outer", "w"):
        if name not in stored.get("then_branch_own", []):
            builder.stored(name, np.ones(2, np.float32))
    builder.add("If", ["condition"], "y", **graphs)
    builder.output("y", [2])
    return builder


def test_a_reader_in_a_branch_keeps_an_initializer_of_the_outer_graph() -> None:
    before = branches(then_branch=["w", "outer"]).model()
    assert cleaned(before, "w")[0] == before


def test_without_one_it_goes() -> None:
    after, removed = cleaned(branches().model(), "w")
    assert removed.names == ["w"]
    assert [tensor.name for tensor in after.graph.initializer] == ["outer"]


def test_equal_names_in_branches_are_told_apart() -> None:
    before = branches(
        then_branch_own=["w"], else_branch_own=["w"], else_branch=["w", "outer"]
    ).model()
    after, removed = cleaned(before, "w")
    assert removed.names == ["w"]
    then, other = sorted(after.graph.node[0].attribute, key=lambda a: a.name, reverse=True)
    assert not then.g.initializer
    assert [tensor.name for tensor in other.g.initializer] == ["w"]


def test_equal_names_in_a_function_are_told_apart() -> None:
    body = GraphBuilder(weights="constant")
    body.stored("w", np.ones(2, np.float32))
    body.add("Add", ["x", "w"], "out")
    builder = start("w")
    builder.functions = [
        helper.make_function(
            "local", "Shift", ["x"], ["out"], body.nodes, [helper.make_opsetid("", 17)]
        )
    ]
    builder.add("Shift", ["x"], "z", domain="local")
    builder.output("z", [2])
    before = builder.model()
    after, removed = cleaned(before, "w")
    assert removed.names == ["w"]
    assert not after.graph.initializer
    assert after.functions == before.functions


def test_what_a_function_reads_no_more() -> None:
    body = GraphBuilder(weights="constant")
    body.stored("w", np.ones(2, np.float32))
    body.add("Identity", ["w"], "same")
    body.add("Neg", ["x"], "out")
    builder = start()
    builder.functions = [
        helper.make_function(
            "local", "Turn", ["x"], ["out"], body.nodes, [helper.make_opsetid("", 17)]
        )
    ]
    builder.add("Turn", ["x"], "z", domain="local")
    builder.output("z", [2])
    after, _ = cleaned(builder.model(), "same")
    assert [node.op_type for node in after.functions[0].node] == ["Neg"]
