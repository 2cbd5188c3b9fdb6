"""Shapes and constants of every value of a model, node by node, without running it.

The nodes are visited once in their order, those that no output needs left out. Each node's output
types come from ONNX's own inference for that one node; what is computed from constants and shapes
alone is evaluated, so that shapes that a graph computes are known too. Sub-graphs and function
bodies are entered where they are called, with the types of that call. Weights are never copied:
only tensors of at most 1024 elements are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from onnx_igpc.external_data import is_external
from onnx_igpc.feeds import InputSpec, resolve_shapes
from onnx_igpc.graph_walk import NodeHolder, subgraphs
from onnx_igpc.model_io import OpenModel

# Larger tensors are weights or maps, not shapes.
_MAX_EVALUATED = 1024
# What an operator may raise for inputs that it cannot take.
_EVALUATION_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
)
_NOT_EVALUATED = frozenset(
    {
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
    }
)


@dataclass(frozen=True, eq=False)
class Root:
    """A stored tensor: an initializer, the values of a sparse one, or a Constant node's value."""

    name: str
    data_type: int
    elements: int
    in_main_graph: bool


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of a value.

    Attributes:
        type: type and shape; ``None`` if unknown.
        constant: whether it depends on no input of the model except through shapes.
        root: for a stored tensor, which one.
        tensor: for a small constant, its elements.
    """

    type: TypeProto | None = None
    constant: bool = False
    root: Root | None = None
    tensor: TensorProto | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape if every dimension is known."""
        if self.type is None or not self.type.tensor_type.HasField("shape"):
            return None
        dims = self.type.tensor_type.shape.dim
        if not all(dim.HasField("dim_value") for dim in dims):
            return None
        return tuple(dim.dim_value for dim in dims)

    @property
    def elements(self) -> int | None:
        """The number of elements if it is known."""
        return None if self.shape is None else math.prod(self.shape)


UNKNOWN = Value()


@dataclass(frozen=True, eq=False)
class TracedNode:
    """A node in one visit: a function's body is visited at every call.

    ``bodies`` are what it runs: both branches of an If (one where the condition is constant), the
    body of a Loop or a Scan, the body of a function. ``path`` is the scope in words, empty for the
    main graph. An input that is left out is ``None``.
    """

    node: onnx.NodeProto
    path: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    bodies: tuple[Trace, ...] = ()

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
        self._imports = list(model.proto.opset_import)
        self._roots: dict[tuple[str, str], Root] = {}
        specs = _input_specs(model.proto.graph, input_shapes or {})
        self.input_shapes = resolve_shapes(specs, shapes=input_shapes)

    def trace(self) -> Trace:
        """Every node that an output of the model needs."""
        environment: Environment = {}
        for value in self._model.proto.graph.input:
            shape = self.input_shapes.get(value.name)
            known = value.type if shape is None else _tensor_type(_element(value.type), shape)
            environment[value.name] = Value(known)
        graph = self._model.proto.graph
        declared = {**environment}
        symbols = _symbols(graph, self.input_shapes)
        for info in (*graph.value_info, *graph.output):
            declared.setdefault(info.name, Value(_bound(info.type, symbols)))
        return self._scope(graph, environment, "", declared)

    def _scope(
        self, holder: NodeHolder, outer: Environment, path: str, declared: Environment | None = None
    ) -> Trace:
        """Visit the nodes of one graph or function body; ``outer`` is what they can see."""
        environment = dict(outer)
        if isinstance(holder, onnx.GraphProto):
            for tensor in holder.initializer:
                environment[tensor.name] = self._stored(tensor, path, tensor.name)
            for sparse in holder.sparse_initializer:
                name = sparse.values.name
                environment[name] = self._stored_sparse(sparse, path, name)
            outputs = [output.name for output in holder.output]
        else:
            outputs = list(holder.output)
        trace = Trace()
        for node in live_nodes(holder):
            traced = self._visit(node, environment, path, declared or {})
            environment.update(zip(node.output, traced.outputs, strict=True))
            trace.nodes.append(traced)
        trace.outputs = [environment.get(name, UNKNOWN) for name in outputs]
        return trace

    def _visit(
        self, node: onnx.NodeProto, environment: Environment, path: str, declared: Environment
    ) -> TracedNode:
        inputs = tuple(environment.get(name, UNKNOWN) if name else None for name in node.input)
        bodies: tuple[Trace, ...] = ()
        standard = node.domain in ("", "ai.onnx")
        function = self._functions.get((node.domain, node.op_type))
        if function is not None:
            outputs, bodies = self._call(function, node, inputs)
        elif standard and node.op_type == "Constant":
            outputs = [self._constant_node(node, path)]
        elif standard and node.op_type == "If":
            outputs, bodies = self._branches(node, inputs, environment, path)
        elif standard and node.op_type in ("Loop", "Scan"):
            outputs, bodies = self._loop(node, inputs, environment, path)
        else:
            outputs = self._infer(node, inputs)
        outputs += [UNKNOWN] * (len(node.output) - len(outputs))
        for index, name in enumerate(node.output):
            if outputs[index].shape is None and name in declared:
                outputs[index] = Value(declared[name].type, outputs[index].constant)
        return TracedNode(node, path, inputs, tuple(outputs[: len(node.output)]), bodies)

    def _stored(self, tensor: TensorProto, path: str, name: str) -> Value:
        elements = math.prod(tensor.dims)
        root = self._root(name, tensor.data_type, elements, path)
        small = None
        if elements <= _MAX_EVALUATED and tensor.data_type != TensorProto.STRING:
            external = is_external(tensor)
            small = numpy_helper.from_array(self._model.array(tensor)) if external else tensor
        return Value(_tensor_type(tensor.data_type, tensor.dims), True, root, small)

    def _stored_sparse(self, sparse: onnx.SparseTensorProto, path: str, name: str) -> Value:
        stored = math.prod(sparse.values.dims)
        root = self._root(name, sparse.values.data_type, stored, path)
        return Value(_tensor_type(sparse.values.data_type, sparse.dims), True, root)

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
        imports = self._imports
        self._imports = list(function.opset_import) or imports
        try:
            trace = self._scope(
                _with_attributes(function, attributes), given, f"function {function.name}"
            )
        finally:
            self._imports = imports
        return list(trace.outputs), (trace,)

    def _branches(
        self,
        node: onnx.NodeProto,
        inputs: Sequence[Value | None],
        environment: Environment,
        path: str,
    ) -> tuple[list[Value], tuple[Trace, ...]]:
        condition = inputs[0].tensor if inputs[0] else None
        taken = None
        if condition is not None:
            taken = "then_branch" if numpy_helper.to_array(condition).all() else "else_branch"
        traces = tuple(
            self._scope(graph, environment, _inner(path, node, name))
            for name, graph in subgraphs(node)
            if taken in (None, name)
        )
        if len(traces) == 1:
            return list(traces[0].outputs), traces
        merged = [_merged(pair) for pair in zip(*(t.outputs for t in traces), strict=False)]
        return merged, traces

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
            counter = Value(_tensor_type(TensorProto.INT64, ()))
            states = [counter, Value(_tensor_type(TensorProto.BOOL, ())), *states[2:]]
            first, carried = 2, len(states) - 2
        else:
            scanned = helper.get_node_attr_value(node, "num_scan_inputs")
            first, carried = 0, len(states) - scanned
            states[carried:] = [Value(_without_first(value.type)) for value in states[carried:]]
        trace = Trace()
        for _ in range(2):
            given = {info.name: state for info, state in zip(body.input, states, strict=False)}
            trace = self._scope(body, {**environment, **given}, _inner(path, node, name))
            results = trace.outputs[1 if is_loop else 0 :]
            before = states[first : first + carried]
            after = [_merged(pair) for pair in zip(before, results, strict=False)]
            if all(a.shape == b.shape for a, b in zip(before, after, strict=False)):
                break
            # A state that grows: its shape is unknown from the second iteration on.
            states[first : first + carried] = after
        stacked = [Value(_with_first(value.type)) for value in results[carried:]]
        return [Value(value.type) for value in after] + stacked, (trace,)

    def _infer(self, node: onnx.NodeProto, inputs: Sequence[Value | None]) -> list[Value]:
        """The outputs of an operator without a body."""
        constant = all(value is None or value.constant for value in inputs)
        constant = constant and node.op_type not in _NOT_EVALUATED
        shape = inputs[0].shape if inputs and inputs[0] else None
        if node.op_type in ("Shape", "Size") and shape is not None:
            return self._evaluate(node, [_zeros_like_shape(shape)])
        types = self._inferred_types(node, inputs)
        outputs = [Value(known, constant) for known in types]
        small = all((out.elements or 0) <= _MAX_EVALUATED for out in outputs) and outputs
        if constant and small and all(value is None or value.tensor for value in inputs):
            arrays = [numpy_helper.to_array(v.tensor) if v and v.tensor else None for v in inputs]
            outputs = self._evaluate(node, arrays) or outputs
        return outputs

    def _inferred_types(
        self, node: onnx.NodeProto, inputs: Sequence[Value | None]
    ) -> list[TypeProto | None]:
        types, data = {}, {}
        for name, value in zip(node.input, inputs, strict=True):
            if value is None:
                continue
            if value.type is None:
                return []
            types[name] = value.type
            if value.tensor is not None:
                data[name] = value.tensor
        try:
            schema = defs.get_schema(node.op_type, self._version(node.domain), node.domain)
            inferred = shape_inference.infer_node_outputs(
                schema, node, types, data, None, self._imports, self._model.proto.ir_version
            )
        except (defs.SchemaError, shape_inference.InferenceError, *_EVALUATION_ERRORS):
            return []
        return [inferred.get(name) for name in node.output]

    def _evaluate(self, node: onnx.NodeProto, arrays: Sequence[np.ndarray | None]) -> list[Value]:
        """The outputs of an operator on known inputs; none if it cannot be evaluated."""
        names = [f"i{index}" if array is not None else "" for index, array in enumerate(arrays)]
        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        del alone.input[:]
        alone.input.extend(names)
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in zip(names, arrays, strict=True)
            if array is not None
        ]
        results = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([alone], "constant", inputs, results)
        try:
            single = helper.make_model(graph, opset_imports=self._imports)
            feeds = {name: array for name, array in zip(names, arrays, strict=True) if name}
            outputs = ReferenceEvaluator(single).run(None, feeds)
            stored = iter([numpy_helper.from_array(np.asarray(output)) for output in outputs])
        except _EVALUATION_ERRORS:
            return []
        values = []
        for name in node.output:
            tensor = next(stored) if name else None
            known = _tensor_type(tensor.data_type, tensor.dims) if tensor is not None else None
            values.append(Value(known, True, None, tensor))
        return values

    def _version(self, domain: str) -> int:
        aliases = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
        return next((int(e.version) for e in self._imports if e.domain in aliases), 1)


def live_nodes(holder: NodeHolder) -> list[onnx.NodeProto]:
    """The nodes of a graph or function body that its outputs need, in order."""
    if isinstance(holder, onnx.GraphProto):
        needed = {output.name for output in holder.output}
    else:
        needed = set(holder.output)
    live = []
    for node in reversed(holder.node):
        if needed.isdisjoint(node.output):
            continue
        live.append(node)
        needed.update(name for name in node.input if name)
        for _, graph in subgraphs(node):
            needed.update(_names_read(graph))
    return live[::-1]


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name that a sub-graph's needed nodes read, the names of enclosing graphs among them."""
    for output in graph.output:
        yield output.name
    for node in live_nodes(graph):
        yield from node.input
        for _, inner in subgraphs(node):
            yield from _names_read(inner)


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
        specs.append(InputSpec(value.name, np.dtype(np.float32), tuple(dims)))
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


def _bound(declared: TypeProto, symbols: Mapping[str, int]) -> TypeProto:
    """A declared type with its symbolic dimensions replaced by numbers."""
    bound = TypeProto()
    bound.CopyFrom(declared)
    if bound.HasField("tensor_type"):
        for dim in bound.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    return bound


def _with_attributes(
    function: onnx.FunctionProto, attributes: Mapping[str, onnx.AttributeProto]
) -> onnx.FunctionProto:
    """The body for one call: references to the function's attributes replaced by their values."""
    if not any(a.ref_attr_name for node in function.node for a in node.attribute):
        return function
    body = onnx.FunctionProto()
    body.CopyFrom(function)
    for node in body.node:
        kept = []
        for attribute in node.attribute:
            if attribute.ref_attr_name in attributes:
                value = onnx.AttributeProto()
                value.CopyFrom(attributes[attribute.ref_attr_name])
                value.name = attribute.name
                kept.append(value)
            elif not attribute.ref_attr_name:
                kept.append(attribute)
        copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
        del node.attribute[:]
        node.attribute.extend(copies)
    return body


def _inner(path: str, node: onnx.NodeProto, attribute: str) -> str:
    return f"{path}/{node.output[0]}.{attribute}".lstrip("/")


def _element(known: TypeProto) -> int:
    return int(known.tensor_type.elem_type)


def _tensor_type(data_type: int, dims: Sequence[int]) -> TypeProto:
    return helper.make_tensor_type_proto(data_type, list(dims))


def _zeros_like_shape(shape: Sequence[int]) -> np.ndarray:
    """An array of that shape which takes no memory."""
    return np.broadcast_to(np.zeros((), np.float32), shape)


def _without_first(known: TypeProto | None) -> TypeProto | None:
    if known is None or not known.tensor_type.shape.dim:
        return None
    rest = TypeProto()
    rest.CopyFrom(known)
    del rest.tensor_type.shape.dim[0]
    return rest


def _with_first(known: TypeProto | None) -> TypeProto | None:
    """The type of a stack of such values, as many as there are iterations."""
    if known is None or not known.tensor_type.HasField("shape"):
        return None
    stack = TypeProto()
    stack.tensor_type.elem_type = known.tensor_type.elem_type
    stack.tensor_type.shape.dim.add()
    stack.tensor_type.shape.dim.extend(known.tensor_type.shape.dim)
    return stack


def _merged(values: Sequence[Value]) -> Value:
    """What is true of several values: equal dimensions stay, others are unknown."""
    types = [value.type for value in values]
    first = types[0]
    if first is None or any(t is None or not t.tensor_type.HasField("shape") for t in types):
        return UNKNOWN
    dims = [[(d.dim_value, d.dim_param) for d in t.tensor_type.shape.dim] for t in types if t]
    if any(len(d) != len(dims[0]) for d in dims):
        return UNKNOWN
    merged = TypeProto()
    merged.CopyFrom(first)
    for axis, dim in enumerate(merged.tensor_type.shape.dim):
        if any(d[axis] != dims[0][axis] for d in dims):
            dim.Clear()
    return Value(merged)
