"""Edits: unique names, constants in every kind of holder, nodes put in the place of others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_igpc.graph.edit import GraphEdit, Names, SubgraphBuilder
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import scopes
from onnx_igpc.graph.view import GraphView
from tests.helpers import GraphBuilder, node_named, pointwise_model, tensor_named


def nested() -> OpenModel:
    """An If in an If: ``inner`` in ``middle`` in the main graph, each with a Neg beside it."""
    inner = GraphBuilder()
    inner.add("Neg", ["x"], "inner_out")
    inner.output("inner_out", [2])
    middle = GraphBuilder()
    middle.add("Neg", ["x"], "middle_neg")
    other = GraphBuilder()
    other.add("Abs", ["x"], "other_out")
    other.output("other_out", [2])
    middle.add(
        "If", ["c"], "middle_out", then_branch=inner.graph("inner"), else_branch=other.graph("o")
    )
    middle.output("middle_out", [2])
    outer_other = GraphBuilder()
    outer_other.add("Abs", ["x"], "outer_other_out")
    outer_other.output("outer_other_out", [2])
    builder = GraphBuilder()
    builder.input("x", [2])
    builder.input("c", [], TensorProto.BOOL)
    builder.add(
        "If",
        ["c"],
        "y",
        then_branch=middle.graph("middle"),
        else_branch=outer_other.graph("oo"),
    )
    builder.add("Neg", ["y"], "z")
    builder.output("z", [2])
    return OpenModel(builder.model())


def test_names_are_unique_among_all_of_the_model() -> None:
    names = Names(nested().proto)
    assert names.unique("new") == "new"
    assert names.unique("new") == "new_2"
    assert names.unique("new") == "new_3"
    assert names.unique("inner_out") == "inner_out_2", "a value of a sub-graph"
    assert names.unique("middle_neg_node") == "middle_neg_node_2", "a node of a sub-graph"
    assert names.unique("c") == "c_2", "an input"


def test_nodes_of_nested_graphs_are_replaced_together() -> None:
    model = nested()
    view, edit = GraphView(model), GraphEdit(model)
    for ref in view.nodes:
        if ref.op_type == "Neg":
            node = helper.make_node("Abs", ref.proto.input, ref.proto.output, name="new")
            edit.replace(ref, [node])
    edit.apply()
    onnx.checker.check_model(model.proto, full_check=True)
    found = [(scope.path, [n.op_type for n in scope.holder.node]) for scope in scopes(model.proto)]
    assert found == [
        ("", ["If", "Abs"]),
        ("y.else_branch", ["Abs"]),
        ("y.then_branch", ["Abs", "If"]),
        ("y.then_branch/middle_out.else_branch", ["Abs"]),
        ("y.then_branch/middle_out.then_branch", ["Abs"]),
    ]


def test_constants_in_nested_graphs() -> None:
    model = nested()
    edit = GraphEdit(model)
    for scope in list(scopes(model.proto)):
        edit.constant(scope.holder, "new", np.ones(2, np.float32))
    edit.apply()
    onnx.checker.check_model(model.proto, full_check=True)
    names = [tensor.name for s in scopes(model.proto) for tensor in s.holder.initializer]
    assert names == ["new", "new_2", "new_3", "new_4", "new_5"]


def test_a_node_is_removed_and_others_stay_as_they_are() -> None:
    builder = GraphBuilder()
    builder.input("x", [2])
    builder.stored("w", np.ones(2, np.float32))
    builder.stored("dead before", np.ones(2, np.float32))
    builder.add("Neg", ["w"], "chain")
    builder.add("Add", ["x", "chain"], "gone")
    builder.add("Neg", ["x"], "y")
    builder.output("y")
    before, model = builder.model(), OpenModel(builder.model())
    view, edit = GraphView(model), GraphEdit(model)
    edit.replace(next(ref for ref in view.nodes if ref.op_type == "Add"), [])
    removed = edit.apply()
    assert removed.names == ["chain_node", "w"]
    assert list(model.proto.graph.node) == [before.graph.node[2]]
    assert [tensor.name for tensor in model.proto.graph.initializer] == ["dead before"]


def test_names_of_what_was_removed_are_not_used_again() -> None:
    edit = GraphEdit(nested(), ["gone"])
    assert edit.names.unique("gone") == "gone_2"


@pytest.mark.parametrize("opset", [7, 9, 17])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
def test_constants_where_initializers_would_have_to_be_inputs(
    opset: int, dtype: type[np.generic]
) -> None:
    """Up to ir_version 3; Constant nodes hold floats only before opset 9."""
    model = OpenModel(pointwise_model(opset=opset, weights="constant"))
    model.proto.ir_version = 3
    edit = GraphEdit(model)
    values = np.array([3, 1, 2], dtype)
    name = edit.constant(model.proto.graph, "new", values)
    edit.apply()
    onnx.checker.check_model(model.proto, full_check=True)
    assert not model.proto.graph.initializer
    maker = node_named(model.proto, name)
    cast = opset < 9 and dtype is np.int64
    assert maker.op_type == ("Cast" if cast else "Constant")
    stored = tensor_named(model.proto, maker.input[0] if cast else name)
    np.testing.assert_array_equal(stored, values)
    assert stored.dtype == (np.float32 if cast else dtype)


def test_constants_of_functions_are_nodes() -> None:
    body = GraphBuilder()
    body.add("Neg", ["x"], "out")
    builder = GraphBuilder()
    imports = [helper.make_opsetid("", 17)]
    builder.functions = [helper.make_function("local", "Turn", ["x"], ["out"], body.nodes, imports)]
    builder.input("x", [2])
    builder.add("Turn", ["x"], "y", domain="local")
    builder.output("y", [2])
    model = OpenModel(builder.model())
    edit = GraphEdit(model)
    edit.constant(model.proto.functions[0], "new", np.ones(2, np.float32))
    edit.apply()
    assert [node.op_type for node in model.proto.functions[0].node] == ["Constant", "Neg"]


def test_built_nodes_carry_attributes_and_what_the_origin_carries() -> None:
    model = pointwise_model()
    origin = node_named(model, "conv_node")
    origin.doc_string = "text"
    origin.metadata_props.add(key="layer", value="first")
    attributes = [
        helper.make_attribute("auto_pad", "SAME_UPPER"),
        helper.make_attribute("strides", [2, 2]),
    ]
    builder = SubgraphBuilder(Names(model), origin)
    made = builder.add("Conv", ["x", "conv_w"], "new", "new_node", attributes, group=1)
    node = builder.build(17)[0]
    assert made == "new"
    assert builder.node_names == ["new_node"]
    assert (node.name, node.doc_string) == ("new_node", "text")
    assert node.metadata_props == origin.metadata_props
    assert sorted(node.attribute, key=lambda a: a.name) == [
        attributes[0],
        helper.make_attribute("group", 1),
        attributes[1],
    ]
