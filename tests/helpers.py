"""Small graphs for the tests: pointwise convolutions in every spelling, random but seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_igpc import Budget, Calibration, Lowering, Published, SiteFilter

WeightForm = Literal["initializer", "constant", "input"]
"""Where the weights lie: an initializer, a Constant node, an initializer listed as graph input."""

_MAP_SIZE = 5
_IR_VERSION = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8}


@dataclass
class GraphBuilder:
    """Collects nodes and initializers; :meth:`model` checks what came out.

    Values are named by the caller; ``weights`` says in which form :meth:`stored` stores tensors.
    """

    opset: int = 17
    dtype: type[np.generic] = np.float32
    weights: WeightForm = "initializer"
    seed: int = 0

    def __post_init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.generator = np.random.default_rng(self.seed)

    @property
    def elem_type(self) -> int:
        return helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))

    def add(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node named ``output`` + ``_node``; returns ``output``."""
        name = str(attributes.pop("name", f"{output}_node"))
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def random(self, *shape: int) -> np.ndarray:
        """Normally distributed values of the builder's dtype."""
        return self.generator.standard_normal(shape).astype(self.dtype)

    def stored(self, name: str, values: np.ndarray) -> str:
        """Store a tensor in the builder's form; returns ``name``."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        if self.weights == "constant":
            return self.add("Constant", [], name, value=tensor)
        return self._initializer(tensor, listed=self.weights == "input")

    def initializer(self, name: str, values: np.ndarray) -> str:
        """Store a tensor as an initializer, whatever the builder's form; returns ``name``."""
        return self._initializer(numpy_helper.from_array(np.ascontiguousarray(values), name))

    def _initializer(self, tensor: onnx.TensorProto, listed: bool = False) -> str:
        self.initializers.append(tensor)
        # Up to ir_version 3 every initializer must be an input.
        if listed or _IR_VERSION.get(self.opset, 10) < 4:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            self.inputs.append(info)
        return str(tensor.name)

    def input(self, name: str, dims: Sequence[int | str | None], elem_type: int = 0) -> str:
        kind = elem_type or self.elem_type
        self.inputs.insert(0, helper.make_tensor_value_info(name, kind, dims))
        return name

    def output(
        self, name: str, dims: Sequence[int | str | None] | None = None, elem_type: int = 0
    ) -> str:
        kind = elem_type or self.elem_type
        self.outputs.append(helper.make_tensor_value_info(name, kind, dims))
        return name

    def conv(
        self,
        source: str,
        output: str,
        C: int,
        F: int,
        *,
        bias: bool = False,
        dims: int = 2,
        kernel: int = 1,
        **attributes: Any,
    ) -> str:
        """A convolution with stored random weights ``<output>_w`` and bias ``<output>_b``."""
        group = attributes.get("group", 1)
        weight = self.random(F, C // group, *[kernel] * dims) / np.sqrt(C)
        inputs = [source, self.stored(f"{output}_w", weight.astype(self.dtype))]
        if bias:
            inputs.append(self.stored(f"{output}_b", self.random(F)))
        return self.add("Conv", inputs, output, **attributes)

    def batch_norm(self, source: str, output: str, channels: int) -> str:
        """A BatchNormalization with stored random statistics ``<output>_scale`` and so on."""
        inputs = [source]
        for part in ("scale", "shift", "mean", "var"):
            values = self.random(channels)
            inputs.append(
                self.stored(
                    f"{output}_{part}", np.abs(values) + 0.5 if part in ("scale", "var") else values
                )
            )
        return self.add("BatchNormalization", inputs, output)

    def activation(self, source: str, output: str, kind: str) -> str:
        """Relu, Sigmoid, HardSwish, ...; ``Relu6`` is a Clip, ``Swish`` is x * Sigmoid(x)."""
        if kind == "Relu6" and self.opset < 11:
            return self.add("Clip", [source], output, min=0.0, max=6.0)
        if kind == "Relu6":
            bounds = [
                self.stored(f"{output}_{end}", np.array(value, self.dtype))
                for end, value in (("min", 0), ("max", 6))
            ]
            return self.add("Clip", [source, *bounds], output)
        if kind == "Swish":
            gate = self.add("Sigmoid", [source], f"{output}_gate")
            return self.add("Mul", [source, gate], output)
        return self.add(kind, [source], output)

    def graph(self, name: str = "small") -> onnx.GraphProto:
        """The graph as it stands, for use as a sub-graph."""
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)

    def model(self, *, check: bool = True, ir_version: int | None = None) -> onnx.ModelProto:
        """The model, its outputs' shapes inferred where not given; ``check`` runs onnx.checker with full shape inference."""
        domains = sorted({function.domain for function in self.functions})
        model = helper.make_model(
            self.graph(),
            opset_imports=[
                helper.make_opsetid("", self.opset),
                *(helper.make_opsetid(domain, 1) for domain in domains),
            ],
            functions=self.functions,
            ir_version=ir_version or (8 if self.functions else _IR_VERSION.get(self.opset, 10)),
        )
        if check:
            known = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
            for output, inferred in zip(model.graph.output, known, strict=True):
                if not output.type.tensor_type.HasField("shape"):
                    output.CopyFrom(inferred)
            onnx.checker.check_model(model, full_check=True)
        return model


def pointwise_model(
    C: int = 32,
    F: int = 32,
    *,
    bias: bool = True,
    batch_norm: bool = False,
    activation: str | None = "Relu",
    opset: int = 17,
    dtype: type[np.generic] = np.float32,
    dims: int = 2,
    stride: int = 1,
    weights: WeightForm = "initializer",
    head: bool = False,
    batch: int | str = "batch",
    seed: int = 0,
) -> onnx.ModelProto:
    """x -> 1x1 Conv ``conv`` [-> BatchNorm] [-> activation] [-> 3x3 Conv] -> y.

    Input ``x`` has shape (batch, C, 5, ...) with ``dims`` spatial dimensions of 5; the convolution's
    weight is ``conv_w`` and its bias ``conv_b``. Unless it is the ``head``, a depthwise
    convolution ``last`` with kernel 3 makes the output, so that the site may be rewritten.
    """
    builder = GraphBuilder(opset, dtype, weights, seed)
    builder.input("x", [batch, C, *[_MAP_SIZE] * dims])
    value = builder.conv("x", "conv", C, F, bias=bias, dims=dims, strides=[stride] * dims)
    if batch_norm:
        value = builder.batch_norm(value, "bn", F)
    if activation is not None:
        value = builder.activation(value, "act", activation)
    if not head:
        value = builder.conv(value, "last", F, F, dims=dims, kernel=3, group=F, pads=[1] * 2 * dims)
    builder.add("Identity", [value], "y")
    builder.output("y", [batch, F, *[-(-_MAP_SIZE // stride)] * dims])
    return builder.model()


def with_following_layers(
    add: Callable[[GraphBuilder, str], str], C: int = 32, F: int = 32, *, opset: int = 17
) -> onnx.ModelProto:
    """x -> 1x1 Conv ``conv`` -> what ``add(builder, "conv")`` appends -> output of any shape."""
    builder = GraphBuilder(opset)
    builder.input("x", [1, C, _MAP_SIZE, _MAP_SIZE])
    last = add(builder, builder.conv("x", "conv", C, F, bias=True))
    builder.output(last)
    return builder.model()


def runs_listed_weights(dtype: type[np.generic]) -> bool:
    """Whether onnxruntime runs convolutions whose weights are listed among the inputs.

    Before 1.30 it ends with a segmentation fault where those are float16.
    """
    import onnxruntime as ort

    major, minor = map(int, ort.__version__.split(".")[:2])
    return dtype is not np.float16 or (major, minor) >= (1, 30)


def run(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray] | None = None, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Every output by name, from onnxruntime on the CPU; inputs are random where not given."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    fed = random_feeds(model, seed) if feeds is None else feeds
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, fed), strict=True))


def random_feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Normally distributed values for every input without an initializer; dynamic dimensions are 2."""
    generator = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: generator.standard_normal(
            [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
        ).astype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for value in model.graph.input
        if value.name not in stored
    }


def node_named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node of the main graph with that name, or whose first output has it."""
    found: onnx.NodeProto = next(n for n in model.graph.node if name in (n.name, n.output[0]))
    return found


def tensor_named(model: onnx.ModelProto, name: str) -> np.ndarray:
    """The values of an initializer or Constant node of the main graph."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    node = node_named(model, name)
    return numpy_helper.to_array(node.attribute[0].t)


_BUDGET = "family grouping sensitivity save_sensitivity"
_TOGETHER = {
    "plan": (Published, f"channels_per_group scheme form init seed {_BUDGET}"),
    "sites": (SiteFilter, "include exclude include_heads"),
    "calibration": (Calibration, "data preprocessing samples sequential holdout"),
    "lowering": (Lowering, "setting allow_slower cache"),
}


def options_of(target: str | None = None, **flat: Any) -> dict[str, Any]:
    """Arguments of compress: options by their own names, put together into the dataclasses they belong to."""
    given: dict[str, Any] = {}
    for argument, (kind, names) in _TOGETHER.items():
        own = {name: flat.pop(name) for name in names.split() if name in flat}
        if argument == "plan" and target is not None:
            given["plan"] = Budget(target, **own)
        elif own:
            given[argument] = kind(**own)
    return {**given, **flat}
