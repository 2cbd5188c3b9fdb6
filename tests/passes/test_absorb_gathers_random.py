"""Random chains and branches of everything that an order can go through: the output stays the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import GraphBuilder
from tests.passes.absorbing import NEWEST, C, absorbed, finish, gather, grouped, start

_ACTIVATIONS = ("Relu", "Relu6", "Sigmoid", "Swish", "Tanh", "LeakyRelu", "Elu", "HardSigmoid")


class _Layers:
    """Appends a random layer to a builder; each keeps the channels and the size of the map."""

    def __init__(self, draw: st.DrawFn, builder: GraphBuilder) -> None:
        self.draw = draw
        self.builder = builder
        self.count = 0
        self.values = ["origin"]

    def fresh(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def constant(self, *shape: int) -> str:
        return self.builder.stored(self.fresh("v"), self.builder.random(*shape))

    def activation(self, x: str) -> str:
        kind = self.draw(st.sampled_from(_ACTIVATIONS))
        return self.builder.activation(x, self.fresh("act"), kind)

    def operand(self, x: str) -> str:
        shape = self.draw(st.sampled_from([(), (1,), (C, 1, 1), (1, C, 1, 1), (1, 1, 1), (6, 1)]))
        inputs = self.draw(st.permutations([x, self.constant(*shape)]))
        op = self.draw(st.sampled_from(["Add", "Mul", "Sub"]))
        return self.builder.add(op, inputs, self.fresh("op"))

    def slopes(self, x: str) -> str:
        shape = self.draw(st.sampled_from([(1,), (C, 1, 1)]))
        return self.builder.add("PRelu", [x, self.constant(*shape)], self.fresh("prelu"))

    def norm(self, x: str) -> str:
        return self.builder.batch_norm(x, self.fresh("bn"), C)

    def depthwise(self, x: str) -> str:
        bias = self.draw(st.booleans())
        name = self.fresh("dw")
        return self.builder.conv(x, name, C, C, kernel=3, group=C, bias=bias, pads=[1] * 4)

    def dense(self, x: str) -> str:
        return self.builder.conv(x, self.fresh("conv"), C, C, bias=self.draw(st.booleans()))

    def site(self, x: str) -> str:
        """Gather, K and a dense L."""
        k = grouped(self.builder, gather(self.builder, x, self.fresh("g")), self.fresh("k"), 4)
        return self.builder.conv(k, self.fresh("l"), C, C)

    def shuffled(self, x: str) -> str:
        """K and a Gather behind it."""
        return gather(self.builder, grouped(self.builder, x, self.fresh("k")), self.fresh("g"))

    def pool(self, x: str) -> str:
        op = self.draw(st.sampled_from(["MaxPool", "AveragePool"]))
        size = {"kernel_shape": [3, 3], "pads": [1] * 4}
        return self.builder.add(op, [x], self.fresh("pool"), **size)

    def gate(self, x: str) -> str:
        pooled = self.builder.add("GlobalAveragePool", [x], self.fresh("pool"))
        gated = self.builder.activation(self.dense(pooled), self.fresh("gate"), "Sigmoid")
        return self.builder.add("Mul", [x, gated], self.fresh("gated"))

    def sum(self, x: str) -> str:
        other = self.draw(st.sampled_from(self.values))
        return self.builder.add("Add", [x, other], self.fresh("sum"))

    def lrn(self, x: str) -> str:
        return self.builder.add("LRN", [x], self.fresh("lrn"), size=3)


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Up to eight layers between a convolution and a site."""
    opset = draw(st.sampled_from([9, 11, 13, 17, NEWEST]))
    dtypes: list[type[np.generic]] = [np.float32, np.float32, np.float16]
    dtype = draw(st.sampled_from(dtypes))
    builder = start(opset, dtype, draw(st.integers(0, 99)))
    builder.weights = draw(st.sampled_from(["initializer", "constant"]))
    layers = _Layers(draw, builder)
    kinds: list[Any] = [
        *[layers.activation] * 3,
        *[layers.site] * 2,
        *(layers.operand, layers.slopes, layers.norm, layers.depthwise, layers.dense),
        *(layers.shuffled, layers.pool, layers.gate, layers.sum),
        *([layers.lrn] if dtype == np.float32 else []),
    ]
    x = "origin"
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=8)):
        x = kind(x)
        layers.values.append(x)
    if draw(st.integers(0, 5)) == 0:
        builder.output(builder.add("Neg", [draw(st.sampled_from(layers.values))], "aside"))
    return finish(builder, x)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(networks())
def test_any_network_computes_the_same(before: onnx.ModelProto) -> None:
    found = absorbed(before)
    assert len(found.gathers) + len(found.result.changed) == sum(
        node.op_type == "Gather" for node in before.graph.node
    )
