"""The report command, and how the other commands write their report file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_igpc.cli.options import OUTPUT, check_files, console, goes_to_stdout, write_text

if TYPE_CHECKING:
    from onnx_igpc.graph.model import OpenModel
    from onnx_igpc.report.tree import RewriteReport

_PATH = click.Path(path_type=Path)


def register(main: click.Group) -> None:
    """Add the command of this module to the command line."""
    main.add_command(report)


def report_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--report``, as ``report_file``."""
    return click.option(
        "--report",
        "report_file",
        type=OUTPUT,
        metavar="FILE",
        help="Write the report: .html is a page to look at, .json the same as data; - is JSON on stdout.",
    )(command)


def write_report(
    path: Path | None,
    report: RewriteReport,
    title: str,
    written: OpenModel | Path,
    original: Path | None,
) -> None:
    """Write the report file, if one is wanted, with pictures of the weights of both models.

    title: the model's name. Raises ModelError for a model that cannot be read.
    """
    if path is None:
        return
    from onnx_igpc.evaluation.thumbnails import add_thumbnails
    from onnx_igpc.report.files import report_text

    add_thumbnails(report, written, original)
    write_text(path, report_text(path, report, title))


@click.command(epilog="Example: onnx-igpc report small.onnx --html small.html")
@click.argument("model", type=_PATH)
@click.option(
    "--html",
    "html_file",
    type=OUTPUT,
    metavar="FILE",
    help="Write the report as a page to look at.",
)
@click.option(
    "--json",
    "json_file",
    type=OUTPUT,
    metavar="FILE",
    help="Write the report as JSON; - for stdout.",
)
@click.option(
    "--merge",
    "others",
    type=_PATH,
    multiple=True,
    metavar="FILE.json",
    help="Add what verify or benchmark wrote with --report. Repeatable.",
)
@click.option("--original", type=_PATH, help="The original model, for pictures of its weights.")
@click.option("-v", "--verbose", is_flag=True, help="Every name and note in full.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def report(
    model: Path,
    html_file: Path | None,
    json_file: Path | None,
    others: tuple[Path, ...],
    original: Path | None,
    verbose: bool,
    quiet: bool,
) -> None:
    """Show the report that a compressed MODEL carries."""
    from onnx_igpc.data.file_guard import FileGuard
    from onnx_igpc.evaluation.thumbnails import add_thumbnails
    from onnx_igpc.graph.model import file_bytes, open_model
    from onnx_igpc.report.console.lowering import show_lowering
    from onnx_igpc.report.console.quantization import show_quantization
    from onnx_igpc.report.console.rewrite import show_rewrite
    from onnx_igpc.report.files import carried_report, read_report

    guard = FileGuard()
    guard.reads_model(model, original)
    for other in others:
        guard.reads(other, "--merge")
    check_files(guard, html=html_file, json=json_file)
    opened = open_model(model)
    found = carried_report(opened)
    for other in others:
        found.adopt(read_report(other))
    if original is not None:
        found.totals.file_bytes.before = file_bytes(original)
    if html_file is not None or original is not None:
        add_thumbnails(found, opened, original)
    if html_file is not None:
        from onnx_igpc.report.html import render_html

        write_text(html_file, render_html(found, model.name))
    if json_file is not None:
        write_text(json_file, found.to_json())
    out = console(quiet or goes_to_stdout(html_file, json_file))
    show_rewrite(out, found, verbose=verbose)
    show_lowering(out, found, verbose=verbose)
    show_quantization(out, found, verbose=verbose)
