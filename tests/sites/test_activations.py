"""Every spelling of an activation is recognised, and nothing that merely looks like one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, defs

from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.activations import Activation, match_activation
from tests.helpers import GraphBuilder

Append = Callable[[GraphBuilder, str], str]
C = 8


def matched(
    append: Append, *, opset: int = 17, dtype: type[np.generic] = np.float32, tail: bool = True
) -> Activation | None:
    """What is found behind the Conv ``conv``, after which ``append`` adds nodes."""
    builder = GraphBuilder(opset, dtype)
    builder.input("x", [1, C, 5, 5])
    last = append(builder, builder.conv("x", "conv", C, C))
    if tail:
        builder.add("Neg", [last], "y")
        last = "y"
    builder.output(last, [1, C, 5, 5])
    view = GraphView(OpenModel(builder.model(check=False)))
    conv = next(ref for ref in view.nodes if ref.op_type == "Conv")
    return match_activation(view, conv.node.outputs[0], np.dtype(dtype))


def op(op_type: str, *constants: float | np.ndarray, **attributes: Any) -> Append:
    """One operator with constant inputs behind the first."""

    def append(builder: GraphBuilder, x: str) -> str:
        inputs = [x, *(number(builder, each, f"c{i}") for i, each in enumerate(constants))]
        return builder.add(op_type, inputs, "act", **attributes)

    return append


def number(builder: GraphBuilder, value: float | np.ndarray, name: str) -> str:
    return builder.stored(name, np.asarray(value, builder.dtype).reshape(np.shape(value) or (1,)))


def formula(text: str) -> Append:
    """Nodes from a formula in reverse Polish notation, as ``x x Sigmoid Mul``."""

    def append(builder: GraphBuilder, x: str) -> str:
        stack: list[str] = []
        for index, word in enumerate(text.split()):
            if word == "x":
                stack.append(x)
            elif word[0].isdigit() or word[0] == "-":
                stack.append(number(builder, float(word), f"n{index}"))
            else:
                arity = {"Add": 2, "Sub": 2, "Mul": 2, "Div": 2, "Pow": 2, "Clip": 3}.get(word, 1)
                inputs = stack[-arity:]
                del stack[-arity:]
                attributes = {"alpha": 1 / 6, "beta": 0.5} if word == "HardSigmoid" else {}
                stack.append(builder.add(word, inputs, f"v{index}", **attributes))
        return stack.pop()

    return append


SINGLE = {
    "Relu": (op("Relu"), 7),
    "Clip": (op("Clip", 0, 6), 11),
    "Clip with attributes": (op("Clip", min=0.0, max=6.0), 7),
    "Sigmoid": (op("Sigmoid"), 7),
    "HardSigmoid": (op("HardSigmoid", alpha=1 / 6), 7),
    "HardSwish": (op("HardSwish"), 14),
    "Swish": (op("Swish"), 24),
    "Mish": (op("Mish"), 18),
    "Gelu": (op("Gelu"), 20),
    "LeakyRelu": (op("LeakyRelu", alpha=0.2), 7),
    "PRelu": (op("PRelu", 0.25 * np.ones((C, 1, 1))), 7),
    "Elu": (op("Elu"), 7),
    "Tanh": (op("Tanh"), 7),
}


@pytest.mark.parametrize("case", SINGLE)
def test_one_operator(case: str) -> None:
    append, opset = SINGLE[case]
    found = matched(append, opset=opset)
    assert found is not None
    assert (found.name, len(found.nodes)) == (case.split()[0], 1)
    assert found.output.name == "act"


# The spellings of exporters, in reverse Polish notation.
SPELLED = {
    "Swish": ["x x Sigmoid Mul", "x Sigmoid x Mul"],
    "HardSwish": [
        "x x 3 Add 0 6 Clip Mul 6 Div",
        "x 3 Add 0 6 Clip x Mul 6 Div",
        "x x 3 Add 0 6 Clip 6 Div Mul",
        "x 3 Add 0 6 Clip 6 Div x Mul",
        "x 6 Div x 3 Add 0 6 Clip Mul",
        "x x 3 Add 0 6 Clip 0.16666667 Mul Mul",
        "x x HardSigmoid Mul",
        "x HardSigmoid x Mul",
        "3 x Add 0 6 Clip x Mul 0.16666667 Mul",
    ],
    "HardSigmoid": ["x 3 Add 0 6 Clip 6 Div", "x 3 Add 0 6 Clip 0.16666667 Mul"],
    "Mish": ["x x Softplus Tanh Mul", "x Softplus Tanh x Mul", "x x Exp 1 Add Log Tanh Mul"],
    "Gelu": [
        "x 1.41421356 Div Erf 1 Add x Mul 0.5 Mul",
        "x x 1.41421356 Div Erf 1 Add Mul 0.5 Mul",
        "x 0.5 Mul x 0.70710678 Mul Erf 1 Add Mul",
    ],
    "Gelu (tanh)": [
        "x 0.5 Mul x x 3 Pow 0.044715 Mul Add 0.79788456 Mul Tanh 1 Add Mul",
        "x x x Mul x Mul 0.044715 Mul Add 0.79788456 Mul Tanh 1 Add x Mul 0.5 Mul",
    ],
    "Relu6": ["x Relu 0 6 Clip"],
}
SPELLINGS = [(name, text) for name, texts in SPELLED.items() for text in texts]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("name", "text"), SPELLINGS)
def test_spelled_with_several_operators(name: str, text: str, dtype: type[np.generic]) -> None:
    found = matched(formula(text), dtype=dtype)
    assert found is not None
    words = [word for word in text.split() if word[0].isupper()]
    assert found.name == name
    assert sorted(ref.op_type for ref in found.nodes) == sorted(words)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 21, defs.onnx_opset_version()])
def test_spelled_in_other_operator_sets(opset: int) -> None:
    """Before opset 11 the bounds of Clip are attributes."""

    def append(builder: GraphBuilder, x: str) -> str:
        shifted = builder.add("Add", [x, number(builder, 3, "three")], "shifted")
        if opset < 11:
            clipped = builder.add("Clip", [shifted], "clipped", min=0.0, max=6.0)
        else:
            bounds = [number(builder, each, f"bound{each}") for each in (0, 6)]
            for tensor in builder.initializers[-2:]:
                del tensor.dims[:]
            clipped = builder.add("Clip", [shifted, *bounds], "clipped")
        product = builder.add("Mul", [x, clipped], "product")
        return builder.add("Div", [product, number(builder, 6, "six")], "act")

    found = matched(append, opset=opset)
    assert found is not None
    assert (found.name, len(found.nodes), found.output.name) == ("HardSwish", 4, "act")


def test_constants_of_nodes_between() -> None:
    """Exporters write the constants as nodes, in the midst of the activation."""

    def append(builder: GraphBuilder, x: str) -> str:
        builder.weights = "constant"
        return formula("x 3 Add 0 6 Clip 6 Div x Mul")(builder, x)

    found = matched(append)
    assert found is not None
    assert [ref.op_type for ref in found.nodes] == ["Add", "Clip", "Div", "Mul"]


def test_a_gate_on_another_tensor_ends_the_activation() -> None:
    """Squeeze and excite: the Sigmoid belongs to the layer, the product does not."""

    def append(builder: GraphBuilder, x: str) -> str:
        gate = builder.add("Sigmoid", [x], "gate")
        return builder.add("Mul", ["x", gate], "product")

    found = matched(append)
    assert found is not None
    assert (found.name, found.output.name) == ("Sigmoid", "gate")


NOT_ACTIVATIONS: dict[str, Append] = {
    "input read elsewhere": lambda b, x: b.add("Add", [x, b.add("Relu", [x], "act")], "sum"),
    "swish whose gate is read elsewhere": lambda b, x: b.add(
        "Add", [b.add("Mul", [x, b.add("Sigmoid", [x], "gate")], "product"), "gate"], "sum"
    ),
    "half of a hard-swish": formula("x x 3 Add 0 6 Clip Mul"),
    "scaled input": formula("x 2 Mul"),
    "no activation": op("AveragePool", kernel_shape=[1, 1]),
    "bounds that are computed": lambda b, x: b.add(
        "Clip", [x, b.add("ReduceMin", ["x"], "low", keepdims=0)], "act"
    ),
    "gate per channel": lambda b, x: b.add(
        "Mul", [x, b.add("Sigmoid", [b.initializer("w", b.random(1, C, 1, 1))], "g")], "act"
    ),
    "Swish with another slope": formula("x x 1.3 Mul Sigmoid Mul"),
}


@pytest.mark.parametrize("case", NOT_ACTIVATIONS)
def test_what_is_no_activation(case: str) -> None:
    assert matched(NOT_ACTIVATIONS[case]) is None


def test_an_input_that_is_an_output_is_no_input_of_an_activation() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, C, 5, 5])
    builder.add("Relu", [builder.conv("x", "conv", C, C)], "y")
    builder.output("y", [1, C, 5, 5])
    builder.output("conv", [1, C, 5, 5])
    view = GraphView(OpenModel(builder.model()))
    assert match_activation(view, view.nodes[0].node.outputs[0]) is None


def test_a_value_inside_that_is_an_output_belongs_to_nobody_else() -> None:
    builder = GraphBuilder()
    builder.input("x", [1, C, 5, 5])
    conv = builder.conv("x", "conv", C, C)
    builder.add("Mul", [conv, builder.add("Sigmoid", [conv], "gate")], "y")
    builder.output("y", [1, C, 5, 5])
    builder.output("gate", [1, C, 5, 5])
    view = GraphView(OpenModel(builder.model()))
    assert match_activation(view, view.nodes[0].node.outputs[0]) is None


def test_an_activation_that_is_an_output_ends_there() -> None:
    """The values inside must not be outputs, but what the activation makes may be one."""
    found = matched(formula("x x Sigmoid Mul"), tail=False)
    assert found is not None
    assert found.name == "Swish"


def test_a_cast_behind_it_is_no_part_of_it() -> None:
    def append(builder: GraphBuilder, x: str) -> str:
        return builder.add(
            "Cast", [builder.add("Relu", [x], "act")], "half", to=TensorProto.FLOAT16
        )

    found = matched(append)
    assert found is not None
    assert (found.name, found.output.name) == ("Relu", "act")


def test_a_computation_in_another_type_is() -> None:
    """Mixed precision: what is computed in float32 between two Casts is one activation."""

    def append(builder: GraphBuilder, x: str) -> str:
        wide = builder.add("Cast", [x], "wide", to=TensorProto.FLOAT)
        gate = builder.add("Tanh", [builder.add("Softplus", [wide], "soft")], "gate")
        product = builder.add("Mul", [wide, gate], "product")
        return builder.add("Cast", [product], "act", to=TensorProto.FLOAT16)

    found = matched(append, dtype=np.float16)
    assert found is not None
    assert (found.name, len(found.nodes)) == ("Mish", 5)
