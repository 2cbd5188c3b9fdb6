"""The last layer of a classifier, found from the class scores backwards, and what it reads: the penultimate
feature, of which the scores are a linear function."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from onnx_igpc.torch_bridge.training.losses import MOVES

# Between the last layer and the scores: what moves, averages or activates them, one for one.
_BEHIND = MOVES | {
    *("Softmax", "LogSoftmax", "Relu", "Dropout"),
    *("GlobalAveragePool", "AveragePool", "ReduceMean"),
}
_WITH_CONSTANT = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True)
class LastLayer:
    """The Gemm, MatMul or 1x1 Conv that makes class scores.

    feature: the tensor that it reads; where ``spatial``, it has two more dimensions than samples and channels.
    weights: names of the initializers and constants that it, and a bias behind it, get their values from.
    """

    feature: str
    weights: frozenset[str]
    spatial: bool


def find_last_layer(model: ModelProto, scores: str) -> LastLayer | None:
    """The last layer in front of the class scores; None where something else makes them."""
    producers = {name: node for node in model.graph.node for name in node.output}
    computed = _computed(model)
    weights: set[str] = set()
    name = scores
    while name in producers:
        node = producers[name]
        if node.op_type in _BEHIND and node.domain in ("", "ai.onnx"):
            name = node.input[0]
            continue
        inner = [each for each in node.input if each in computed]
        constants = {each for each in node.input if each and each not in computed}
        if len(inner) != 1 or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in ("Gemm", "MatMul", "Conv"):
            if node.input[0] != inner[0] or not _is_linear(model, node):
                return None
            found = weights | _origins(constants, producers)
            return LastLayer(inner[0], frozenset(found), node.op_type == "Conv")
        if node.op_type not in _WITH_CONSTANT:
            return None
        weights |= _origins(constants, producers)
        name = inner[0]
    return None


def _computed(model: ModelProto) -> set[str]:
    """Names of the graph inputs, and of what the main graph computes from them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = {value.name for value in model.graph.input} - constants
    for node in model.graph.node:
        if found.intersection(node.input):
            found.update(name for name in node.output if name)
    return found


def _is_linear(model: ModelProto, node: NodeProto) -> bool:
    """Whether each score is a linear function of the channels at one place."""
    values = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Gemm":
        return "transA" not in values or not values["transA"].i
    if node.op_type == "Conv":
        sides = {t.name: t.dims[2:] for t in model.graph.initializer}.get(node.input[1])
        if sides is None:
            sides = values["kernel_shape"].ints if "kernel_shape" in values else [0]
        return all(side == 1 for side in sides) and (
            "group" not in values or values["group"].i == 1
        )
    return True


def _origins(names: set[str], producers: dict[str, NodeProto]) -> set[str]:
    """Constants, and those that they are made from."""
    found: set[str] = set()
    while names:
        found |= names
        names = {
            each for name in names if name in producers for each in producers[name].input if each
        } - found
    return found
