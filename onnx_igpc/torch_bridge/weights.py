"""Which tensors of a graph are trained, which are statistics, and which share storage by accident."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from onnx import TensorProto

from onnx_igpc.torch_bridge.graph import Graph, PlannedNode
from onnx_igpc.torch_bridge.node import decode_attributes
from onnx_igpc.torch_bridge.uses import ARITHMETIC, NOT_LEARNED, Uses, find_uses, is_counted

_FLOAT_TYPES = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
)
Use = tuple[PlannedNode, int]


@dataclass(frozen=True)
class Untied:
    """A tensor that got storage of its own because sharing it was an accident of the exporter.

    Attributes:
        name: The new tensor: the output of an Identity, or a fresh name.
        source: The tensor it is a copy of.
        readers: Where ``name`` is fresh: first output of each node that reads it, and the index
            of the input. Empty where the Identity that made ``name`` becomes a Constant instead.
    """

    name: str
    source: str
    readers: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Roles:
    """Names of the trained tensors, of the running statistics, and what was untied."""

    trained: set[str]
    statistics: set[str]
    untied: dict[str, Untied]


def assign_roles(graph: Graph) -> Roles:
    """Sort the writable tensors of a graph; ``graph`` is changed where tensors are untied."""
    untied = _untie(graph)
    uses = find_uses(graph)
    trained, statistics = set(), set()
    for name in sorted(graph.writable):
        value = graph.constants[name]
        if not value.is_floating_point():
            continue
        verdicts = _verdicts(name, value, uses)
        if verdicts == {"statistic"}:
            statistics.add(name)
        elif "weight" in verdicts and "structure" not in verdicts:
            trained.add(name)
    return Roles(trained, statistics, untied)


def _verdicts(name: str, value: torch.Tensor, uses: Uses) -> set[str]:
    """How a constant is used: any of "weight", "structure", "statistic", and "number" for what is none."""
    verdicts: set[str] = set()
    for node, index in uses.readers.get(name, ()):
        operator = node.operator
        if operator.gives_host:
            continue  # only its shape is read
        if index in operator.inputs.statistics:
            verdicts.add("statistic")
        elif index in operator.inputs.untrained:
            verdicts.add("structure")
        elif index in operator.inputs.weights:
            verdicts.add("structure" if is_counted(value) else "weight")
        elif operator.moves_data or uses.varying.isdisjoint(node.proto.input):
            # Something is made of it: what that is used for decides.
            if _stays_float(node):
                verdicts |= _verdicts(node.proto.output[0], value, uses)
        elif operator.name in ARITHMETIC:
            learned = uses.is_operand_learned(node, value)
            verdicts.add("weight" if learned else "number")
        elif value.numel() > 1 and operator.name not in NOT_LEARNED:
            verdicts.add("number" if is_counted(value) else "weight")
    return verdicts


def _stays_float(node: PlannedNode) -> bool:
    if node.operator.name != "Cast":
        return True
    target = decode_attributes(node.proto)["to"]
    name = target.decode() if isinstance(target, bytes) else TensorProto.DataType.Name(target)
    return TensorProto.DataType.Value(name) in _FLOAT_TYPES


def _untie(graph: Graph) -> dict[str, Untied]:
    """Give every BatchNormalization its own tensors where an exporter merged equal ones.

    Exporters keep one copy of tensors that are equal at export time, e.g. the scales (all 1) and
    variances (all 1) of fresh layers, and reach it through Identity nodes or directly. Nodes that
    read the same four tensors are one layer applied several times and stay tied.
    """
    aliases = _identity_aliases(graph)
    norms = [n for n in graph.nodes if n.operator.inputs.statistics]
    slots: dict[tuple[object, ...], list[Use]] = defaultdict(list)
    for node in norms:
        layer = tuple(node.proto.input[1:5])
        for index in range(1, 5):
            slots[(layer, index)].append((node, index))
    shared = set()
    for uses in slots.values():
        name = uses[0][0].proto.input[uses[0][1]]
        shared.add(aliases.get(name, name))
    untied: dict[str, Untied] = {}
    read = {name for node in graph.nodes for name in node.proto.input}
    for alias, source in aliases.items():
        if source in shared and alias in read:
            untied[alias] = _own(graph, alias, Untied(alias, source))
    graph.nodes[:] = [n for n in graph.nodes if not _made_by_untying(n, untied)]
    _untie_direct(graph, list(slots.values()), untied)
    return untied


def _identity_aliases(graph: Graph) -> dict[str, str]:
    """Output of an Identity -> the writable constant it repeats."""
    aliases: dict[str, str] = {}
    for node in graph.nodes:
        if node.operator.name == "Identity":
            source = aliases.get(node.proto.input[0], node.proto.input[0])
            if source in graph.writable:
                aliases[node.proto.output[0]] = source
    return aliases


def _made_by_untying(node: PlannedNode, untied: dict[str, Untied]) -> bool:
    return node.operator.name == "Identity" and node.proto.output[0] in untied


def _untie_direct(graph: Graph, slots: list[list[Use]], untied: dict[str, Untied]) -> None:
    """Copies for slots that read, under its own name, a tensor that another consumer reads too."""
    taken: set[str] = set()
    in_slots = {(id(node), index) for uses in slots for node, index in uses}
    for node in graph.nodes:
        for index, name in enumerate(node.proto.input):
            if (id(node), index) not in in_slots:
                taken.add(name)
    for uses in slots:
        first, index = uses[0]
        name = first.proto.input[index]
        if name not in graph.writable:
            continue
        if name not in taken:
            taken.add(name)
            continue
        fresh = _fresh(graph, f"{name}_{first.label}_{index}")
        readers = tuple((node.proto.output[0], slot) for node, slot in uses)
        untied[fresh] = _own(graph, fresh, Untied(fresh, name, readers))
        for node, slot in uses:
            node.proto.input[slot] = fresh


def _own(graph: Graph, name: str, entry: Untied) -> Untied:
    graph.constants[name] = graph.constants[entry.source].clone()
    graph.writable.add(name)
    return entry


def _fresh(graph: Graph, name: str) -> str:
    while name in graph.constants:
        name += "_"
    return name
