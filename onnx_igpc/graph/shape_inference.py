"""Shapes and constants of every value of a model, node by node, without running it.

The nodes are visited once in their order, those that no output needs left out. Sub-graphs and
function bodies are entered where they are called, with the types of that call. Weights are never
copied: only tensors of at most 1024 elements are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, helper, numpy_helper

from onnx_igpc.graph.external_data import is_external
from onnx_igpc.graph.inputs import InputSpec, resolve_shapes
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.operator_inference import OperatorInference
from onnx_igpc.graph.shape_values import (
    MAX_KNOWN_ELEMENTS,
    UNKNOWN,
    Root,
    Value,
    bound,
    merged,
    tensor_type,
    with_first,
    without_first,
)
from onnx_igpc.graph.traversal import (
    NodeHolder,
    bind_attributes,
    function_path,
    live_nodes,
    subgraph_path,
    subgraphs,
)


@dataclass(frozen=True, eq=False)
class TracedNode:
    """A node in one visit: a function's body is visited at every call.

    ``bodies`` are what it runs: both branches of an If, the body of a Loop or a Scan, the body of a
    function; ``taken`` is the index of the only one that runs, where the condition of an If is
    constant for the assumed shapes. ``path`` is the scope in words, empty for the main graph. An
    input that is left out is ``None``.
    """

    node: onnx.NodeProto
    path: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    bodies: tuple[Trace, ...] = ()
    taken: int | None = None

    @property
    def op_type(self) -> str:
        """The operator's name if it is one of ONNX itself, otherwise empty."""
        return self.node.op_type if self.node.domain in ("", "ai.onnx") else ""

    @property
    def is_constant(self) -> bool:
        """Whether it is computed from stored tensors and shapes alone."""
        return not self.bodies and all(value.constant for value in self.outputs)


@dataclass
class Trace:
    """The visited nodes of one scope, in order, and the values of its outputs."""

    nodes: list[TracedNode] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)


Environment = dict[str, Value]


class ShapeTracer:
    """Visits a model once; :meth:`trace` gives every node with its inputs and outputs.

    ``input_shapes`` are the shapes assumed for the model's inputs: those given; otherwise 1 for an
    unknown first dimension, 224 for an unknown height, width or length.
    """

    def __init__(
        self, model: OpenModel, input_shapes: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        self._model = model
        self._functions = {(f.domain, f.name): f for f in model.proto.functions}
        self._operators = OperatorInference(model.proto.opset_import, model.proto.ir_version)
        # Functions may not call themselves; one that does is unknown at the second call.
        self._running: list[str] = []
        self._roots: dict[tuple[str, str], Root] = {}
        specs = _input_specs(model.proto.graph, input_shapes or {})
        self.input_shapes = resolve_shapes(specs, shapes=input_shapes)
        self._symbols = _symbols(model.proto.graph, self.input_shapes)

    def trace(self) -> Trace:
        """Every node that an output of the model needs."""
        environment: Environment = {}
        for value in self._model.proto.graph.input:
            shape = self.input_shapes.get(value.name)
            known = value.type if shape is None else tensor_type(_element(value.type), shape)
            environment[value.name] = Value(known)
        return self._scope(self._model.proto.graph, environment, "")

    def _scope(self, holder: NodeHolder, outer: Environment, path: str) -> Trace:
        """Visit the nodes of one graph or function body; ``outer`` is what they can see."""
        environment = dict(outer)
        declared: dict[str, TypeProto] = {}
        if isinstance(holder, onnx.GraphProto):
            for tensor in holder.initializer:
                environment[tensor.name] = self._stored(tensor, path, tensor.name)
            for sparse in holder.sparse_initializer:
                name = sparse.values.name
                environment[name] = self._stored_sparse(sparse, path, name)
            outputs = [output.name for output in holder.output]
            declared = {info.name: info.type for info in (*holder.value_info, *holder.output)}
        else:
            outputs = list(holder.output)
        trace = Trace()
        for node in live_nodes(holder):
            traced = self._visit(node, environment, path, declared)
            environment.update(zip(node.output, traced.outputs, strict=True))
            trace.nodes.append(traced)
        trace.outputs = [environment.get(name, UNKNOWN) for name in outputs]
        return trace

    def _visit(
        self,
        node: onnx.NodeProto,
        environment: Environment,
        path: str,
        declared: Mapping[str, TypeProto],
    ) -> TracedNode:
        inputs = tuple(environment.get(name, UNKNOWN) if name else None for name in node.input)
        bodies: tuple[Trace, ...] = ()
        taken = None
        standard = node.domain in ("", "ai.onnx")
        holds_bodies = any(True for _ in subgraphs(node))
        function = self._functions.get((node.domain, node.op_type))
        if function is not None and function_path(function) not in self._running:
            outputs, bodies = self._call(function, node, inputs)
        elif standard and node.op_type == "Constant":
            outputs = [self._constant_node(node, path)]
        elif standard and node.op_type == "If" and holds_bodies:
            outputs, bodies, taken = self._branches(node, inputs, environment, path)
        elif standard and node.op_type in ("Loop", "Scan") and holds_bodies:
            outputs, bodies = self._loop(node, inputs, environment, path)
        else:
            outputs = self._operators.infer(node, inputs)
        outputs += [UNKNOWN] * (len(node.output) - len(outputs))
        for index, name in enumerate(node.output):
            if outputs[index].shape is None and name in declared:
                known = bound(declared[name], self._symbols)
                outputs[index] = Value(known, outputs[index].constant)
        return TracedNode(node, path, inputs, tuple(outputs[: len(node.output)]), bodies, taken)

    def _stored(self, tensor: TensorProto, path: str, name: str) -> Value:
        elements = math.prod(tensor.dims)
        root = self._root(name, tensor.data_type, elements, path)
        small = None
        if elements <= MAX_KNOWN_ELEMENTS and tensor.data_type != TensorProto.STRING:
            external = is_external(tensor)
            small = numpy_helper.from_array(self._model.array(tensor)) if external else tensor
        return Value(tensor_type(tensor.data_type, tensor.dims), True, root, small)

    def _stored_sparse(self, sparse: onnx.SparseTensorProto, path: str, name: str) -> Value:
        stored = math.prod(sparse.values.dims)
        root = self._root(name, sparse.values.data_type, stored, path)
        return Value(tensor_type(sparse.values.data_type, sparse.dims), True, root)

    def _root(self, name: str, data_type: int, elements: int, path: str) -> Root:
        """One object per stored tensor, however often its scope is visited."""
        return self._roots.setdefault((path, name), Root(name, data_type, elements, not path))

    def _constant_node(self, node: onnx.NodeProto, path: str) -> Value:
        for attribute in node.attribute:
            if attribute.name == "value":
                return self._stored(attribute.t, path, node.output[0])
            if attribute.name == "sparse_value":
                return self._stored_sparse(attribute.sparse_tensor, path, node.output[0])
            if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
                kind = np.float32 if "float" in attribute.name else np.int64
                values = np.asarray(helper.get_attribute_value(attribute), dtype=kind)
                return self._stored(numpy_helper.from_array(values), path, node.output[0])
        return Value(constant=True)

    def _call(
        self,
        function: onnx.FunctionProto,
        node: onnx.NodeProto,
        inputs: Sequence[Value | None],
    ) -> tuple[list[Value], tuple[Trace, ...]]:
        given = {name: value for name, value in zip(function.input, inputs, strict=False) if value}
        attributes = {attribute.name: attribute for attribute in function.attribute_proto}
        attributes |= {attribute.name: attribute for attribute in node.attribute}
        outside = self._operators
        if function.opset_import:
            ir_version = self._model.proto.ir_version
            self._operators = OperatorInference(function.opset_import, ir_version)
        body = bind_attributes(function, attributes)
        self._running.append(function_path(function))
        trace = self._scope(body, given, self._running[-1])
        self._running.pop()
        self._operators = outside
        return list(trace.outputs), (trace,)

    def _branches(
        self,
        node: onnx.NodeProto,
        inputs: Sequence[Value | None],
        environment: Environment,
        path: str,
    ) -> tuple[list[Value], tuple[Trace, ...], int | None]:
        graphs = list(subgraphs(node))
        traces = tuple(
            self._scope(graph, environment, subgraph_path(path, node, name))
            for name, graph in graphs
        )
        condition = inputs[0].tensor if inputs[0] else None
        if condition is not None:
            wanted = "then_branch" if numpy_helper.to_array(condition).all() else "else_branch"
            for index, (name, _) in enumerate(graphs):
                if name == wanted:
                    return list(traces[index].outputs), traces, index
        common = [merged(pair) for pair in zip(*(t.outputs for t in traces), strict=False)]
        return common, traces, None

    def _loop(
        self,
        node: onnx.NodeProto,
        inputs: Sequence[Value | None],
        environment: Environment,
        path: str,
    ) -> tuple[list[Value], tuple[Trace, ...]]:
        name, body = next(iter(subgraphs(node)))
        is_loop = node.op_type == "Loop"
        states = [Value(value.type if value else None) for value in inputs]
        if is_loop:
            counter = Value(tensor_type(TensorProto.INT64, ()))
            states = [counter, Value(tensor_type(TensorProto.BOOL, ())), *states[2:]]
            first, carried = 2, len(states) - 2
        else:
            scanned = helper.get_node_attr_value(node, "num_scan_inputs")
            first, carried = 0, len(states) - scanned
            states[carried:] = [Value(without_first(value.type)) for value in states[carried:]]
        trace = Trace()
        for _ in range(2):
            given = {info.name: state for info, state in zip(body.input, states, strict=False)}
            trace = self._scope(body, {**environment, **given}, subgraph_path(path, node, name))
            results = trace.outputs[1 if is_loop else 0 :]
            before = states[first : first + carried]
            after = [merged(pair) for pair in zip(before, results, strict=False)]
            if all(a.shape == b.shape for a, b in zip(before, after, strict=False)):
                break
            # A state that grows: its shape is unknown from the second iteration on.
            states[first : first + carried] = after
        stacked = [Value(with_first(value.type)) for value in results[carried:]]
        return [Value(value.type) for value in after] + stacked, (trace,)


def _input_specs(graph: onnx.GraphProto, given: Mapping[str, Sequence[int]]) -> list[InputSpec]:
    """The inputs whose number of dimensions is known, without initializers listed as inputs."""
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {tensor.values.name for tensor in graph.sparse_initializer}
    specs = []
    for value in graph.input:
        if value.name in stored or not value.type.HasField("tensor_type"):
            continue
        dims: list[int | str | None] = [
            dim.dim_value if dim.dim_value > 0 else dim.dim_param or None
            for dim in value.type.tensor_type.shape.dim
        ]
        if not value.type.tensor_type.HasField("shape"):
            if value.name not in given:
                continue
            dims = [None] * len(given[value.name])
        specs.append(InputSpec(value.name, _dtype(value.type), tuple(dims)))
    return specs


def _symbols(graph: onnx.GraphProto, input_shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """What the inputs' symbolic dimensions are assumed to be."""
    return {
        dim.dim_param: size
        for value in graph.input
        if value.name in input_shapes
        for dim, size in zip(
            value.type.tensor_type.shape.dim, input_shapes[value.name], strict=False
        )
        if dim.dim_param
    }


def _element(known: TypeProto) -> int:
    return int(known.tensor_type.elem_type)


def _dtype(known: TypeProto) -> np.dtype[np.generic]:
    """How messages call the type; strings and undefined types go by ``object``."""
    if _element(known) in (TensorProto.UNDEFINED, TensorProto.STRING):
        return np.dtype(object)
    return helper.tensor_dtype_to_np_dtype(_element(known))
