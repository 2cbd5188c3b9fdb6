"""Small random CNNs for property tests: chains and branches of everything a rewrite must respect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.helpers import GraphBuilder, runs_listed_weights

OPSETS = (
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    16,
    17,
    18,
    19,
    20,
    21,
    22,
    23,
    onnx.defs.onnx_opset_version(),
)
_ACTIVATIONS = ("Relu", "Relu6", "Sigmoid", "Swish", "Tanh", "LeakyRelu", "Elu")
# What names may look like: paths, globs, markup, escapes, other alphabets, and what we insert.
NAMES = (
    "",
    "same",
    "a/b\\c:d",
    "conv[0]*?",
    "[bold]x[/]",
    "<script>alert(1)</script>",
    "line\nbreak\t",
    "\x1b[31mred",
    "\U0001f600",
    "Сеть/слой",
    "conv1/igpc/K",
)


@dataclass
class Network:
    """Appends random layers to a builder; ``values`` are the maps made so far, with channels.

    Every layer takes a map and its channels, keeps the size of the map, and gives what it made.
    """

    draw: st.DrawFn
    builder: GraphBuilder
    prefix: str = ""
    values: list[tuple[str, int]] = field(default_factory=list)
    shared: dict[tuple[int, int], str] = field(default_factory=dict)
    count: int = 0

    def flip(self) -> bool:
        return self.draw(st.booleans())

    def seldom(self) -> bool:
        return not self.draw(st.integers(0, 5))

    def fresh(self, kind: str) -> str:
        self.count += 1
        return f"{self.prefix}{kind}{self.count}"

    def step(self, layers: list[Any]) -> None:
        """Append one of ``layers`` to one of the latest maps."""
        x, C = self.draw(st.sampled_from(self.values[-2:]))
        self.values.append(self.draw(st.sampled_from(layers))(x, C))

    def layers(self) -> list[Any]:
        """The layers that need nothing but nodes; pointwise convolutions are likeliest."""
        return [
            *[self.pointwise] * 8,
            self.depthwise,
            self.batch_norm,
            self.activation,
            self.gate,
            self.strided_gate,
            self.sequence_gate,
            self.padded,
            self.add,
            self.concat,
            self.channel_gather,
            self.reshaped_weight,
        ]

    def pointwise(self, x: str, C: int, F: int = 0) -> tuple[str, int]:
        F = F or self.draw(st.integers(1, 40))
        name = self.fresh("conv")
        attributes: dict[str, Any] = {} if self.flip() else {"kernel_shape": [1, 1]}
        if self.seldom():
            attributes["auto_pad"] = self.draw(st.sampled_from(["SAME_UPPER", "VALID", "NOTSET"]))
        self.builder.conv(x, name, C, F, bias=self.flip(), **attributes)
        conv = self.builder.nodes[-1]
        if len(conv.input) == 2 and self.seldom():
            conv.input.append("")
        if (C, F) in self.shared and self.flip():
            conv.input[1] = self.shared[C, F]
            if self.flip():
                conv.input[1] = self.builder.add("Identity", [conv.input[1]], self.fresh("same"))
                self.builder.nodes.append(self.builder.nodes.pop(-2))
        self.shared.setdefault((C, F), f"{name}_w")
        return name, F

    def reshaped_weight(self, x: str, C: int) -> tuple[str, int]:
        """A weight that is stored as a matrix, or transposed."""
        name, F = self.pointwise(x, C)
        matrix = (self.builder.random(C, F) / np.sqrt(C)).astype(self.builder.dtype)
        stored = self.builder.stored(f"{name}_matrix", matrix)
        turned = self.builder.add("Transpose", [stored], f"{name}_turned", perm=[1, 0])
        shape = self.builder.initializer(f"{name}_shape", np.array([F, C, 1, 1]))
        weight = self.builder.add("Reshape", [turned, shape], f"{name}_kernel")
        nodes = self.builder.nodes
        conv = next(node for node in nodes if list(node.output) == [name])
        conv.input[1] = weight
        nodes.remove(conv)
        nodes.append(conv)
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
        return self._gated(x, self.builder.activation(squeezed, self.fresh("act"), "Relu"), S, C)

    def strided_gate(self, x: str, C: int) -> tuple[str, int]:
        """A gate that is made by a convolution with strides."""
        name = self.fresh("conv")
        self.builder.conv(x, name, C, C, strides=[2, self.draw(st.integers(1, 3))])
        pooled = self.builder.add("GlobalAveragePool", [name], self.fresh("pool"))
        return self._gated(x, pooled, C, C)

    def sequence_gate(self, x: str, C: int) -> tuple[str, int]:
        """A gate that is made by a convolution with one spatial dimension."""
        flat = self.builder.initializer(self.fresh("flat"), np.array([0, 0, -1]))
        row = self.builder.add("Reshape", [x, flat], self.fresh("row"))
        name, F = self.fresh("conv"), self.draw(st.integers(1, 40))
        self.builder.conv(row, name, C, F, dims=1, bias=self.flip())
        deep = self.builder.initializer(self.fresh("deep"), np.array([0, 0, -1, 1]))
        back = self.builder.add("Reshape", [name, deep], self.fresh("map"))
        pooled = self.builder.add("GlobalAveragePool", [back], self.fresh("pool"))
        return self._gated(x, pooled, F, C)

    def _gated(self, x: str, pooled: str, S: int, C: int) -> tuple[str, int]:
        name = self.fresh("conv")
        self.builder.conv(pooled, name, S, C)
        gate = self.builder.activation(name, self.fresh("act"), "Sigmoid")
        return self.builder.add("Mul", [x, gate], self.fresh("mul")), C

    def padded(self, x: str, C: int) -> tuple[str, int]:
        """A convolution with padding, cut to size by a pooling."""
        name, F = self.fresh("conv"), self.draw(st.integers(1, 40))
        self.builder.conv(x, name, C, F, bias=self.flip(), pads=[1] * 4)
        return self.builder.add("MaxPool", [name], self.fresh("pool"), kernel_shape=[3, 3]), F

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
    from tests.random_scopes import scoped_layers

    opset = draw(st.sampled_from(OPSETS))
    # Integers in Constant nodes came with opset 9.
    forms = ["initializer", "input", "constant"] if opset >= 9 else ["initializer"]
    dtype = draw(st.sampled_from([np.float32] * 3 + [np.float16]))
    if not runs_listed_weights(dtype):
        forms = [form for form in forms if form != "input"]
    builder = GraphBuilder(
        opset, dtype, weights=draw(st.sampled_from(forms)), seed=draw(st.integers(0, 99))
    )
    network = Network(draw, builder)
    C = draw(st.integers(1, 40))
    dims = [draw(st.sampled_from([2, 2, "batch", None])), C, *draw(_sides())]
    network.values.append((builder.input("x", dims), C))
    if draw(st.booleans()):
        network.values.append((builder.input("second", dims), C))
    layers = network.layers()
    if opset >= 13:
        layers += scoped_layers(network) * 2
    for _ in range(draw(st.integers(2, 9))):
        network.step(layers)
    _add_outputs(network)
    model = builder.model(check=False)
    _rename(draw, model)
    _clutter(draw, model)
    if draw(st.booleans()):
        declared = onnx.shape_inference.infer_shapes(model, data_prop=True)
        for output, inferred in zip(model.graph.output, declared.graph.output, strict=True):
            output.CopyFrom(inferred)
        model.graph.value_info.extend(declared.graph.value_info)
    onnx.checker.check_model(model, full_check=True)
    return model


def _sides() -> st.SearchStrategy[list[int | str | None]]:
    return st.sampled_from([[4, 4], [4, 4], ["height", "width"], [None, None], [3, "width"]])


def _add_outputs(network: Network) -> None:
    """The last value, and others: those that other layers read too, and an input through nothing."""
    draw, made = network.draw, [name for name, _ in network.values if name not in ("x", "second")]
    chosen = {made[-1], *draw(st.lists(st.sampled_from(made), max_size=2))}
    for name in sorted(chosen):
        network.builder.output(name, [None, dict(network.values)[name], None, None])
    if network.seldom():
        network.builder.add("Identity", ["x"], "echo")
        network.builder.output("echo", [None] * 4)
    if network.seldom() and network.shared:
        weight = sorted(network.shared.values())[0]
        network.builder.add("Identity", [weight], "weight_out")
        network.builder.output("weight_out", [None] * 4)


def _rename(draw: st.DrawFn, model: onnx.ModelProto) -> None:
    """Give nodes no name, the same name, and names that mean something elsewhere."""
    if draw(st.booleans()):
        return
    for node in model.graph.node:
        if draw(st.booleans()):
            node.name = draw(st.sampled_from(NAMES))


def _clutter(draw: st.DrawFn, model: onnx.ModelProto) -> None:
    """What nobody reads, under names that the rewrite would like to have; metadata and doc strings."""
    if draw(st.booleans()):
        return
    label = next((node.name for node in model.graph.node if node.op_type == "Conv"), "")
    if model.ir_version >= 4:
        unused = np.zeros(3, np.float32)
        for name in (f"{label}/igpc/K.weight", "folded_weight", "merged_indices"):
            model.graph.initializer.append(onnx.numpy_helper.from_array(unused, name))
    dead = onnx.helper.make_node("Neg", ["x"], [f"{label}/igpc/K_output"], doc_string="unread")
    model.graph.node.append(dead)
    model.graph.doc_string = "line\nbreak \U0001f600"
    model.metadata_props.add(key="note", value="<b>kept</b>")
