"""How many nodes a model runs when its functions are called, without calling them.

A few functions that call one another twice each run 2^n nodes: a file of some kilobytes can keep
shape inference busy for years.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from onnx_igpc.errors import ModelError
from onnx_igpc.graph_walk import NodeHolder, subgraphs

MAX_RUN_NODES = 1_000_000


def check_function_calls(model: onnx.ModelProto, name: str) -> None:
    """Refuse functions that call themselves, and calls without measure.

    Raises:
        ModelError: a function calls itself, perhaps through others, or the model runs more than a
            million nodes once every call is followed.
    """
    if not model.functions:
        return
    functions = {_key(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    for function in _callees_first(functions, name):
        sizes[_key(function.domain, function.name)] = _size(function, sizes)
    if _size(model.graph, sizes) > MAX_RUN_NODES:
        raise ModelError(
            f"{name} runs more than {MAX_RUN_NODES} nodes when its functions are called: not supported"
        )


def _key(domain: str, name: str) -> tuple[str, str]:
    return domain, name


def _nodes(holder: NodeHolder) -> Iterable[onnx.NodeProto]:
    """The nodes of a graph or function, those of its sub-graphs among them."""
    pending = list(holder.node)
    while pending:
        node = pending.pop()
        yield node
        for _, graph in subgraphs(node):
            pending.extend(graph.node)


def _size(holder: NodeHolder, sizes: dict[tuple[str, str], int]) -> int:
    return sum(1 + sizes.get(_key(node.domain, node.op_type), 0) for node in _nodes(holder))


def _callees_first(
    functions: dict[tuple[str, str], onnx.FunctionProto], name: str
) -> list[onnx.FunctionProto]:
    """The functions, each behind those that it calls; raises as :func:`check_function_calls`."""
    calls = {
        key: {_key(node.domain, node.op_type) for node in _nodes(function)} & functions.keys()
        for key, function in functions.items()
    }
    ordered: list[onnx.FunctionProto] = []
    while calls:
        ready = [key for key, callees in calls.items() if not callees]
        if not ready:
            stuck = min(calls)
            raise ModelError(f"{name}: function {stuck[1]!r} calls itself, which ONNX forbids")
        for key in ready:
            ordered.append(functions[key])
            del calls[key]
        for callees in calls.values():
            callees.difference_update(ready)
    return ordered
