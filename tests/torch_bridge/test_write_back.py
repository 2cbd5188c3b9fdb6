"""from_torch: what it writes, and that it writes nothing else."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc.errors import ModelError
from onnx_igpc.torch_bridge import from_torch, to_torch
from tests.torch_bridge.graphs import (
    BN,
    difference,
    make_model,
    random,
    run_onnx,
    run_torch,
    small_cnn,
    train,
)

X = random(4, 3, 8, 8, seed=9)


def _without_floats(model: onnx.ModelProto) -> bytes:
    """The model with the data of its float tensors removed, as bytes."""
    bare = copy.deepcopy(model)
    tensors = [*bare.graph.initializer]
    tensors += [a.t for n in bare.graph.node if n.op_type == "Constant" for a in n.attribute]
    for tensor in tensors:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            for field in ("raw_data", "float_data", "int32_data", "double_data"):
                tensor.ClearField(field)
    data: bytes = bare.SerializeToString(deterministic=True)
    return data


def _decorated() -> onnx.ModelProto:
    model = small_cnn()
    model.doc_string, model.producer_name = "trained by hand", "tests"
    model.metadata_props.add(key="k", value="v")
    model.graph.node[0].doc_string = "the stem"
    model.graph.node[0].metadata_props.add(key="layer", value="1")
    model.graph.initializer[0].doc_string = "weights"
    return model


def test_untrained_module_gives_the_same_bytes() -> None:
    model = _decorated()
    assert from_torch(to_torch(model), model).SerializeToString() == model.SerializeToString()


def test_training_changes_the_trained_tensors_and_nothing_else() -> None:
    model = _decorated()
    before = model.SerializeToString()
    module = to_torch(model)
    train(module, X)
    result = from_torch(module, model)
    assert model.SerializeToString() == before
    assert _without_floats(result) == _without_floats(model)
    old = {t.name: t.raw_data for t in model.graph.initializer}
    changed = {t.name for t in result.graph.initializer if t.raw_data != old[t.name]}
    assert changed == set(old) - {"order"}


def test_written_model_computes_what_the_module_computes() -> None:
    model = small_cnn()
    module = to_torch(model)
    train(module, X, steps=10)
    (want,) = run_onnx(from_torch(module, model), X)
    assert difference(run_torch(module, X)[0], want) < 1e-5
    assert difference(run_onnx(model, X)[0], want) > 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_encoding_of_a_tensor_is_kept(dtype: type) -> None:
    value: np.ndarray = random(3, 2).astype(dtype)
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    typed = helper.make_tensor("w", onnx_type, value.shape, value.ravel())
    raw = numpy_helper.from_array(value, "v")
    node = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "v"], ["y"]),
    ]
    model = make_model(node, {}, {"x": [3, 3]}, ["y"], input_type=onnx_type, output_type=onnx_type)
    model.graph.initializer.extend([typed, raw])
    module = to_torch(model)
    for parameter in module.parameters():
        assert parameter.dtype == (torch.float64 if dtype is np.float64 else torch.float32)
        parameter.data += 1
    written = from_torch(module, model).graph.initializer
    for tensor, kept in zip(written, (typed, raw), strict=True):
        assert {f.name for f, _ in tensor.ListFields()} == {f.name for f, _ in kept.ListFields()}
        assert tensor.data_type == onnx_type
        expected = numpy_helper.to_array(kept) + dtype(1)
        np.testing.assert_allclose(numpy_helper.to_array(tensor), expected, rtol=2e-3)


def test_constant_node_is_trained_and_written() -> None:
    weight = numpy_helper.from_array(random(3, 2), "inner")
    nodes = [
        helper.make_node("Constant", [], ["w"], "weights", value=weight),
        helper.make_node("Constant", [], ["b"], value_floats=[1.0, 2.0]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    model = make_model(nodes, {}, {"x": [3, 3]}, ["y"])
    module = to_torch(model)
    assert set(module.state_dict()) == {"w", "b"}
    train(module, random(3, 3))
    result = from_torch(module, model)
    assert [n.name for n in result.graph.node] == [n.name for n in model.graph.node]
    assert result.graph.node[0].attribute[0].t.name == "inner"
    assert (
        difference(run_torch(module, X[0, 0, :3, :3])[0], run_onnx(result, X[0, 0, :3, :3])[0])
        < 1e-6
    )
    assert list(result.graph.node[1].attribute[0].floats) != [1.0, 2.0]


def _two_norms(names: list[list[str]], extra: list[onnx.NodeProto]) -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        *extra,
        node("BatchNormalization", ["x", *names[0]], ["a"], "first"),
        node("Relu", ["a"], ["r"]),
        node("BatchNormalization", ["r", *names[1]], ["y"], "second"),
    ]
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    return make_model(nodes, {"one": ones, "zero": zeros}, {"x": ["n", 3, 8, 8]}, ["y"])


def test_tensors_aliased_through_identity_are_untied() -> None:
    identity = [
        helper.make_node("Identity", ["one"], ["bn2.var"], "alias1"),
        helper.make_node("Identity", ["zero"], ["bn2.mean"], "alias2"),
    ]
    names = [["one", "zero", "m", "v"], ["g", "b", "bn2.mean", "bn2.var"]]
    model = _two_norms(names, identity)
    for name, value in (("m", 0.0), ("v", 1.0), ("g", 1.0), ("b", 0.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.full(3, value, np.float32), name))
    module = to_torch(model)
    assert from_torch(module, model).SerializeToString() == model.SerializeToString()
    assert dict(module.named_buffers()).keys() >= {"bn2.mean", "bn2.var"}
    train(module, X, steps=5)
    result = from_torch(module, model)
    assert difference(run_torch(module, X)[0], run_onnx(result, X)[0]) < 1e-5
    # The nodes keep their names and places; only what holds the value changed.
    assert [n.name for n in result.graph.node] == [n.name for n in model.graph.node]
    again = from_torch(module, result)
    assert again.SerializeToString() == result.SerializeToString()


def test_tensors_shared_directly_are_untied() -> None:
    names = [["one", "zero", "zero", "one"], ["one", "zero", "zero", "one"]]
    names[1][0] = "other"
    model = _two_norms(names, [])
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "other"))
    module = to_torch(model)
    train(module, X, steps=5)
    result = from_torch(module, model)
    assert difference(run_torch(module, X)[0], run_onnx(result, X)[0]) < 1e-5


def test_layer_applied_twice_stays_one_layer() -> None:
    shared = ["one", "zero", "m", "v"]
    model = _two_norms([shared, shared], [])
    for name, value in (("m", 0.0), ("v", 1.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.full(3, value, np.float32), name))
    module = to_torch(model)
    assert set(module.state_dict()) == {"one", "zero", "m", "v"}
    assert not module.untied


def test_module_of_another_model_is_refused() -> None:
    other = small_cnn()
    other.graph.initializer[0].name = "renamed"
    with pytest.raises(ModelError, match=r"no tensor 'stem\.weight'"):
        from_torch(to_torch(small_cnn()), other)
    with pytest.raises(ModelError, match="not a module made by to_torch"):
        from_torch(torch.nn.Linear(2, 2), other)


def test_module_of_another_shape_is_refused() -> None:
    other = small_cnn()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(random(8, 3, 1, 1), "stem.weight"))
    with pytest.raises(ModelError, match=r"stem\.weight"):
        from_torch(to_torch(small_cnn()), other)


def test_batch_norm_names_are_the_onnx_names() -> None:
    module = to_torch(small_cnn())
    assert {f"bn.{name}" for name in BN} <= set(module.state_dict())
