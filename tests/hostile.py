"""Models that are broken, hostile or merely odd, and what a command may do with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_igpc import compress
from onnx_igpc.planning.options import Published
from onnx_igpc.report.digest import DIGEST_KEY
from tests.helpers import GraphBuilder, pointwise_model

# What steers a terminal has no place in what a command prints.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ODD_NAMES = (
    "a\x1b[31m\x07b",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "C:\\x|y*?[0]",
    "[bold red]x[/]",
    "\U0001f600\u202eoverride",
    "line\nbreak\rreturn\ttab\0nul",
    "x" * 5000,
)


@dataclass(frozen=True)
class Case:
    """A file's content. works: whether it is legal, so that the command must do what it is for."""

    name: str
    content: bytes
    works: bool = False


def complaint(code: int, out: str, err: str, works: bool = False) -> str | None:
    """What is wrong with how a command ended; ``None`` if nothing is.

    It may end well, or refuse its input with code 2 and one line; where it ``works``, end well only.
    """
    if "Traceback" in out + err:
        return f"a traceback: {err[-600:]}"
    if code not in (0, 2) or (works and code):
        return f"exit code {code}: {err[-600:]}"
    if found := _STEERING.search(out + err):
        return f"{found.group()!r} in what it prints"
    if code == 2:
        lines = err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        if len(errors) != 1 or lines[-1] != errors[0] or len(lines) > 3:
            return f"not one line: {err[:600]!r}"
    return None


def _bytes(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString())


def hostile_models() -> Iterator[Case]:
    """Every kind of model file that is not what it should be, and odd ones that are legal."""
    for name, (edit, works) in _EDITS.items():
        model = pointwise_model(12, 12)
        edit(model)
        yield Case(name, _bytes(model), works)
    yield Case("functions that call one another twice each", _bytes(calls_without_measure(40)))
    yield Case("a function that calls itself", _bytes(calls_without_measure(3, recursive=True)))
    yield Case("branches 1,000 deep", nested(1000))
    yield Case("branches 20 deep", nested(20), works=True)
    for index, name in enumerate(ODD_NAMES):
        yield Case(f"odd name {index}", _bytes(odd_names(name)), works=True)
    for name, text in hostile_digests():
        model = pointwise_model(12, 12)
        model.metadata_props.add(key=DIGEST_KEY, value=text)
        yield Case(f"digest: {name}", _bytes(model))


def _tensor(model: onnx.ModelProto, index: int = 0) -> TensorProto:
    return model.graph.initializer[index]


def _conv(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == "Conv")


def _declare(model: onnx.ModelProto, *dims: int) -> None:
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, dims, strict=False):
        dim.Clear()
        dim.dim_value = size


def _set_dims(model: onnx.ModelProto, *dims: int) -> None:
    _tensor(model).dims[:] = dims


def _attribute(model: onnx.ModelProto, name: str, value: object) -> None:
    conv = _conv(model)
    for attribute in list(conv.attribute):
        if attribute.name == name:
            conv.attribute.remove(attribute)
    conv.attribute.append(
        helper.make_attribute(name, value, attr_type=None if value else onnx.AttributeProto.INTS)
    )


def _expand_weight(model: onnx.ModelProto, *shape: int) -> None:
    """A weight that a few bytes expand to."""
    value = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one")
    target = numpy_helper.from_array(np.array(shape), "shape")
    model.graph.initializer.extend([value, target])
    model.graph.node.insert(0, helper.make_node("Expand", ["one", "shape"], ["expanded"]))
    _conv(model).input[1] = "expanded"


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def _reshape_cycle(model: onnx.ModelProto) -> None:
    """The weight is followed through nodes that read one another."""
    shape = numpy_helper.from_array(np.array([12, 12, 1, 1]), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.extend(
        [
            helper.make_node("Reshape", ["b", "shape"], ["a"]),
            helper.make_node("Reshape", ["a", "shape"], ["b"]),
        ]
    )
    _conv(model).input[1] = "a"


Edit = Callable[[onnx.ModelProto], object]
_EDITS: dict[str, tuple[Edit, bool]] = {
    "an input of 2^40 channels": (lambda m: _declare(m, 1, 2**40), False),
    "an input of negative size": (lambda m: _declare(m, -1, 12, -1, -5), True),
    "an input of 2^62 pixels": (lambda m: _declare(m, 1, 12, 2**31, 2**31), False),
    "a weight of 2^62 filters": (lambda m: _set_dims(m, 2**62, 12, 1, 1), False),
    "a weight whose size overflows": (lambda m: _set_dims(m, 2**32, 2**32, 1, 1), False),
    "a weight of negative size": (lambda m: _set_dims(m, -12, 12, 1, 1), False),
    "a weight without channels": (lambda m: _set_dims(m, 12, 0, 1, 1), False),
    "a weight of another rank": (lambda m: _set_dims(m, 144), False),
    "a weight of an unknown type": (lambda m: setattr(_tensor(m), "data_type", 99), False),
    "a weight without a type": (lambda m: _tensor(m).ClearField("data_type"), False),
    "a weight that expands to 2^60": (lambda m: _expand_weight(m, 2**30, 2**30, 1, 1), False),
    "a weight that expands to nothing": (lambda m: _expand_weight(m, 0, -1, 1, 1), False),
    "a bias that is too short": (lambda m: _tensor(m, 1).dims.__setitem__(0, 1), False),
    "a cycle": (_cycle, False),
    "a cycle of weights": (_reshape_cycle, False),
    "an undefined tensor": (lambda m: m.graph.node[0].input.__setitem__(0, "nobody"), False),
    "a tensor made twice": (lambda m: m.graph.node[-1].output.__setitem__(0, "conv"), False),
    "an initializer twice": (lambda m: m.graph.initializer.append(_tensor(m)), False),
    "an input twice": (lambda m: m.graph.input.append(m.graph.input[0]), False),
    "a convolution without a weight": (lambda m: _conv(m).input.__delitem__(slice(1, None)), False),
    "a convolution without an output": (lambda m: _conv(m).output.__delitem__(0), False),
    "no strides": (lambda m: _attribute(m, "strides", []), True),
    "strides of 0": (lambda m: _attribute(m, "strides", [0, 0]), False),
    "strides that are text": (lambda m: _attribute(m, "strides", "two"), False),
    "padding of 2^40": (lambda m: _attribute(m, "pads", [2**40] * 4), False),
    "padding of 2^12": (lambda m: _attribute(m, "pads", [2**12] * 4), True),
    "0 groups": (lambda m: _conv(m).attribute.append(helper.make_attribute("group", 0)), False),
    "a kernel that is not the weight's": (lambda m: _attribute(m, "kernel_shape", [1]), False),
    "an unknown auto_pad": (lambda m: _attribute(m, "auto_pad", "SAME_UPPET"), False),
    "an auto_pad that is a number": (lambda m: _attribute(m, "auto_pad", 3), False),
    "operator set 0": (lambda m: setattr(m.opset_import[0], "version", 0), False),
    "operator set -1": (lambda m: setattr(m.opset_import[0], "version", -1), False),
    "operator set 2^40": (lambda m: setattr(m.opset_import[0], "version", 2**40), False),
    "two operator sets": (lambda m: m.opset_import.add(version=7), False),
    "format version -1": (lambda m: setattr(m, "ir_version", -1), False),
    "format version 2^40": (lambda m: setattr(m, "ir_version", 2**40), False),
    "an unknown operator": (lambda m: setattr(_conv(m), "op_type", "Convolve"), False),
    "an operator of an unknown domain": (lambda m: setattr(_conv(m), "domain", "who"), False),
    "an attribute twice": (lambda m: _conv(m).attribute.append(_conv(m).attribute[0]), False),
    "fixed tensors 100,000 deep": (
        lambda m: m.metadata_props.add(key="onnx_igpc.fixed_tensors", value="[" * 100_000),
        False,
    ),
    "names of weights in the metadata that are numbers": (
        lambda m: m.metadata_props.add(key="onnx_igpc.fixed_tensors", value="[1]"),
        False,
    ),
    "no output": (lambda m: m.graph.output.__delitem__(0), False),
    "no node": (lambda m: m.graph.node.__delitem__(slice(None)), False),
    "a convolution alone": (lambda m: m.graph.node.__delitem__(slice(1, None)), False),
}


def calls_without_measure(count: int, recursive: bool = False) -> onnx.ModelProto:
    """Functions that each call the next one twice; the last calls the first where ``recursive``."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("l", 1)]
    functions = []
    for index in range(count):
        following = f"f{index + 1}" if index < count - 1 else "f0" if recursive else ""
        nodes = [helper.make_node("Relu", ["x"], ["y"])]
        if following:
            nodes = [
                helper.make_node(following, ["x"], ["a"], domain="l"),
                helper.make_node(following, ["a"], ["y"], domain="l"),
            ]
        functions.append(helper.make_function("l", f"f{index}", ["x"], ["y"], nodes, opsets))
    info = [helper.make_tensor_value_info(name, 1, [1, 2, 3, 3]) for name in "xy"]
    call = helper.make_node("f0", ["x"], ["y"], domain="l")
    graph = helper.make_graph([call], "calls", info[:1], info[1:])
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def nested(depth: int) -> bytes:
    """An If in an If in an If, written by hand: protobuf itself does not read it from some depth on."""
    head = GraphBuilder()
    head.input("x", [1, 12, 3, 3])
    head.initializer("cond", np.array(True))
    head.output("y", [1, 12, 3, 3])
    name = "out"
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], [name])],
        "g",
        [],
        [helper.make_tensor_value_info(name, 1, [1, 12, 3, 3])],
    ).SerializeToString()
    for level in range(depth):
        output = "y" if level == depth - 1 else f"out{level}"
        node = helper.make_node("If", ["cond"], [output]).SerializeToString()
        for branch in (b"then_branch", b"else_branch"):
            attribute = _field(1, branch) + _field(
                6, graph if branch[0:1] == b"t" else _leaf(level)
            )
            node += _field(5, attribute + b"\xa0\x01\x05")
        info = helper.make_tensor_value_info(output, 1, [1, 12, 3, 3]).SerializeToString()
        graph = _field(1, node) + _field(2, b"g") + _field(12, info)
    model = head.model(check=False)
    rest = model.graph
    outer = graph
    for tensor in rest.initializer:
        outer += _field(5, tensor.SerializeToString())
    for value in rest.input:
        outer += _field(11, value.SerializeToString())
    model.ClearField("graph")
    return bytes(model.SerializeToString()) + _field(7, outer)


def _leaf(level: int) -> bytes:
    name = f"leaf{level}"
    info = helper.make_tensor_value_info(name, 1, [1, 12, 3, 3])
    node = helper.make_node("Relu", ["x"], [name])
    return bytes(helper.make_graph([node], "g", [], [info]).SerializeToString())


def _field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that has a length."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def odd_names(name: str) -> onnx.ModelProto:
    """A model whose nodes, values, weights, inputs and outputs all have ``name`` in theirs."""
    model = pointwise_model(12, 12)
    for node in model.graph.node:
        node.name = f"{name}{node.name}"
        node.input[:] = [f"{name}{each}" for each in node.input]
        node.output[:] = [f"{name}{each}" for each in node.output]
    for entry in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        entry.name = f"{name}{entry.name}"
    return model


def hostile_digests() -> Iterator[tuple[str, str]]:
    """Reports inside a model that this tool did not write."""
    good = pointwise_model(12, 12)
    written = compress(good, Published(3)).model.metadata_props[0].value
    whole = json.loads(written)
    for name, change in (
        ("other version", {"version": 99}),
        ("sites that are text", {"sites": "many"}),
        ("totals that are a list", {"totals": [1, 2]}),
        ("warnings that are numbers", {"warnings": [1, 2]}),
        ("shapes that are text", {"input_shapes": {"x": "wide"}}),
        ("epochs that are a number", {"finetune": {"epochs": 7}}),
        ("rows that are text", {"finetune": {"epochs": [{"loss": "small"}]}}),
        ("agreement that is a list", {"damage": {"agreement": []}}),
        ("an unknown field", {"surprise": 1}),
        ("checks that are nested", {"checks": {"a": {"b": 1}}}),
        ("options 200 deep", {"options": json.loads('{"a":' * 200 + "1" + "}" * 200)}),
    ):
        yield name, json.dumps({**whole, **change})
    yield "not JSON", "{"
    yield "a list", "[]"
    yield "100,000 deep", "[" * 100_000
    yield "a number of 10,000 digits", written.replace('"version":1', '"version":' + "1" * 10_000)
    yield "a site with a wrong field", written.replace('"in_channels":12', '"in_channels":"12"')
