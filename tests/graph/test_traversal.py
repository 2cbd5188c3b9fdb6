"""Orders of nodes."""

from __future__ import annotations

import numpy as np
import onnx

from onnx_igpc.graph.traversal import sort_nodes
from tests.helpers import run


def branching() -> onnx.ModelProto:
    """``y`` is ``x + x`` where ``x`` is positive; only the branches read what the first node makes."""
    branches = {
        name: onnx.helper.make_graph(
            [onnx.helper.make_node(operator, ["twice"], [name])],
            name,
            [],
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])],
        )
        for name, operator in (("yes", "Identity"), ("no", "Neg"))
    }
    nodes = [
        onnx.helper.make_node("Add", ["x", "x"], ["twice"]),
        onnx.helper.make_node("Greater", ["x", "zero"], ["positive"]),
        onnx.helper.make_node(
            "If", ["positive"], ["y"], then_branch=branches["yes"], else_branch=branches["no"]
        ),
    ]
    value = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    graph = onnx.helper.make_graph(nodes, "g", value[:1], value[1:], [zero])
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_values_that_inner_graphs_read_come_first() -> None:
    model = branching()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[2], nodes[1], nodes[0]])
    sort_nodes(model.graph)
    onnx.checker.check_model(model)
    assert run(model, {"x": np.array([3], np.float32)})["y"] == 6
    assert run(model, {"x": np.array([-3], np.float32)})["y"] == 6


def test_nodes_in_order_stay_where_they_are() -> None:
    model = branching()
    nodes = list(model.graph.node)
    swapped = branching()
    del swapped.graph.node[:]
    swapped.graph.node.extend([nodes[1], nodes[0], nodes[2]])
    for each in (model, swapped):
        before = each.SerializeToString()
        sort_nodes(each.graph)
        assert each.SerializeToString() == before
