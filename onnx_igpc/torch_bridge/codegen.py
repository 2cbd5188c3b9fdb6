"""The forward function of a program, written out as Python source and compiled once.

Straight-line code is the fastest way to walk a graph in Python, it is what ``torch.compile`` reads
best, and a person can read it too: ``module.code``. Every value is released after its last use.
"""

from __future__ import annotations

import linecache
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch

from onnx_igpc.torch_bridge.program import Known, Local, Operand, Program, Step, Stored

_files = Counter[str]()


def compile_program(
    program: Program, torch_names: Mapping[str, str], as_float: set[str]
) -> tuple[Callable[..., Any], str]:
    """The function ``forward(self, *inputs)`` for a program, and its source.

    Args:
        program: Steps and stored tensors.
        torch_names: ONNX name -> dotted attribute path, for every stored tensor.
        as_float: Inputs to convert to float32 first.
    """
    writer = _Writer(program, torch_names)
    source = writer.write(as_float)
    _files["forward"] += 1
    file_name = f"<onnx graph {_files['forward']}>"
    # Lets tracebacks and debuggers show the generated lines.
    linecache.cache[file_name] = (len(source), None, source.splitlines(keepends=True), file_name)
    exec(compile(source, file_name, "exec"), writer.names)
    forward: Callable[..., Any] = writer.names["forward"]
    return forward, source


class _Writer:
    def __init__(self, program: Program, torch_names: Mapping[str, str]) -> None:
        self.program = program
        self.torch_names = torch_names
        self.names: dict[str, Any] = {"torch": torch}
        self.locals: dict[str, str] = {}
        self.scopes: dict[tuple[str, ...], str] = {(): "self"}
        self.header: list[str] = []

    def write(self, as_float: set[str]) -> str:
        parameters = [self._local(name) for name in self.program.inputs]
        body = [
            f"{self._local(name)} = {self._local(name)}.float()"
            for name in self.program.inputs
            if name in as_float
        ]
        last = self._last_uses()
        for index, step in enumerate(self.program.steps):
            body.append(self._call(index, step))
            dead = [self._local(name) for name in last.get(index, ())]
            if dead:
                body.append("del " + ", ".join(dead))
        results = [self._value(value) for value in self.program.outputs]
        body.append("return " + (results[0] if len(results) == 1 else f"({', '.join(results)})"))
        if any(step.trains for step in self.program.steps):
            self.header.insert(0, "training = self.training")
        lines = [f"    {line}" for line in (*self.header, *body)]
        return "\n".join([f"def forward({', '.join(['self', *parameters])}):", *lines, ""])

    def _last_uses(self) -> dict[int, list[str]]:
        """Step -> the values nobody reads after it; results that nobody reads at all are kept
        until the end, which is short since dead nodes were dropped."""
        kept = {value.name for value in self.program.outputs if isinstance(value, Local)}
        last: dict[str, int] = {}
        for index, step in enumerate(self.program.steps):
            for value in step.arguments:
                if isinstance(value, Local) and value.name not in kept:
                    last[value.name] = index
        dead: dict[int, list[str]] = {}
        for name, index in last.items():
            dead.setdefault(index, []).append(name)
        return dead

    def _call(self, index: int, step: Step) -> str:
        self.names[f"f{index}"] = step.run
        arguments = [self._value(value) for value in step.arguments]
        for position in step.moved:
            anchor = next(
                text
                for other, text in enumerate(arguments)
                if other not in step.moved and self._on_device(step.arguments[other])
            )
            arguments[position] = f"{arguments[position]}.to({anchor}.device)"
        if step.trains:
            arguments.append("training")
        targets = [self._local(name) if name else "_" for name in step.outputs]
        label = step.label.encode("unicode_escape").decode()
        return f"{', '.join(targets)} = f{index}({', '.join(arguments)})  # {step.op_type} {label}"

    @staticmethod
    def _on_device(value: Operand | None) -> bool:
        return isinstance(value, Stored) or (isinstance(value, Local) and not value.host)

    def _value(self, value: Operand | None) -> str:
        match value:
            case Local(name=name):
                return self._local(name)
            case Stored(name=name):
                *path, leaf = self.torch_names[name].split(".")
                return _attribute(self._scope(tuple(path)), leaf)
            case Known(tensor=tensor):
                name = f"c{len(self.names)}"
                self.names[name] = tensor
                return name
            case None:
                return "None"

    def _local(self, name: str) -> str:
        return self.locals.setdefault(name, f"v{len(self.locals)}")

    def _scope(self, path: tuple[str, ...]) -> str:
        """The local that holds the sub-module at ``path``: looked up once for all its tensors."""
        if path not in self.scopes:
            parent = self._scope(path[:-1])
            self.scopes[path] = f"m{len(self.scopes)}"
            self.header.append(f"{self.scopes[path]} = {_attribute(parent, path[-1])}")
        return self.scopes[path]


def _attribute(owner: str, name: str) -> str:
    return f"{owner}.{name}" if name.isidentifier() else f"getattr({owner}, {name!r})"
