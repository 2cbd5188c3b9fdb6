"""The command that makes of a model, images and a machine the file worth deploying."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from onnx_igpc.cli.options import (
    OUTPUT,
    check_files,
    console,
    goes_to_stdout,
    label_offset_option,
    where_options,
    write_text,
)
from onnx_igpc.cli.preprocessing import PreprocessingOptions, preprocessing_options
from onnx_igpc.cli.progress import ProgressLine
from onnx_igpc.cli.train import let_threads_sleep

_PATH = click.Path(path_type=Path)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "": 60}


def register(main: click.Group) -> None:
    """Add the command of this module to the command line."""
    main.add_command(optimize)


def _seconds(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """Option callback: ``90s``, ``30m``, ``1.5h``, or minutes without a unit."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a time: write 90s, 30m or 2h")
    return float(found[1]) * _SECONDS[found[2]]


@click.command(
    epilog="Example: onnx-igpc optimize model.onnx --data images/ -o best --threads 1 --time 20m"
)
@click.argument("model", type=_PATH)
@click.option(
    "--data",
    type=_PATH,
    metavar="IMAGES",
    required=True,
    help="Unlabelled images or arrays; a part of them is held out to choose by.",
)
@click.option("-o", "--output", type=_PATH, metavar="FOLDER", required=True, help="To write.")
@click.option("--val", type=_PATH, metavar="LABELLED", help="For the accuracy of what is chosen.")
@label_offset_option
@click.option(
    "--keep",
    metavar="PROMISE",
    help="agreement=95%, output=0.05 or, with --val, accuracy=-1 (points): held at the lower end of its "
    "interval  [the most of 98, 95, 90 and 80% agreement that so many images can show].",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8", "best"]),
    default="best",
    show_default=True,
    help="What may be chosen besides the original.",
)
@where_options
@click.option(
    "--time",
    "seconds",
    default="30m",
    show_default=True,
    callback=_seconds,
    help="What all of it may take: 90s, 30m, 2h; a number alone is minutes.",
)
@click.option("--epochs", type=int, help="Of training a cut back [what the time allows].")
@preprocessing_options
@click.option("--json", "json_file", type=OUTPUT, metavar="FILE", help="Write JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def optimize(
    model: Path,
    data: Path,
    output: Path,
    val: Path | None,
    json_file: Path | None,
    quiet: bool,
    preprocessing: PreprocessingOptions,
    **options: Any,
) -> None:
    """Find the fastest file that still answers as MODEL does, and say what it cost.

    Tries what this tool has (int8, cuts of blocks and of layers, trained back, in fp32 and int8) on IMAGES, races all in
    one process, and writes model.onnx, report.html, report.json and commands.sh. Started again after a stop, it goes on.
    Exit code 0 also where the original is the best answer.
    """
    from onnx_igpc.compression.optimization.optimize import optimize as run
    from onnx_igpc.compression.optimization.options import Optimization
    from onnx_igpc.data.dataset import Dataset
    from onnx_igpc.data.file_guard import FileGuard
    from onnx_igpc.report.console.optimization import show_optimization
    from onnx_igpc.runtime.setting import Setting
    from onnx_igpc.torch_bridge.training.recipe import Recipe

    guard = FileGuard()
    guard.reads_model(model)
    guard.reads_data(data, "--data")
    guard.reads_data(val, "--val")
    guard.reads(preprocessing.preprocess, "--preprocess")
    guard.writes_folder(output, "-o")
    check_files(guard, json=json_file)
    preprocessed, offset = preprocessing.read(), options.pop("label_offset")
    setting = Setting(options.pop("provider"), options.pop("threads"))
    recipe = Recipe(epochs=options.pop("epochs"))
    chosen = Optimization(setting=setting, recipe=recipe, **options)
    existed = output.exists()
    let_threads_sleep()
    with ProgressLine("optimizing:", quiet, undisturbed=True) as line:
        try:
            report = run(
                model,
                Dataset(data, preprocessed),
                output,
                val=Dataset(val, label_offset=offset) if val is not None else None,
                optimization=chosen,
                progress=line.update,
                log=line.log,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped: the same command goes on from here") from None
    if json_file is not None:
        write_text(json_file, report.to_json())
    out = console(quiet or goes_to_stdout(json_file))
    show_optimization(out, report)
    done = f"wrote {output}: model.onnx, report.html, report.json, commands.sh"
    if existed:
        # A folder of anything else is refused.
        limit = f"{report.limit_seconds:g}s"
        done = f"{output} was there already, of this run with --time {limit}: to try more, name another folder"
    out.print(done, markup=False)
