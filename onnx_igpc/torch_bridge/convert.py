"""ONNX model -> module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import onnx
import torch
from onnx import ModelProto

import onnx_igpc.torch_bridge.operators  # noqa: F401  (registers the operators)
from onnx_igpc.torch_bridge.codegen import compile_program
from onnx_igpc.torch_bridge.fusion import fuse
from onnx_igpc.torch_bridge.graph import Graph, read_graph
from onnx_igpc.torch_bridge.module import OnnxModule
from onnx_igpc.torch_bridge.names import torch_names
from onnx_igpc.torch_bridge.program import Local, Program, Step, Stored, build_program
from onnx_igpc.torch_bridge.tensors import HALF_TYPES, compute_type
from onnx_igpc.torch_bridge.weights import assign_roles

Hook = Callable[[torch.Tensor], torch.Tensor]


def convert(model: ModelProto, hooks: Mapping[str, Hook] | None = None) -> OnnxModule:
    """See :func:`onnx_igpc.torch_bridge.to_torch`.

    Every tensor that ``hooks`` names, of the inputs, the weights, and what nodes compute at run time, goes through
    its hook before anything reads it.
    """
    graph = read_graph(model)
    half_inputs = _half_inputs(graph)
    roles = assign_roles(graph)
    program = build_program(graph, roles)
    hooks = hooks or {}
    program.steps = list(_with_hooks(program, fuse(program, apart=hooks), hooks))
    names = torch_names(program.stored)
    forward, code = compile_program(program, names, half_inputs)
    written = (roles.trained | roles.statistics) & set(program.stored)
    module = OnnxModule(
        forward,
        code,
        program.inputs,
        graph.outputs,
        bindings={names[name]: name for name in sorted(written)},
        untied={name: entry for name, entry in roles.untied.items() if name in written},
    )
    for name, tensor in program.stored.items():
        module.add_tensor(
            names[name],
            # Constants may share memory with each other; what is registered may not.
            tensor.clone(),
            trained=name in program.trained,
            kept=name in program.kept,
        )
    return module.train()


def _with_hooks(
    program: Program, steps: Iterable[Step], hooks: Mapping[str, Hook]
) -> Iterator[Step]:
    for name in program.inputs:
        if name in hooks:
            yield _hook(name, hooks, Local(name), name)
    hooked: dict[str, Local] = {}
    for step in steps:
        weights = [each.name for each in step.arguments if isinstance(each, Stored)]
        for name in weights:
            if name in hooks and name not in hooked:
                hooked[name] = Local(f"{name}/hooked")
                yield _hook(name, hooks, Stored(name), hooked[name].name)
        yield replace(
            step,
            arguments=tuple(
                hooked.get(each.name, each) if isinstance(each, Stored) else each
                for each in step.arguments
            ),
        )
        for name in step.outputs:
            if name in hooks:
                yield _hook(name, hooks, Local(name), name)


def _hook(name: str, hooks: Mapping[str, Hook], value: Local | Stored, result: str) -> Step:
    return Step("", f"hook of {name}", hooks[name], (value,), (result,))


def _half_inputs(graph: Graph) -> set[str]:
    half = set()
    for value in graph.inputs:
        onnx_type = value.type.tensor_type.elem_type
        if onnx_type != onnx.TensorProto.UNDEFINED:
            compute_type(onnx_type, f"input {value.name!r}")
        if onnx_type in HALF_TYPES:
            half.add(value.name)
    return half
