"""The view: nodes paired with their protos, constants followed to where they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.graph.model import OpenModel, open_model
from onnx_igpc.graph.traversal import all_names, live_nodes, opset_version, scopes, tensors
from onnx_igpc.graph.view import ConstantRef, GraphView, NodeRef
from tests.helpers import GraphBuilder, pointwise_model
from tests.rich_model import rich_model


def view_of(model: onnx.ModelProto) -> GraphView:
    return GraphView(OpenModel(model))


def named(view: GraphView, name: str) -> NodeRef:
    return next(ref for ref in view.nodes if name in (ref.proto.name, ref.proto.output[0]))


def weight_of(view: GraphView, name: str = "y") -> ConstantRef | None:
    ref = named(view, name)
    return view.constant(ref.node.inputs[1], ref.scope)


def conv_with(builder: GraphBuilder, weight: str) -> GraphView:
    """A convolution ``y`` of 6 channels that reads the value ``weight``."""
    builder.input("x", ["n", 6, 5, 5])
    builder.output(builder.add("Conv", ["x", weight], "y"), ["n", 4, 5, 5])
    return view_of(builder.model())


# --------------------------------------------------------------------------- pairs


def test_every_node_is_paired_with_its_proto() -> None:
    model = rich_model()
    view = view_of(model)
    assert [ref.op_type for ref in view.nodes] == ["Conv", "If", "Mul", "Mul", "Scale", "LeakyRelu"]
    for ref in view.nodes:
        assert ref.proto is ref.scope.holder.node[ref.index]
        assert [tensor.name for tensor in ref.node.outputs] == list(ref.proto.output)
        assert view.ref(ref.node) is ref
    assert [ref.scope.is_main for ref in view.nodes] == [True, True, False, False, True, False]
    assert view.nodes[-1].scope.in_function
    assert not view.nodes[2].scope.in_function
    assert view.nodes[2].scope.path == "chosen.else_branch"  # attributes are sorted
    assert not named(view, "y").is_standard


def test_the_view_leaves_the_model_as_it_is() -> None:
    model = rich_model()
    before = model.SerializeToString()
    view_of(model)
    assert model.SerializeToString() == before


def test_attributes_and_their_defaults() -> None:
    ref = named(view_of(pointwise_model(stride=2)), "conv")
    assert ref.attribute("strides") == [2, 2]
    assert ref.attribute("group", 1) == 1
    assert ref.attribute("group") is None


def test_producers_consumers_and_outputs() -> None:
    view = view_of(pointwise_model(batch_norm=True))
    conv, norm = named(view, "conv"), named(view, "bn")
    assert view.producer(norm.node.inputs[0]) is conv
    assert view.producer(conv.node.inputs[0]) is None
    assert view.only_consumer(conv.node.outputs[0]) is norm
    last = named(view, "y").node.outputs[0]
    assert view.is_output(last)
    assert view.model_output(last) == "y"
    assert view.model_output(conv.node.outputs[0]) is None


def test_a_value_that_is_also_an_output_has_no_only_consumer() -> None:
    model = pointwise_model()
    model.graph.output.append(helper.make_tensor_value_info("conv", TensorProto.FLOAT, None))
    view = view_of(model)
    conv = named(view, "conv").node.outputs[0]
    assert len(view.consumers(conv)) == 1
    assert view.only_consumer(conv) is None


def test_a_node_that_reads_twice_is_one_consumer() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 4])
    builder.add("Relu", ["x"], "r")
    builder.output(builder.add("Mul", ["r", "r"], "y"))
    view = view_of(builder.model())
    only = view.only_consumer(named(view, "r").node.outputs[0])
    assert only is named(view, "y")


def test_consumers_in_sub_graphs_are_seen() -> None:
    view = view_of(rich_model())
    conv = named(view, "conv").node.outputs[0]
    assert sorted(ref.op_type for ref in view.consumers(conv)) == ["Mul", "Mul"]
    assert view.only_consumer(conv) is None


def test_outputs_of_branches_and_functions_continue_outside() -> None:
    view = view_of(rich_model())
    for name, outside in (("a_out", "chosen"), ("b_out", "chosen"), ("b", "y")):
        inner = named(view, name).node.outputs[0]
        assert view.is_output(inner)
        assert view.model_output(inner) is None
        assert [tensor.name for tensor in view.beyond(inner)] == [outside]


# --------------------------------------------------------------------------- constants


@pytest.mark.parametrize("weights", ["initializer", "constant", "input"])
def test_constants_in_every_form(weights: str) -> None:
    model = pointwise_model(weights=weights)  # type: ignore[arg-type]
    view = view_of(model)
    found = weight_of(view, "conv")
    assert found is not None
    assert [ref.op_type for ref in found.chain] == ["Constant"] * (weights == "constant")
    assert found.holder is model.graph
    assert found.values().shape == (32, 32, 1, 1)
    if weights != "constant":
        assert found.root is model.graph.initializer[0]
        assert found.chain == ()


def test_constants_through_what_only_views_them() -> None:
    builder = GraphBuilder()
    stored = builder.random(6, 2, 2).astype(np.float16)
    builder.initializer("stored", stored)
    builder.add("Cast", ["stored"], "cast", to=TensorProto.FLOAT)
    builder.initializer("shape", np.array([6, 4]))
    builder.add("Reshape", ["cast", "shape"], "flat")
    builder.add("Transpose", ["flat"], "turned", perm=[1, 0])
    builder.initializer("axes", np.array([2, 3]))
    builder.add("Unsqueeze", ["turned", "axes"], "deep")
    builder.add("Identity", ["deep"], "same")
    view = conv_with(builder, "same")
    found = weight_of(view)
    assert found is not None
    assert found.root.name == "stored"
    assert [ref.op_type for ref in found.chain] == [
        "Identity",
        "Unsqueeze",
        "Transpose",
        "Reshape",
        "Cast",
    ]
    expected = stored.astype(np.float32).reshape(6, 4).T[:, :, None, None]
    np.testing.assert_array_equal(found.values(), expected)
    assert found.values().dtype == np.float32


def test_an_expanded_constant() -> None:
    builder = GraphBuilder(weights="constant")
    row = builder.stored("row", builder.random(1, 6, 1, 1))
    shape = builder.stored("shape", np.array([4, 6, 1, 1]))
    builder.add("Expand", [row, shape], "wide")
    found = weight_of(conv_with(builder, "wide"))
    assert found is not None
    assert [ref.op_type for ref in found.chain] == ["Expand", "Constant"]
    assert found.values().shape == (4, 6, 1, 1)
    assert np.ptp(found.values(), axis=0).max() == 0


@pytest.mark.parametrize("opset", [7, 12])
def test_attributes_of_old_operator_sets_are_understood(opset: int) -> None:
    builder = GraphBuilder(opset)
    values = builder.random(4, 6)
    builder.initializer("flat", values)
    builder.add("Unsqueeze", ["flat"], "deep", axes=[2, 3])
    found = weight_of(conv_with(builder, "deep"))
    assert found is not None
    np.testing.assert_array_equal(found.values()[:, :, 0, 0], values)


def test_what_is_computed_is_no_constant() -> None:
    builder = GraphBuilder()
    builder.initializer("stored", builder.random(4, 6, 1, 1))
    builder.initializer("two", np.array(2, np.float32))
    builder.add("Mul", ["stored", "two"], "doubled")
    view = conv_with(builder, "doubled")
    assert weight_of(view) is None
    ref = named(view, "y")
    assert view.constant(ref.node.inputs[0], ref.scope) is None, "an input is no constant"


def test_a_constant_reshaped_by_an_input_is_no_constant() -> None:
    builder = GraphBuilder()
    builder.initializer("flat", builder.random(24))
    builder.input("shape", [4], TensorProto.INT64)
    builder.add("Reshape", ["flat", "shape"], "w")
    assert weight_of(conv_with(builder, "w")) is None


def test_constants_of_other_kinds_than_tensors_are_left_alone() -> None:
    builder = GraphBuilder()
    builder.add("Constant", [], "w", value_floats=[1.0, 2.0])
    builder.input("x", [2])
    builder.output(builder.add("Add", ["x", "w"], "y"))
    assert weight_of(view_of(builder.model())) is None


def test_a_name_in_a_sub_graph_hides_nothing_outside() -> None:
    """Both branches store ``w``; each convolution sees the one of its own branch."""
    branches = {}
    for index, name in enumerate(("then_branch", "else_branch")):
        inner = GraphBuilder()
        inner.initializer("w", np.full((4, 6, 1, 1), index, np.float32))
        inner.output(inner.add("Conv", ["x", "w"], f"{name}_y"))
        branches[name] = inner.graph(name)
    builder = GraphBuilder()
    builder.input("x", [1, 6, 5, 5])
    builder.input("cond", [], TensorProto.BOOL)
    builder.output(builder.add("If", ["cond"], "y", **branches))
    view = view_of(builder.model())
    for index, name in enumerate(("then_branch", "else_branch")):
        found = weight_of(view, f"{name}_y")
        assert found is not None
        assert found.values().mean() == index
        assert found.holder is named(view, f"{name}_y").scope.holder


def test_a_sub_graph_reads_a_constant_of_the_graph_around_it() -> None:
    inner = GraphBuilder()
    inner.output(inner.add("Conv", ["x", "w"], "inner_y"))
    builder = GraphBuilder()
    builder.input("x", [1, 6, 5, 5])
    builder.input("cond", [], TensorProto.BOOL)
    builder.initializer("w", builder.random(4, 6, 1, 1))
    other = GraphBuilder()
    other.output(other.add("Conv", ["x", "w"], "other_y"))
    builder.output(
        builder.add("If", ["cond"], "y", then_branch=inner.graph("t"), else_branch=other.graph("e"))
    )
    model = builder.model()
    found = weight_of(view_of(model), "inner_y")
    assert found is not None
    assert found.holder is model.graph


def test_external_constants_are_read_from_disk(tmp_path: Path) -> None:
    model = pointwise_model()
    expected = numpy_helper.to_array(model.graph.initializer[0])
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="d", size_threshold=0
    )
    found = weight_of(GraphView(open_model(tmp_path / "m.onnx")), "conv")
    assert found is not None
    np.testing.assert_array_equal(found.values(), expected)


# --------------------------------------------------------------------------- the walk


def test_scopes_are_walked_in_order_with_their_parents() -> None:
    model = rich_model()
    found = list(scopes(model))
    assert [scope.path for scope in found] == [
        "",
        "chosen.else_branch",
        "chosen.then_branch",
        "function local.Scale",
    ]
    assert found[0].is_main
    assert found[1].parents == (model.graph,)
    assert found[3].in_function
    assert [opset_version(model, scope) for scope in found] == [17] * 4


def test_tensors_are_found_wherever_they_lie() -> None:
    names = {tensor.name for tensor in tensors(rich_model())}
    assert {"conv_w", "conv_b", "a_factor", "b_factor", "sparse", "sparse_indices"} <= names
    model = rich_model()
    training = [tensor for tensor in tensors(model) if list(tensor.dims) == [3]]
    assert len(training) == 2, "the values of both training graphs"


def test_all_names_are_those_of_every_scope() -> None:
    names = all_names(rich_model())
    assert {"x", "y", "conv_node", "a_factor", "b_out", "sparse", "cond", "a", "b"} <= names
    assert "" not in names


def test_live_nodes_follow_what_sub_graphs_read() -> None:
    model = rich_model()
    dead = helper.make_node("Relu", ["x"], ["nowhere"])
    model.graph.node.insert(0, dead)
    assert [node.op_type for node in live_nodes(model.graph)] == ["Conv", "If", "Scale"]
