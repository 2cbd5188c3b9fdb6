"""From a graph to a list of steps: constants folded, inputs placed, operators built."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from onnx_igpc.errors import ModelError
from onnx_igpc.torch_bridge.graph import Graph, PlannedNode
from onnx_igpc.torch_bridge.node import Node, decode_attributes
from onnx_igpc.torch_bridge.weights import Roles


@dataclass(frozen=True)
class Known:
    """A constant: not trained, on the CPU."""

    tensor: torch.Tensor


@dataclass(frozen=True)
class Stored:
    """A parameter or buffer of the module, by its ONNX name."""

    name: str


@dataclass(frozen=True)
class Local:
    """A value computed at run time; ``host`` says that it is always on the CPU."""

    name: str
    host: bool = False


Operand = Known | Stored | Local


@dataclass(frozen=True)
class Step:
    """One call of the module's forward function.

    Attributes:
        op_type: ONNX operator, for fusions and for the reader.
        label: Name of the ONNX node.
        run: Function to call.
        arguments: What it is called with; None is passed on as None.
        outputs: ONNX names of the results, "" where a result is not used.
        trains: Whether the training flag is passed as the last argument.
        moved: Indices of arguments that are on the CPU and must follow the other ones.
    """

    op_type: str
    label: str
    run: Callable[..., Any]
    arguments: tuple[Operand | None, ...]
    outputs: tuple[str, ...]
    trains: bool = False
    moved: frozenset[int] = frozenset()


@dataclass
class Program:
    """Steps in order and the tensors they read.

    Attributes:
        stored: Parameters and buffers by ONNX name, with their first values.
        trained: Names in ``stored`` that are parameters.
        kept: Names in ``stored`` that belong into a state dict.
    """

    inputs: list[str]
    outputs: list[Operand]
    steps: list[Step]
    stored: dict[str, torch.Tensor]
    trained: set[str]
    kept: set[str]


def build_program(graph: Graph, roles: Roles) -> Program:
    """Build every node of the graph into a step, folding what does not depend on the inputs."""
    return _Builder(graph, roles).program()


@dataclass
class _Builder:
    graph: Graph
    roles: Roles
    values: dict[str, Operand] = field(default_factory=dict)
    stored: dict[str, torch.Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def program(self) -> Program:
        own = self.roles.trained | self.roles.statistics
        for name, tensor in self.graph.constants.items():
            self.values[name] = Stored(name) if name in own else Known(tensor)
        inputs = [value.name for value in self.graph.inputs]
        self.values.update({name: Local(name) for name in inputs})
        for node in self.graph.nodes:
            self._add_node(node)
        outputs = [self._output(name) for name in self.graph.outputs]
        read = itertools.chain(outputs, *(step.arguments for step in self.steps))
        used = {value.name for value in read if isinstance(value, Stored)}
        for name in used & own:
            self.stored[name] = self.graph.constants[name]
        return Program(
            inputs=inputs,
            outputs=outputs,
            steps=self.steps,
            stored={name: self.stored[name] for name in sorted(used)},
            trained=self.roles.trained & used,
            kept=used & set(self.graph.constants),
        )

    def _output(self, name: str) -> Operand:
        value = self._lookup(name)
        return self._as_buffer(name, value) if isinstance(value, Known) else value

    def _lookup(self, name: str) -> Operand:
        try:
            return self.values[name]
        except KeyError:
            raise ModelError(f"the value {name!r} is read but never computed") from None

    def _add_node(self, planned: PlannedNode) -> None:
        proto = planned.proto
        arguments = [self._lookup(name) if name else None for name in proto.input]
        if planned.operator.name == "Identity" and arguments[0] is not None:
            self.values[proto.output[0]] = arguments[0]
            return
        node = self._view(planned, arguments)
        run = planned.operator.build(node)
        present = [value for value in arguments if value is not None]
        if present and all(isinstance(value, Known) for value in present):
            self._fold(node, run, arguments, planned.operator.trains)
            return
        for index in node.settled:
            arguments[index] = None
        host = planned.operator.gives_host or _on_host(present)
        if not _on_host(present):
            for index, value in enumerate(arguments):
                if isinstance(value, Known) and index not in planned.operator.inputs.host:
                    arguments[index] = self._as_buffer(proto.input[index], value)
        self.steps.append(self._step(planned, run, arguments))
        for name in filter(None, proto.output):
            self.values[name] = Local(name, host)

    def _view(self, planned: PlannedNode, arguments: list[Operand | None]) -> Node:
        constants, shapes = {}, {}
        for index, value in enumerate(arguments):
            if isinstance(value, Known):
                constants[index] = value.tensor
                shapes[index] = tuple(value.tensor.shape)
            elif isinstance(value, Stored):
                source = self.graph.constants.get(value.name, self.stored.get(value.name))
                shapes[index] = tuple(source.shape) if source is not None else ()
        return Node(
            op_type=planned.operator.name,
            version=planned.version,
            name=planned.label,
            inputs=tuple(planned.proto.input),
            outputs=tuple(planned.proto.output),
            attributes=decode_attributes(planned.proto),
            constants=constants,
            shapes=shapes,
        )

    def _fold(
        self, node: Node, run: Callable[..., Any], arguments: list[Operand | None], trains: bool
    ) -> None:
        tensors = [
            value.tensor if isinstance(value, Known) and index not in node.settled else None
            for index, value in enumerate(arguments)
        ]
        with torch.no_grad():
            result = run(*tensors, False) if trains else run(*tensors)
        results = result if isinstance(result, tuple) else (result,)
        for name, tensor in zip(node.outputs, results, strict=False):
            if name:
                self.values[name] = Known(tensor)

    def _as_buffer(self, name: str, value: Known) -> Stored:
        self.stored.setdefault(name, value.tensor)
        return Stored(name)

    def _step(
        self, planned: PlannedNode, run: Callable[..., Any], arguments: list[Operand | None]
    ) -> Step:
        step = Step(
            op_type=planned.operator.name,
            label=planned.label,
            run=run,
            arguments=tuple(arguments),
            outputs=tuple(planned.proto.output),
            trains=planned.operator.trains,
        )
        if _on_host([value for value in arguments if value is not None]):
            return step
        moved = frozenset(
            index
            for index, value in enumerate(arguments)
            if isinstance(value, Local) and value.host and index not in planned.operator.inputs.host
        )
        return replace(step, moved=moved)


def _on_host(values: list[Operand]) -> bool:
    """Whether a node with these inputs computes numbers on the CPU rather than activations."""
    return all(
        isinstance(value, Known) or (isinstance(value, Local) and value.host) for value in values
    )
