"""The commands that measure models against each other: verify, benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnx_igpc.cli_progress import ProgressLine
from onnx_igpc.cli_support import (
    check_output,
    console,
    preprocessing_options,
    read_preprocessing,
    write_text,
)

_MODEL = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path)


def register(main: click.Group) -> None:
    """Add the commands of this module to the command line."""
    for command in (verify, benchmark):
        main.add_command(command)


@click.command(epilog="Example: onnx-igpc verify model.onnx small.onnx --data images/")
@click.argument("original", type=_MODEL)
@click.argument("candidate", type=_MODEL)
@click.option(
    "--data", type=_FILE, help="Images (folder, .tar) or arrays (.npz); random if left out."
)
@click.option("--samples", type=int, help="At most so many samples.")
@click.option("--batch-size", type=int, default=16, show_default=True, help="Samples run at once.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME:DIMS",
    help="Size of a dynamic input, as x:1,3,224,224.",
)
@click.option(
    "--provider",
    default="cpu",
    show_default=True,
    help="Execution provider: cpu, cuda, tensorrt, openvino, ...",
)
@click.option("--scores", metavar="NAME", help="The output with class scores.")
@click.option("--metric", metavar="MODULE:FUNCTION", help="A measure of your own.")
@click.option("--min-agreement", type=float, help="Fail below this top-1 agreement (0 to 1).")
@click.option("--atol", type=float, help="Fail where max|a-b| > atol + rtol max|b|.")
@click.option("--rtol", type=float, help="See --atol.")
@preprocessing_options
@click.option("--json", "json_file", type=_FILE, metavar="FILE", help="Write JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def verify(
    original: Path,
    candidate: Path,
    shapes: tuple[str, ...],
    json_file: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Run ORIGINAL and CANDIDATE on the same inputs and compare what they make.

    Exit code 1 if a given threshold does not hold, or nodes ran elsewhere than asked.
    """
    from onnx_igpc.feeds import parse_shapes
    from onnx_igpc.render import show_verify
    from onnx_igpc.verify import verify as run

    check_output(json_file, original, candidate)
    options["preprocessing"] = read_preprocessing(options)
    with ProgressLine("verifying", quiet) as line:
        result = run(
            original, candidate, shapes=parse_shapes(shapes), progress=line.update, **options
        )
    if json_file is not None:
        write_text(json_file, json.dumps(result.to_dict(), indent=2))
    show_verify(console(quiet or str(json_file) == "-"), result)
    if not result.passed:
        raise SystemExit(1)


@click.command(epilog="Example: onnx-igpc benchmark model.onnx small.onnx --batch 1 --batch 8")
@click.argument("models", type=_MODEL, nargs=-1, required=True)
@click.option(
    "--provider",
    default="cpu",
    show_default=True,
    help="Execution provider: cpu, cuda, tensorrt, openvino, ...",
)
@click.option("--batch", "batches", type=int, multiple=True, help="Batch size. Repeatable.")
@click.option("--threads", type=int, multiple=True, help="Threads of a run. Repeatable.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME:DIMS",
    help="Size of a dynamic input, as x:1,3,224,224.",
)
@click.option("--data", type=_FILE, help="Images or arrays; random if left out.")
@click.option("--rounds", type=int, default=30, show_default=True, help="Turns of each model.")
@click.option("--warmup", type=int, default=3, show_default=True, help="Turns that do not count.")
@click.option("--per-operator", is_flag=True, help="Profile every node, too.")
@preprocessing_options
@click.option("--json", "json_file", type=_FILE, metavar="FILE", help="Write JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def benchmark(
    models: tuple[Path, ...],
    threads: tuple[int, ...],
    shapes: tuple[str, ...],
    json_file: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Race MODELS in one process, in turns; the first is the baseline."""
    from onnx_igpc.benchmark import benchmark as run
    from onnx_igpc.feeds import parse_shapes
    from onnx_igpc.render import show_benchmark

    check_output(json_file, *models)
    options["preprocessing"] = read_preprocessing(options)
    with ProgressLine("benchmarking", quiet, undisturbed=True) as line:
        result = run(
            models,
            threads=threads or (None,),
            shapes=parse_shapes(shapes),
            progress=line.update,
            **options,
        )
    if json_file is not None:
        write_text(json_file, json.dumps(result.to_dict(), indent=2))
    show_benchmark(console(quiet or str(json_file) == "-"), result)
