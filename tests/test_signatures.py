"""Functions take few arguments: what belongs together is given together."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST = 9
MODULES = sorted([*(ROOT / "onnx_igpc").rglob("*.py"), *(ROOT / "passes").rglob("*.py")])


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[str]:
    """What callers give: all parameters but those that a method is bound to."""
    given = function.args
    found = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    found += [each.arg for each in (given.vararg, given.kwarg) if each is not None]
    return found[1:] if found[:1] in (["self"], ["cls"]) else found


def too_long(code: str) -> list[str]:
    """The functions with more parameters than may be, by name and line."""
    return [
        f"{getattr(node, 'name', 'lambda')}, line {node.lineno}: {len(parameters(node))}"
        for node in ast.walk(ast.parse(code))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        and len(parameters(node)) > MOST
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_takes_more_than_nine(path: Path) -> None:
    assert not too_long(path.read_text(encoding="utf-8"))


def test_the_scan_counts_every_kind_of_parameter() -> None:
    names = "a, /, b, c, *d, e, f, g, h, i"
    assert not too_long(f"def f({names}): ...")
    assert too_long(f"def f({names}, **j): ...") == ["f, line 1: 10"]
    assert not too_long("class A:\n def f(self, a, b, c, d, e, f, g, h, i): ...")
    assert too_long("f = lambda a, b, c, d, e, f, g, h, i, j: 0") == ["lambda, line 1: 10"]
