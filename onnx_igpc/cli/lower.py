"""The command that writes a rewritten model down for a runtime, and the options it shares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_igpc.cli.options import (
    OUTPUT,
    Command,
    check_files,
    console,
    goes_to_stdout,
    guard_model_output,
    output_path,
    parse_shapes,
    write_text,
)
from onnx_igpc.cli.progress import ProgressLine

if TYPE_CHECKING:
    from onnx_igpc.lowering.options import Lowering

_FILE = click.Path(path_type=Path)


def register(main: click.Group) -> None:
    """Add the commands of this module to the command line."""
    main.add_command(lower)


def setting_options(command: Command) -> Command:
    """Options that say where and how the model will run."""
    options = (
        click.option(
            "--provider",
            default="cpu",
            show_default=True,
            help="Execution provider that is measured: cpu, cuda, tensorrt, openvino, ...",
        ),
        click.option("--threads", type=int, help="Threads of a run [onnxruntime's choice]."),
        click.option(
            "--batch", type=int, default=1, show_default=True, help="Batch size that is measured."
        ),
        click.option(
            "--shape",
            "shapes",
            multiple=True,
            metavar="NAME:DIMS",
            help="Size of a dynamic input, as x:1,3,224,224.",
        ),
        click.option(
            "--allow-slower",
            is_flag=True,
            help="Keep sites rewritten that are slower than dense, for the sake of size.",
        ),
        click.option(
            "--cache",
            "cache_folder",
            type=_FILE,
            metavar="FOLDER",
            help="Where measured times are kept [the user's cache folder].",
        ),
        click.option(
            "--precision",
            type=click.Choice(["float32", "int8"]),
            default="float32",
            show_default=True,
            help="int8: measured as it will run once it is quantized; quantize it afterwards.",
        ),
        click.option("--no-cache", is_flag=True, help="Measure anew, and keep nothing."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def read_lowering(values: dict[str, Any], kind: str = "auto") -> Lowering:
    """Take the options of :func:`setting_options` out of ``values``, as the API takes them.

    Raises:
        UsageError: a value that cannot be used.
    """
    from onnx_igpc.lowering.options import Lowering
    from onnx_igpc.runtime.setting import Setting

    folder, without = values.pop("cache_folder"), values.pop("no_cache")
    if folder is not None and without:
        raise click.UsageError("--cache and --no-cache exclude each other")
    given = {name: values.pop(name) for name in ("provider", "threads", "batch")}
    setting = Setting(**given, shapes=parse_shapes(values.pop("shapes")))
    cache = False if without else folder or True
    return Lowering(kind, setting, values.pop("allow_slower"), cache, values.pop("precision"))


@click.command(epilog="Example: onnx-igpc lower tuned.onnx -o fast.onnx --threads 1")
@click.argument("model", type=_FILE)
@click.option(
    "-o", "--output", type=OUTPUT, required=True, help="The model to write; - for stdout."
)
@click.option(
    "--lowering",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="auto: the fastest for each site, measured; literal, dense, ...: that one throughout.",
)
@setting_options
@click.option("--json", "json_file", type=OUTPUT, metavar="FILE", help="Write JSON; - for stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Every site's times.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def lower(
    model: Path,
    output: Path,
    lowering: str,
    json_file: Path | None,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Write MODEL down for a runtime: its function stays, its operators are chosen for speed.

    MODEL is what compress or finetune wrote. The result is final: go back to MODEL to train further.
    """
    from onnx_igpc.data.file_guard import FileGuard
    from onnx_igpc.lowering.lower import lower_model
    from onnx_igpc.report.console.lowering import show_lowering
    from onnx_igpc.report.console.rewrite import show_checks

    guard = FileGuard()
    guard.reads_model(model)
    guard.writes_folder(options["cache_folder"], "--cache")
    guard_model_output(guard, output, model)
    check_files(guard, json=json_file)
    chosen = read_lowering(options, lowering)
    with ProgressLine("lowering:", quiet, undisturbed=True) as line:
        result = lower_model(model, lowering=chosen, progress=line.update)
    result.save(output_path(output))
    if json_file is not None:
        write_text(json_file, result.report.to_json())
    out = console(quiet or goes_to_stdout(output, json_file))
    show_lowering(out, result.report, verbose=verbose)
    show_checks(out, result.report)
    out.print(f"wrote {output}", markup=False)
