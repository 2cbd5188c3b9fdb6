"""Running what the documentation says to run: its command and Python blocks, on small stand-ins.

A page's blocks run in order, in one folder that has what the pages talk about: ``model.onnx``, ``images/``,
``labelled/`` and so on are a tiny network and random pictures. A block that is not to be run has a comment
in the line before it: ``<!-- not run: REASON -->``. What takes long is shortened: see :data:`SHORTER`.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from onnx_igpc.cli import main

ROOT = Path(__file__).parent.parent
RUN = ("sh", "console", "python")
SHORTER: dict[str, dict[str, str]] = {
    "finetune": {"--epochs": "1", "--workers": "0"},
    "benchmark": {"--rounds": "2"},
    "compress": {"--samples": "16"},
    "lower": {"--lowering": "literal"},
    "optimize": {"--time": "5s"},
}
"""Options that are set to these values, whatever the documentation says. How ``lower`` chooses by measuring
has tests of its own."""

_FENCE = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^\n]+?) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``reason`` says why it is not run, if it is not."""

    page: str
    line: int
    language: str
    code: str
    reason: str | None = None


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    text = page.read_text()
    return [
        Block(
            page.name,
            text.count("\n", 0, found.start("code")),
            found["language"],
            found["code"],
            found["reason"],
        )
        for found in _FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[list[str]]:
    """The command lines of a sh or console block, as words."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if block.language == "console" and not line.startswith("$ "):
            continue  # what the command wrote
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            yield words


@dataclass
class PageRun:
    """The state between the blocks of one page: the folder that is the current one, and names."""

    names: dict[str, Any] = field(default_factory=dict)
    output: str = ""

    def run(self, block: Block) -> None:
        """Run a block; an AssertionError says which command failed and how."""
        if block.language == "python":
            where = f"{block.page}, line {block.line}"
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.code, where, "exec"), self.names)
            return
        for words in commands(block):
            self._run_command(words, block)

    def _run_command(self, words: list[str], block: Block) -> None:
        where = f"{block.page}, line {block.line}: {' '.join(words)}"
        target = None
        if len(words) > 2 and words[-2] == ">":
            words, target = words[:-2], Path(words[-1])
        if words[0] == "onnx-igpc":
            result = CliRunner().invoke(main, shorter(words[1:]))
            assert result.exit_code == 0, f"{where}\n{result.output}\n{result.exception!r}"
            self.output = result.stdout
        elif words[:2] == ["python", "-m"]:
            self._run_module(words[2], words[3:])
        else:
            raise AssertionError(f"{where}: no way to run this; say why with <!-- not run: ... -->")
        if target is not None:
            target.write_text(self.output)

    def _run_module(self, module: str, arguments: list[str]) -> None:
        before = sys.argv
        sys.argv = [module, *arguments]
        try:
            with contextlib.redirect_stdout(io.StringIO()) as written:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            if stop.code:
                raise AssertionError(f"{module} {arguments}: exit code {stop.code}") from stop
        finally:
            sys.argv = before
        self.output = written.getvalue()


def shorter(words: list[str]) -> list[str]:
    """The command with the options of :data:`SHORTER`."""
    words = list(words)
    for option, value in SHORTER.get(words[0], {}).items():
        if option == "--samples" and not any(word.endswith("images/") for word in words):
            continue  # arrays are the sample model's, whose figures the page tells
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    return words
