"""Chains of ONNX nodes that PyTorch has as one function, run as one.

Exporters spell ``silu`` as Sigmoid and Mul, ``hardswish`` as HardSigmoid and Mul. The chain costs a
second pass over the activation, and keeps one more tensor for the backward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import replace
from typing import Any

from torch.nn import functional

from onnx_igpc.torch_bridge.program import Local, Program, Step


def fuse(program: Program, apart: Container[str] = ()) -> list[Step]:
    """The steps of a program with ``x * gate(x)`` run as one step, but where ``apart`` names the gate's value."""
    reads = Counter(
        value.name for step in program.steps for value in step.arguments if isinstance(value, Local)
    )
    reads.update(value.name for value in program.outputs if isinstance(value, Local))
    gates = {
        step.outputs[0]: replace(step, run=run)
        for step in program.steps
        if reads[step.outputs[0]] == 1
        and step.outputs[0] not in apart
        and (run := _gated(step)) is not None
    }
    result: list[Step] = []
    fused: set[str] = set()
    for step in program.steps:
        gate = _gate_of(step, gates)
        if gate is None:
            result.append(step)
            continue
        fused.add(gate.outputs[0])
        result.append(replace(gate, label=step.label, outputs=step.outputs))
    return [step for step in result if step.outputs[0] not in fused]


def _gated(step: Step) -> Callable[..., Any] | None:
    """The function for x * gate(x), if there is one."""
    if step.op_type == "Sigmoid":
        return functional.silu
    # HardSigmoid with the coefficients of hardswish was built as exactly this function.
    return functional.hardswish if step.run is functional.hardsigmoid else None


def _gate_of(step: Step, gates: dict[str, Step]) -> Step | None:
    """Of the gates that have become x * g(x), the one that ``step`` is."""
    if step.op_type != "Mul" or len(step.arguments) != 2:
        return None
    for gate_value, data in (step.arguments, step.arguments[::-1]):
        if isinstance(gate_value, Local) and gate_value.name in gates:
            gate = gates[gate_value.name]
            if isinstance(data, Local) and gate.arguments[0] == data:
                return gate
    return None
