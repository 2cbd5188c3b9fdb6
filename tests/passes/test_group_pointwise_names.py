"""What a rewritten layer is called, and everything around it that stays what it was."""

from __future__ import annotations

import numpy as np
import onnx

from onnx_igpc import compress
from onnx_igpc.planning.options import Published
from tests.helpers import GraphBuilder, node_named, pointwise_model, run
from tests.passes.graphs import copy_of, group
from tests.untouched import assert_untouched


def all_names(model: onnx.ModelProto) -> list[str]:
    nodes = model.graph.node
    values = [name for node in nodes for name in node.output]
    return [node.name for node in nodes] + values + [t.name for t in model.graph.initializer]


def test_names_are_derived_and_unique() -> None:
    model = group(pointwise_model(35, 27)).model
    names = all_names(model)
    assert len(set(names)) == len(names)
    inserted = [node.name for node in model.graph.node if node.op_type in ("Conv", "Add", "Gather")]
    assert all(name.startswith("conv_node/igpc/") for name in inserted if name != "last_node")


def test_names_that_the_model_has_already_are_not_used_again() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 32, 5, 5])
    value = builder.conv("x", "conv", 32, 32)
    value = builder.add("Relu", [value], "conv_node/igpc/K", name="conv_node/igpc/add")
    value = builder.add("Relu", [value], "conv_node/igpc/L.weight", name="conv_node/igpc/L")
    builder.add("Relu", [value], "y")
    builder.output("y")
    before = builder.model()
    model = group(before).model
    assert len(set(all_names(model))) == len(all_names(model))
    assert {"conv_node/igpc/L_2", "conv_node/igpc/add_2"} <= {
        node.name for node in model.graph.node
    }
    assert node_named(model, "y") == node_named(before, "y")


def test_layers_of_one_name_and_layers_without_a_name() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 32, 5, 5])
    value = "x"
    for output in ("a", "b", "c", "d"):
        value = builder.conv(value, output, 32, 32, name="same" if output in "ab" else "")
    builder.add("Relu", [value], "y")
    builder.output("y")
    result = compress(builder.model(), Published(8))
    names = all_names(result.model)
    assert len(set(names)) == len(names)
    assert [site.name for site in result.report.sites] == ["same:/a", "same:/b", "c", "d"]
    assert_untouched(builder.model(), result.model, result.report)


def test_the_output_keeps_its_name_and_its_readers() -> None:
    before = pointwise_model(32, 32)
    model = group(before).model
    assert node_named(model, "conv").op_type == "Add"
    assert node_named(model, "act_node") == node_named(before, "act_node")


def test_a_head_that_is_included_keeps_the_name_of_the_output() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, 32, 5, 5])
    builder.conv("x", "y", 32, 32)
    builder.output("y")
    before = builder.model()
    assert "makes output 'y'" in next(iter(group(before).result.kept.values()))
    model = group(before, heads=True).model
    assert model.graph.output == before.graph.output
    assert run(model)["y"].shape == (1, 32, 5, 5)


def test_doc_string_and_metadata_go_to_every_new_node() -> None:
    before = pointwise_model(32, 32)
    conv = node_named(before, "conv_node")
    conv.doc_string = "made by an exporter"
    conv.metadata_props.add(key="pkg.torch.onnx.class_hierarchy", value="Block/Conv2d")
    model = group(before).model
    inserted = [node for node in model.graph.node if node.name.startswith("conv_node/igpc/")]
    assert len(inserted) == 4
    for node in inserted:
        assert node.doc_string == "made by an exporter"
        assert [(e.key, e.value) for e in node.metadata_props] == [
            ("pkg.torch.onnx.class_hierarchy", "Block/Conv2d")
        ]


def test_everything_beside_the_layer_is_untouched() -> None:
    before = pointwise_model(32, 32, batch_norm=True)
    before.doc_string, before.producer_name, before.model_version = "text", "exporter", 7
    before.metadata_props.add(key="author", value="somebody")
    graph = before.graph
    graph.doc_string = "graph text"
    graph.metadata_props.add(key="source", value="here")
    graph.value_info.add(name="conv").type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    graph.node[-1].metadata_props.add(key="layer", value="last")
    graph.input[0].metadata_props.add(key="layout", value="NCHW")
    for name, zero_point in (("act", "act_zero"), ("conv_w", "w_zero")):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=zero_point)
    sparse = graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(ones(), "sparse"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(ones().astype(int), ""))
    untouched = copy_of(before)
    result = compress(before, Published(8))
    assert before == untouched, "the argument is not changed"
    assert [site.name for site in result.report.rewritten] == ["conv_node"]
    assert_untouched(before, result.model, result.report)
    names = [each.tensor_name for each in result.model.graph.quantization_annotation]
    assert names == ["act"], "the annotation of the weight went with it"


def ones() -> np.ndarray:
    return np.ones(1, np.float32)
