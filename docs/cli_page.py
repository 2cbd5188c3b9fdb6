"""Writes the page of commands from the commands themselves: a hook of mkdocs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

_MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands in the place of their mark."""
    if _MARK not in markdown:
        return markdown
    from onnx_igpc.cli import main

    root = click.Context(main, info_name="onnx-igpc")
    parts = [_command(main.commands[name], name, root) for name in sorted(main.commands)]
    return markdown.replace(_MARK, "\n\n".join(parts))


def _command(command: click.Command, name: str, root: click.Context) -> str:
    context = click.Context(command, info_name=name, parent=root)
    usage = command.get_usage(context).removeprefix("Usage: ")
    example = (command.epilog or "").removeprefix("Example: ")
    lines = [f"## {name}", "", *_paragraphs(command.help or ""), ""]
    lines += ["```text", " ".join(usage.split()), "```", "", "For example:", ""]
    lines += ["```sh", example, "```", "", "| option | |", "|---|---|", *_rows(command, context)]
    return "\n".join(lines)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.replace("\b", "").split("\n\n"):
        yield from (" ".join(paragraph.split()), "")


def _rows(command: click.Command, context: click.Context) -> Iterator[str]:
    for option in command.get_params(context):
        record = option.get_help_record(context) if isinstance(option, click.Option) else None
        if record is not None:
            names, meaning = record
            yield f"| `{names}` | {_escaped(' '.join(meaning.split()))} |"


def _escaped(text: str) -> str:
    for sign in "\\|*_[]<>":
        text = text.replace(sign, f"\\{sign}")
    return text
