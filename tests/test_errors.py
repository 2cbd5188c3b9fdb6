"""The library names Python arguments, and the command line says its flags in their place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from onnx_igpc.cli import main
from onnx_igpc.cli.options import IgpcGroup
from onnx_igpc.errors import FLAGS, UsageError, with_flags

ROOT = Path(__file__).parents[1]
# What a report shows tells commands to type.
OF_THE_COMMAND_LINE = ("onnx_igpc/cli", "onnx_igpc/report/console", "onnx_igpc/report/html")
OF_OTHER_PROGRAMS = ("--query-gpu=", "--format=")
LIBRARY = [
    path
    for folder in ("onnx_igpc", "passes")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not str(path.relative_to(ROOT)).startswith(OF_THE_COMMAND_LINE) and path.name != "errors.py"
]


def literals(code: str) -> Iterator[str]:
    """The string literals of a module that are no docstrings."""
    tree = ast.parse(code)
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value


def flags(code: str) -> list[str]:
    return [
        text
        for text in literals(code)
        if re.search(r"(?<![-\w])(--[a-z]|-o\b)", text) and not text.startswith(OF_OTHER_PROGRAMS)
    ]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_names_no_flag(path: Path) -> None:
    assert not flags(path.read_text(encoding="utf-8"))


def test_the_scan_sees_flags_but_no_docstrings() -> None:
    assert flags("def f():\n '''--lr'''\n raise E(f'{x}: give --lr')") == [": give --lr"]
    assert flags("x = 'the output -o'") == ["the output -o"]
    assert not flags("x = 'well--known a-o'")


def test_every_argument_that_is_named_has_a_flag() -> None:
    texts = [text for path in LIBRARY for text in literals(path.read_text(encoding="utf-8"))]
    named = {name for text in texts for name in re.findall(r"`([\w=]+)`", text)}
    # Names that are put together: a recipe's and a plan's check whatever they are given.
    recipe = (ROOT / "onnx_igpc/torch_bridge/training/recipe.py").read_text(encoding="utf-8")
    named |= set(re.findall(r'_(?:one_of|at_least|above_zero)\("(\w+)"', recipe))
    assert named == set(FLAGS)


def test_every_flag_is_an_option_of_a_command() -> None:
    options = {
        text
        for command in main.commands.values()
        for parameter in command.params
        for text in (*parameter.opts, *parameter.secondary_opts)
    }
    assert set(FLAGS.values()) <= options


def test_flags_take_the_place_of_arguments() -> None:
    assert with_flags("`channels_per_group` or `target`") == "--ch or --target"
    assert with_flags("use `sequential=False`, write `output`") == "use --no-sequential, write -o"
    assert with_flags("`kd` learns from it: give a `teacher`").endswith("give --teacher ORIGINAL")
    assert with_flags("`no_argument` and `x y.npz`") == "`no_argument` and `x y.npz`"


def test_errors_and_warnings_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    @click.group(cls=IgpcGroup)
    def group() -> None: ...

    @group.command()
    def fail() -> None:
        raise UsageError("`lr` must be above 0, not -1")

    with pytest.raises(SystemExit) as stopped:
        group(["fail"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --lr must be above 0, not -1\n"
