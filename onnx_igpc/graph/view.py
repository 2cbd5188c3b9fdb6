"""The onnx-graphsurgeon view of a model: producers, consumers and constants, across sub-graphs.

The ModelProto stays the truth; the view is only read. It pairs every onnx-graphsurgeon node with the
NodeProto it was made from, so that what is found in the view can be edited in the model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from onnx_igpc.errors import ModelError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.operator_inference import EVALUATION_ERRORS
from onnx_igpc.graph.traversal import (
    NodeHolder,
    Scope,
    copied,
    function_path,
    opset_version,
    subgraph_path,
)

# The most elements of a constant that is computed rather than stored: 1 GiB of float32.
_MAX_CONSTANT = 2**28
_MAX_RANK = 64
_MAX_REASON = 300
# Operators through which a constant is still the same constant, only seen differently.
TRANSPARENT = frozenset(
    {"Identity", "Cast", "Reshape", "Transpose", "Expand", "Squeeze", "Unsqueeze"}
)


@dataclass(frozen=True, eq=False)
class NodeRef:
    """A node of the view and the NodeProto that it stands for."""

    scope: Scope
    index: int
    proto: onnx.NodeProto
    node: gs.Node

    @property
    def op_type(self) -> str:
        return str(self.proto.op_type)

    @property
    def name(self) -> str:
        """The node's name, or that of its first output where it has none."""
        return str(self.proto.name or self.proto.output[0])

    @property
    def label(self) -> str:
        """The node in words, for reasons."""
        return f"{self.op_type} '{self.name}'"

    @property
    def is_standard(self) -> bool:
        """Whether the operator is one of ONNX itself and not of a custom domain."""
        return self.proto.domain in ("", "ai.onnx")

    @property
    def is_parametrized(self) -> bool:
        """Whether an attribute is given by the caller of the function that the node lies in."""
        return any(attribute.ref_attr_name for attribute in self.proto.attribute)

    def has_input(self, index: int) -> bool:
        """Whether an input is there and not left out."""
        return index < len(self.proto.input) and bool(self.proto.input[index])

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or ``default`` where the node does not have it."""
        for attribute in self.proto.attribute:
            if attribute.name == name and not attribute.ref_attr_name:
                return onnx.helper.get_attribute_value(attribute)
        return default


@dataclass(frozen=True, eq=False)
class ConstantRef:
    """A tensor whose values are known without running the model.

    ``root`` is the initializer or Constant attribute that holds the values, ``holder`` the graph or
    function it lies in, and ``chain`` the nodes between it and the tensor, the Constant node
    included.
    """

    tensor: gs.Tensor
    root: onnx.TensorProto
    holder: NodeHolder
    chain: tuple[NodeRef, ...]
    view: GraphView

    def values(self) -> np.ndarray:
        """The values, read from disk if they are external; shape and dtype as the consumer sees."""
        values = self.view.model.array(self.root)
        for link in reversed(self.chain):
            if link.op_type != "Constant":
                values = self.view.evaluate(link, values)
        return values


@contextlib.contextmanager
def graphsurgeon_quiet() -> Iterator[None]:
    """Keep onnx-graphsurgeon from printing to the user's terminal what is not the user's concern."""
    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL + 1
    try:
        yield
    finally:
        G_LOGGER.severity = severity


def _imported(model: OpenModel) -> gs.Graph:
    try:
        with graphsurgeon_quiet():
            return gs.import_onnx(model.proto)
    except (
        OnnxGraphSurgeonException,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
    ) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{model.name} holds a graph that cannot be read: {reason}") from error


class GraphView:
    """Producers, consumers and constants of every node of a model.

    The model must not be edited while the view is in use: make a new one afterwards.

    Raises:
        ModelError: the graph cannot be read.
    """

    def __init__(self, model: OpenModel) -> None:
        self.model = model
        graph = _imported(model)
        self.nodes: list[NodeRef] = []
        self._scopes: list[Scope] = []
        self._refs: dict[int, NodeRef] = {}
        self._outputs: dict[int, list[tuple[Scope, int]]] = {}
        self._owners: dict[int, NodeRef] = {}
        self._calls: dict[tuple[str, str], list[NodeRef]] = {}
        self._add_scope(graph, Scope(model.proto.graph))
        for gs_function, function in zip(graph.functions, model.proto.functions, strict=True):
            self._add_scope(gs_function, Scope(function, path=function_path(function)))
        self._initializers = {
            id(scope.holder): {tensor.name: tensor for tensor in scope.holder.initializer}
            for scope in self._scopes
            if isinstance(scope.holder, onnx.GraphProto)
        }

    def _add_scope(self, graph: Any, scope: Scope) -> None:
        """Pair the nodes of one graph or function with their protos, then those of its sub-graphs."""
        self._scopes.append(scope)
        for position, output in enumerate(graph.outputs):
            self._outputs.setdefault(id(output), []).append((scope, position))
        for index, (node, proto) in enumerate(zip(graph.nodes, scope.holder.node, strict=True)):
            ref = NodeRef(scope, index, proto, node)
            self.nodes.append(ref)
            self._refs[id(node)] = ref
            self._calls.setdefault((proto.domain, proto.op_type), []).append(ref)
            for attribute in proto.attribute:
                inner = node.attrs.get(attribute.name)
                if isinstance(inner, gs.Graph):
                    path = subgraph_path(scope.path, proto, attribute.name)
                    self._owners[id(attribute.g)] = ref
                    self._add_scope(inner, Scope(attribute.g, (scope.holder, *scope.parents), path))

    def ref(self, node: gs.Node) -> NodeRef:
        """The pair of ``node`` and its proto."""
        return self._refs[id(node)]

    def producer(self, tensor: gs.Tensor) -> NodeRef | None:
        """The node that makes ``tensor``; ``None`` for inputs and initializers."""
        return self.ref(tensor.inputs[0]) if tensor.inputs else None

    def consumers(self, tensor: gs.Tensor) -> list[NodeRef]:
        """The nodes that read ``tensor``, in sub-graphs too, each once."""
        unique = {id(node): node for node in tensor.outputs}
        return [self.ref(node) for node in unique.values()]

    def only_consumer(self, tensor: gs.Tensor) -> NodeRef | None:
        """The node that reads ``tensor`` if nothing else does and it is no output."""
        consumers = self.consumers(tensor)
        return consumers[0] if len(consumers) == 1 and not self.is_output(tensor) else None

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` is an output of the graph, sub-graph or function it lies in."""
        return id(tensor) in self._outputs

    def model_output(self, tensor: gs.Tensor) -> str | None:
        """The name of ``tensor`` if it is an output of the model."""
        if any(scope.is_main for scope, _ in self._outputs.get(id(tensor), [])):
            return str(tensor.name)
        return None

    def beyond(self, tensor: gs.Tensor) -> list[gs.Tensor]:
        """Where an output of a sub-graph or function continues: outputs of the nodes that run it."""
        continued = []
        for scope, position in self._outputs.get(id(tensor), []):
            holder = scope.holder
            if isinstance(holder, onnx.FunctionProto):
                callers = self.callers(holder)
            else:
                owner = self._owners.get(id(holder))
                callers = [owner] if owner and owner.op_type == "If" else []
            continued += [
                caller.node.outputs[position]
                for caller in callers
                if position < len(caller.node.outputs)
            ]
        return continued

    def callers(self, function: onnx.FunctionProto) -> list[NodeRef]:
        """The nodes that call a function."""
        return self._calls.get((function.domain, function.name), [])

    def constant(self, tensor: gs.Tensor, scope: Scope) -> ConstantRef | None:
        """``tensor`` as a constant, followed through Identity, Cast, Reshape, Transpose, Expand.

        ``None`` if it depends on an input, or on an operator that computes.
        """
        chain: list[NodeRef] = []
        current = tensor
        while True:
            if isinstance(current, gs.Constant):
                found = self._initializer(current.name, chain[-1].scope if chain else scope)
                return ConstantRef(tensor, *found, tuple(chain), self) if found else None
            link = self.producer(current)
            if link is None or not link.is_standard or link.is_parametrized:
                return None
            chain.append(link)
            if link.op_type == "Constant":
                value = link.attribute("value")
                if not isinstance(value, onnx.TensorProto):
                    return None
                return ConstantRef(tensor, value, link.scope.holder, tuple(chain), self)
            others = link.node.inputs[1:]
            if link.op_type not in TRANSPARENT or not all(
                self.constant(other, link.scope) for other in others
            ):
                return None
            current = link.node.inputs[0]

    def _initializer(self, name: str, scope: Scope) -> tuple[onnx.TensorProto, NodeHolder] | None:
        for holder in (scope.holder, *scope.parents):
            found = self._initializers.get(id(holder), {}).get(name)
            if found is not None:
                return found, holder
        return None

    def evaluate(self, link: NodeRef, first_input: np.ndarray) -> np.ndarray:
        """The output of a node whose first input has the given values and whose others are constant.

        Raises:
            ModelError: the node cannot be evaluated, or makes a constant of more than 2^28 elements.
        """
        values = [first_input]
        for other in link.node.inputs[1:]:
            constant = self.constant(other, link.scope)
            assert constant is not None
            values.append(constant.values())
        if link.op_type == "Expand" and len(values) > 1:
            _refuse_giant(link, values)
        try:
            return self._run(link, values)
        except EVALUATION_ERRORS as error:
            reason = " ".join(str(error).split())[:_MAX_REASON]
            raise ModelError(
                f"{self.model.name}: the constant that {link.op_type} {link.proto.output[0]!r} makes "
                f"cannot be evaluated: {reason}"
            ) from error

    def _run(self, link: NodeRef, values: Sequence[np.ndarray]) -> np.ndarray:
        names = [f"input_{index}" for index in range(len(values))]
        node = copied(link.proto)
        del node.input[:]
        node.input.extend(names)
        graph = onnx.helper.make_graph(
            [node],
            "constant",
            [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
                )
                for name, value in zip(names, values, strict=True)
            ],
            [onnx.ValueInfoProto(name=node.output[0])],
        )
        from onnx.reference import ReferenceEvaluator  # slow to import, and seldom needed

        version = opset_version(self.model.proto, link.scope)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
        feeds = dict(zip(names, values, strict=True))
        outputs: Any = ReferenceEvaluator(model).run(None, feeds)
        return np.asarray(outputs[0])


def _refuse_giant(link: NodeRef, values: Sequence[np.ndarray]) -> None:
    """Expand makes an array of any size out of a few bytes."""
    wanted = [max(int(size), 1) for size in values[1].reshape(-1)[:_MAX_RANK]]
    # Dimensions that both have are not multiplied; the target alone says how large it is at least.
    if math.prod(wanted) > _MAX_CONSTANT:
        raise ModelError(
            f"Expand {link.proto.output[0]!r} makes a constant of shape {wanted}: too large"
        )
