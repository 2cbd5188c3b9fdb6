"""Small random CNNs for property tests: chains and branches of everything a rewrite must respect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.helpers import GraphBuilder

_ACTIVATIONS = ("Relu", "Relu6", "Sigmoid", "Swish", "Tanh", "LeakyRelu", "Elu")


@dataclass
class _Network:
    """Appends random layers to a builder; ``values`` are the maps made so far, with channels."""

    draw: st.DrawFn
    builder: GraphBuilder
    values: list[tuple[str, int]] = field(default_factory=list)
    shared: dict[tuple[int, int], str] = field(default_factory=dict)
    count: int = 0

    def fresh(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def pointwise(self, x: str, C: int) -> tuple[str, int]:
        F = self.draw(st.integers(1, 40))
        name = self.fresh("conv")
        attributes: dict[str, Any] = {} if self.draw(st.booleans()) else {"kernel_shape": [1, 1]}
        self.builder.conv(x, name, C, F, bias=self.draw(st.booleans()), **attributes)
        if (C, F) in self.shared and self.draw(st.booleans()):
            conv = self.builder.nodes[-1]
            conv.input[1] = self.shared[C, F]
            if self.draw(st.booleans()):
                conv.input[1] = self.builder.add("Identity", [conv.input[1]], self.fresh("same"))
                self.builder.nodes.append(self.builder.nodes.pop(-2))
        self.shared.setdefault((C, F), f"{name}_w")
        return name, F

    def depthwise(self, x: str, C: int) -> tuple[str, int]:
        name = self.fresh("dw")
        return self.builder.conv(x, name, C, C, kernel=3, group=C, pads=[1] * 4), C

    def batch_norm(self, x: str, C: int) -> tuple[str, int]:
        return self.builder.batch_norm(x, self.fresh("bn"), C), C

    def activation(self, x: str, C: int) -> tuple[str, int]:
        kind = self.draw(st.sampled_from(_ACTIVATIONS))
        return self.builder.activation(x, self.fresh("act"), kind), C

    def gate(self, x: str, C: int) -> tuple[str, int]:
        """Squeeze and excite."""
        pooled = self.builder.add("GlobalAveragePool", [x], self.fresh("pool"))
        squeezed, S = self.pointwise(pooled, C)
        name = self.fresh("conv")
        self.builder.conv(self.builder.activation(squeezed, self.fresh("act"), "Relu"), name, S, C)
        gate = self.builder.activation(name, self.fresh("act"), "Sigmoid")
        return self.builder.add("Mul", [x, gate], self.fresh("mul")), C

    def add(self, x: str, C: int) -> tuple[str, int]:
        """A residual connection to any earlier value of as many channels."""
        fitting = [name for name, channels in self.values if channels == C]
        return self.builder.add(
            "Add", [x, self.draw(st.sampled_from(fitting))], self.fresh("add")
        ), C

    def concat(self, x: str, C: int) -> tuple[str, int]:
        other, channels = self.draw(st.sampled_from(self.values))
        return self.builder.add("Concat", [x, other], self.fresh("concat"), axis=1), C + channels

    def channel_gather(self, x: str, C: int) -> tuple[str, int]:
        """A channel shuffle of the model's own, which is nobody else's business."""
        order = self.draw(st.permutations(range(C)))
        stored = self.builder.initializer(self.fresh("order"), np.array(order, np.int64))
        return self.builder.add("Gather", [x, stored], self.fresh("gather"), axis=1), C


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """A network of two to nine layers, with up to three outputs."""
    opset = draw(st.sampled_from([7, 9, 11, 13, 17, 21]))
    # Integers in Constant nodes came with opset 9.
    forms = ["initializer", "input", "constant"] if opset >= 9 else ["initializer"]
    builder = GraphBuilder(
        opset, weights=draw(st.sampled_from(forms)), seed=draw(st.integers(0, 99))
    )
    C = draw(st.integers(1, 40))
    network = _Network(draw, builder, [(builder.input("x", [2, C, 4, 4]), C)])
    layers = [
        *[network.pointwise] * 6,
        network.depthwise,
        network.batch_norm,
        network.activation,
        network.gate,
        network.add,
        network.concat,
        network.channel_gather,
    ]
    for _ in range(draw(st.integers(2, 9))):
        recent = network.values[-2:]
        x, C = draw(st.sampled_from(recent))
        network.values.append(draw(st.sampled_from(layers))(x, C))
    outputs = {
        network.values[-1][0],
        *draw(
            st.lists(st.sampled_from(network.values[1:]), max_size=2).map(
                lambda v: [n for n, _ in v]
            )
        ),
    }
    for name in sorted(outputs):
        builder.output(name, [2, dict(network.values)[name], 4, 4])
    return builder.model()
