"""Which nodes stay in float, and why."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

import onnx

from onnx_igpc.errors import UsageError, with_flags
from onnx_igpc.lowering.quantization.float_model import FloatModel, labels
from onnx_igpc.lowering.quantization.options import Quantization

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What onnxruntime adds to the name of a node that it puts in the place of others.
_FUSED = ("/MatMulAddFusion", "/GemmActivationFusion")


def excluded_nodes(
    optimized: onnx.ModelProto, source: FloatModel, options: Quantization
) -> dict[str, str]:
    """Names of nodes of the graph that is quantized, which stay in float, with the reason.

    Raises:
        UsageError: a glob that matches no node of the model.
    """
    nodes = optimized.graph.node
    called = labels(nodes, source.named)
    for name in called:
        for fused in _FUSED:
            called[name] = called[name].removesuffix(fused)
    reasons: dict[str, str] = {}
    for glob in options.exclude:
        found = {name for name, label in called.items() if _matches(label, glob)}
        if not found:
            _require_match(glob, labels(source.model.proto.graph.node, source.named).values())
        reasons |= dict.fromkeys(found, with_flags(f"excluded by `exclude` {glob}"))
    if options.exclude_first:
        reasons |= dict.fromkeys(_first_layers(optimized.graph), "reads the model's inputs")
    if options.exclude_heads:
        reasons |= dict.fromkeys(_head_layers(optimized.graph), "makes the model's outputs")
    return reasons


def _matches(label: str, glob: str) -> bool:
    """Whether the glob matches; a name with brackets or stars always matches itself."""
    return label == glob or fnmatchcase(label, glob)


def _require_match(glob: str, known: Iterable[str]) -> None:
    """A node that was folded into another is known, too, though nothing of it is left to exclude."""
    names = list(known)
    if not any(_matches(name, glob) for name in names):
        near = difflib.get_close_matches(glob, names, n=3, cutoff=0.4) or names[:3]
        raise UsageError(f"`exclude` {glob!r} matches no node; near matches: {', '.join(near)}")


def _first_layers(graph: onnx.GraphProto) -> list[str]:
    """Layers with no other layer between them and an input of the graph."""
    stored = {tensor.name for tensor in graph.initializer}
    reached = {value.name for value in graph.input} - stored
    found = []
    for node in graph.node:
        if reached.isdisjoint(node.input):
            continue
        if node.op_type in LAYERS:
            found.append(node.name)
        else:
            reached.update(node.output)
    return found


def _head_layers(graph: onnx.GraphProto) -> list[str]:
    """Layers with no other layer between them and an output of the graph."""
    reached = {value.name for value in graph.output}
    found = []
    for node in reversed(graph.node):
        if reached.isdisjoint(node.output):
            continue
        if node.op_type in LAYERS:
            found.append(node.name)
        else:
            reached.update(node.input)
    return found
