"""The module that a graph becomes: names, roles of tensors, modes, and what PyTorch does with it."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from onnx_igpc.errors import ModelError
from onnx_igpc.torch_bridge import Inputs, from_torch, register_operator, registry, to_torch
from onnx_igpc.torch_bridge.names import torch_names
from onnx_igpc.torch_bridge.node import Node, Run
from tests.torch_bridge.graphs import (
    difference,
    make_model,
    random,
    run_onnx,
    run_torch,
    small_cnn,
    train,
)

X = random(4, 3, 8, 8, seed=9)
node = helper.make_node


def test_state_dict_has_the_onnx_names() -> None:
    model = small_cnn()
    module = to_torch(model)
    assert set(module.state_dict()) == {t.name for t in model.graph.initializer}
    assert {n for n, _ in module.named_buffers()} == {"order", "bn.running_mean", "bn.running_var"}
    assert module.bindings["stem.weight"] == "stem.weight"


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a.b", "a.b.c"],
        ["", ".", "a..b", ".a", "a."],
        ["training", "x.forward.weight", "type", "_parameters", "code"],
        ["%", "%_a", "a", "a.b", "%25", "100%.x"],
        ["block/conv:0", "块.权重", "with space", "1.2.3"],
    ],
)
def test_names_stay_different(names: list[str]) -> None:
    mapped = torch_names(names)
    assert len(set(mapped.values())) == len(names)
    if all(names):
        tensors = {name: random(2, seed=i) for i, name in enumerate(names)}
        chain = [
            node("Add", ["x" if not i else f"v{i}", n], [f"v{i + 1}"]) for i, n in enumerate(names)
        ]
        model = make_model(chain, tensors, {"x": [2]}, [f"v{len(names)}"])
        module = to_torch(model)
        assert len(list(module.parameters())) == len(names)
        assert difference(run_torch(module, random(2))[0], run_onnx(model, random(2))[0]) < 1e-5


def test_shared_initializer_is_one_parameter() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    module = to_torch(make_model(nodes, {"w": random(3, 3)}, {"x": [2, 3]}, ["y"]))
    assert len(list(module.parameters())) == 1


def test_structural_floats_are_not_trained() -> None:
    nodes = [
        node("Mul", ["x", "half"], ["a"]),
        node("Clip", ["a", "low", "high"], ["b"]),
        node("Pow", ["b", "two"], ["c"]),
        node("Add", ["c", "eps"], ["d"]),
        node("Resize", ["d", "", "scales"], ["e"]),
        node("Pad", ["e", "pads", "fill"], ["f"]),
        node("PRelu", ["f", "slope"], ["g"]),
        node("Conv", ["g", "w", "b1"], ["y"]),
    ]
    f = np.float32
    tensors = {
        "half": np.array(0.5, f), "low": np.array(-1, f), "high": np.array(1, f),
        "two": np.array([2.0], f), "eps": np.array([1e-5], f),
        "scales": np.array([1, 1, 2, 2], f), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "fill": np.array(0.25, f), "slope": np.array([0.1], f), "w": random(1, 3, 1, 1),
        "b1": np.array([0.3], f),
    }  # fmt: skip
    model = make_model(nodes, tensors, {"x": [1, 3, 8, 8]}, ["y"])
    module = to_torch(model)
    assert {name for name, _ in module.named_parameters()} == {"slope", "w", "b1"}
    assert difference(run_torch(module, X[:1])[0], run_onnx(model, X[:1])[0]) < 1e-5


def test_weights_are_trained_behind_reshape_and_transpose() -> None:
    nodes = [
        node("Reshape", ["flat", "shape"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[1, 0]),
        node("Identity", ["t"], ["i"]),
        node("Gemm", ["x", "i", "one"], ["y"]),
    ]
    tensors = {"flat": random(6), "shape": np.array([2, 3]), "one": np.array([1], np.float32)}
    module = to_torch(make_model(nodes, tensors, {"x": [4, 3]}, ["y"]))
    assert {name for name, _ in module.named_parameters()} == {"flat", "one"}
    before = module.get_parameter("flat").detach().clone()
    train(module, random(4, 3), steps=1)
    assert bool(module.get_parameter("flat").ne(before).all())


def test_initializers_that_are_also_inputs() -> None:
    model = small_cnn()
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(info)
    assert to_torch(model).input_names == ("x",)


def test_batch_norm_trains_like_pytorch() -> None:
    module = to_torch(small_cnn())
    reference = torch.nn.BatchNorm2d(8, momentum=0.2)
    reference.load_state_dict(
        {
            n: module.get_submodule("bn").state_dict()[n]
            for n in ("weight", "bias", "running_mean", "running_var")
        },
        strict=False,
    )
    x = torch.from_numpy(X)
    stem = functional.conv2d(x, module.get_parameter("stem.weight"), padding=1)
    reference(stem)
    module(x)
    learned = reference.state_dict()
    assert torch.allclose(module.get_buffer("bn.running_mean"), learned["running_mean"], atol=1e-6)
    assert torch.allclose(module.get_buffer("bn.running_var"), learned["running_var"], atol=1e-6)
    kept = module.get_buffer("bn.running_var").clone()
    module.eval()(x)
    assert torch.equal(module.get_buffer("bn.running_var"), kept)


def test_one_value_per_channel_keeps_the_statistics() -> None:
    names = ["scale", "bias", "mean", "var"]
    model = make_model(
        [node("BatchNormalization", ["x", *names], ["y"])],
        {n: np.abs(random(3, seed=i)) for i, n in enumerate(names)}, {"x": ["n", 3, 1, 1]}, ["y"],
    )  # fmt: skip
    module, kept = to_torch(model), model.SerializeToString()
    assert torch.isfinite(module(torch.ones(1, 3, 1, 1))).all()
    assert from_torch(module, model).SerializeToString() == kept


def test_training_mode_left_by_an_exporter_is_inference_with_a_warning() -> None:
    model = small_cnn()
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    with pytest.warns(UserWarning, match="training_mode=1"):
        module = to_torch(model)
    assert difference(run_torch(module, X)[0], run_onnx(small_cnn(), X)[0]) < 1e-5


def test_dropout_works_in_training_only() -> None:
    nodes = [node("Dropout", ["x", "ratio"], ["y"])]
    model = make_model(nodes, {"ratio": np.array(0.25, np.float32)}, {"x": [100, 100]}, ["y"])
    module, x = to_torch(model), torch.ones(100, 100)
    share = float((module(x) == 0).float().mean())
    assert 0.2 < share < 0.3
    assert torch.equal(module.eval()(x), x)


def test_half_precision_is_trained_in_float32_and_written_back() -> None:
    nodes = [node("Conv", ["x", "w"], ["y"])]
    kind = TensorProto.FLOAT16
    weight = {"w": random(4, 3, 1, 1).astype(np.float16)}
    model = make_model(nodes, weight, {"x": [4, 3, 8, 8]}, ["y"], input_type=kind, output_type=kind)
    module = to_torch(model)
    x = X.astype(np.float16)
    assert module.w.dtype == torch.float32
    assert difference(run_torch(module, x)[0], run_onnx(model, x)[0]) < 5e-3
    train(module, x)
    (tensor,) = from_torch(module, model).graph.initializer
    assert tensor.data_type == kind
    assert not np.array_equal(numpy_helper.to_array(tensor), weight["w"])


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 3, 17, 9)])
def test_batch_and_size_are_dynamic(shape: tuple[int, ...]) -> None:
    model, x = small_cnn(), random(*shape)
    assert difference(run_torch(to_torch(model), x)[0], run_onnx(model, x)[0]) < 1e-5


def _reads_shapes() -> onnx.ModelProto:
    """Doubles an image by a size that is computed from its shape."""
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Shape", ["a"], ["s"]),
        node("Slice", ["s", "two", "four"], ["hw"]),
        node("Mul", ["hw", "factor"], ["twice"]),
        node("Slice", ["s", "zero", "two"], ["nc"]),
        node("Concat", ["nc", "twice"], ["size"], axis=0),
        node("Resize", ["a", "", "", "size"], ["b"], mode="linear"),
        node("Cast", ["twice"], ["f"], to=TensorProto.FLOAT),
        node("ReduceMax", ["f"], ["m"], keepdims=0),
        node("Div", ["b", "m"], ["y"]),
    ]
    numbers = {"zero": 0, "two": 2, "four": 4, "factor": 2}
    tensors: dict[str, np.ndarray] = {n: np.array([v]) for n, v in numbers.items()}
    tensors["w"] = random(4, 3, 1, 1)
    return make_model(nodes, tensors, {"x": ["n", 3, "h", "w"]}, ["y"])


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 5, 9)])
def test_shapes_are_computed_at_run_time(shape: tuple[int, ...]) -> None:
    model, x = _reads_shapes(), random(*shape)
    assert difference(run_torch(to_torch(model), x)[0], run_onnx(model, x)[0]) < 1e-5


def test_shapes_stay_on_the_cpu() -> None:
    """The meta device refuses to mix with the CPU and has no values to read, like a strict GPU."""
    module = to_torch(_reads_shapes()).to("meta")
    assert module(torch.empty(2, 3, 8, 9, device="meta")).shape == (2, 4, 16, 18)


def test_values_are_released_after_their_last_use() -> None:
    code = to_torch(small_cnn()).code
    assert code.count("del ") == len(small_cnn().graph.node)


def test_silu_is_one_step() -> None:
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "x"], ["y"])]
    model = make_model(nodes, {}, {"x": [2, 3]}, ["y"])
    module = to_torch(model)
    assert "Sigmoid" in module.code
    assert "Mul" not in module.code
    assert difference(run_torch(module, random(2, 3))[0], run_onnx(model, random(2, 3))[0]) < 1e-5
    # A gate that somebody else reads stays.
    model.graph.output.append(onnx.ValueInfoProto(name="s"))
    assert "Mul" in to_torch(model).code


def test_all_unknown_operators_are_named_at_once() -> None:
    nodes = [
        node("NoSuchThing", ["x"], ["a"], "first"),
        node("NoSuchThing", ["a"], ["b"]),
        node("Odd", ["b"], ["y"], domain="com.example"),
    ]
    with pytest.raises(ModelError) as caught:
        to_torch(make_model(nodes, {}, {"x": [1]}, ["y"]))
    text = str(caught.value)
    assert "NoSuchThing (version 17) (2 nodes, e.g. 'first')" in text
    assert "com.example.Odd" in text
    assert "register_operator" in text
    assert "\n" not in text


def test_an_operator_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OPERATORS", dict(registry._OPERATORS))

    @register_operator("Scale", domain="com.example", inputs=Inputs(weights=(1,)))
    def scale(view: Node) -> Run:
        return lambda x, s: x * s

    nodes = [node("Scale", ["x", "s"], ["y"], domain="com.example")]
    model = make_model(nodes, {"s": np.array(3, np.float32)}, {"x": [2]}, ["y"])
    model.opset_import.add(domain="com.example", version=1)
    module = to_torch(model)
    assert module(torch.ones(2)).tolist() == [3, 3]
    assert [name for name, _ in module.named_parameters()] == ["s"]


def test_functions_are_inlined_and_their_constants_are_not_trained() -> None:
    model = make_model(
        [node("Twice", ["x"], ["a"], domain="own"), node("Conv", ["a", "w"], ["y"])],
        {"w": random(2, 3, 1, 1)}, {"x": [1, 3, 4, 4]}, ["y"],
    )  # fmt: skip
    inner = numpy_helper.from_array(np.full((3, 1, 1), 2, np.float32))
    body = [node("Constant", [], ["k"], value=inner), node("Mul", ["i", "k"], ["o"])]
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "Twice", ["i"], ["o"], body, opset))
    model.opset_import.add(domain="own", version=1)
    module = to_torch(model)
    x = random(1, 3, 4, 4)
    assert difference(run_torch(module, x)[0], run_onnx(model, x)[0]) < 1e-5
    train(module, x)
    result = from_torch(module, model)
    assert result.functions[0].SerializeToString() == model.functions[0].SerializeToString()
    assert difference(run_torch(module, x)[0], run_onnx(result, x)[0]) < 1e-5


def test_constant_branch_is_taken() -> None:
    def branch(op_type: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
        return helper.make_graph([node(op_type, ["x"], ["o"])], op_type, [], [out])

    nodes = [
        node("If", ["yes"], ["a"], then_branch=branch("Relu"), else_branch=branch("Neg")),
        node("Abs", ["a"], ["y"]),
    ]
    model = make_model(nodes, {"yes": np.array(True)}, {"x": [2, 3]}, ["y"])
    assert (
        difference(run_torch(to_torch(model), random(2, 3))[0], run_onnx(model, random(2, 3))[0])
        < 1e-6
    )
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    with pytest.raises(ModelError, match="If with a condition computed at run time"):
        to_torch(model)


def test_copy_is_independent_and_pickling_says_what_to_do() -> None:
    module = to_torch(small_cnn())
    twin = copy.deepcopy(module)
    train(twin, X)
    assert not torch.equal(twin.get_parameter("head.bias"), module.get_parameter("head.bias"))
    assert difference(run_torch(module, X)[0], run_onnx(small_cnn(), X)[0]) < 1e-5
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(module)


def test_channels_last_and_autocast() -> None:
    module = to_torch(small_cnn()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.from_numpy(X).to(memory_format=torch.channels_last)
    (want,) = run_onnx(small_cnn(), X)
    assert difference(module.eval()(x).detach().numpy(), want) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = module.train()(x)
        result.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


def test_wrong_number_of_inputs() -> None:
    with pytest.raises(TypeError, match="1 inputs"):
        to_torch(small_cnn())()


@pytest.mark.parametrize("make", [small_cnn, _reads_shapes])
def test_torch_compile(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    module = to_torch(model)
    compiled: Any = torch.compile(module, backend="eager", fullgraph=make is small_cnn)
    with torch.no_grad():
        result = compiled.eval()(torch.from_numpy(X)).numpy()
    assert difference(result, run_onnx(model, X)[0]) < 1e-5
    assert from_torch(compiled, model).SerializeToString() == model.SerializeToString()


def test_distributed_data_parallel(tmp_path: object) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = small_cnn()
        wrapped = torch.nn.parallel.DistributedDataParallel(to_torch(model))
        train(wrapped, X)
        result = from_torch(wrapped, model)
        assert difference(run_torch(wrapped.module, X)[0], run_onnx(result, X)[0]) < 1e-5
    finally:
        torch.distributed.destroy_process_group()


def test_importing_the_bridge_does_not_import_torch() -> None:
    code = "import sys, onnx_igpc.torch_bridge; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_missing_torch_names_the_extra() -> None:
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'torch' else find(n, *a)\n"
        "import onnx, onnx_igpc.torch_bridge as b\n"
        "b.to_torch(onnx.ModelProto())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert "MissingExtraError" in done.stderr
    assert "onnx-igpc[torch]" in done.stderr
