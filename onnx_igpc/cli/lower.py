"""The command that writes a rewritten model down for a runtime, and the options it shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnx_igpc.cli.options import (
    OUTPUT,
    check_files,
    console,
    goes_to_stdout,
    guard_model_output,
    option_group,
    output_path,
    parse_shapes,
    shape_option,
    write_text,
)
from onnx_igpc.cli.progress import ProgressLine

if TYPE_CHECKING:
    from onnx_igpc.lowering.options import Lowering, Precision

_FILE = click.Path(path_type=Path)


def register(main: click.Group) -> None:
    """Add the commands of this module to the command line."""
    main.add_command(lower)


@dataclass(frozen=True)
class SettingOptions:
    """Where and how the model will run, and what is kept of measuring it there."""

    provider: str
    threads: int | None
    batch: int
    shapes: tuple[str, ...]
    allow_slower: bool
    cache_folder: Path | None
    precision: Precision
    no_cache: bool

    def lowering(self, kind: str = "auto") -> Lowering:
        """As the API takes it.

        Raises:
            UsageError: a value that cannot be used.
        """
        from onnx_igpc.lowering.options import Lowering
        from onnx_igpc.runtime.setting import Setting

        if self.cache_folder is not None and self.no_cache:
            raise click.UsageError("--cache and --no-cache exclude each other")
        setting = Setting(self.provider, self.threads, self.batch, parse_shapes(self.shapes))
        cache = False if self.no_cache else self.cache_folder or True
        return Lowering(kind, setting, self.allow_slower, cache, self.precision)


setting_options = option_group(
    "setting",
    SettingOptions,
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
    shape_option,
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
    setting: SettingOptions,
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
    guard.writes_folder(setting.cache_folder, "--cache")
    guard_model_output(guard, output, model)
    check_files(guard, json=json_file)
    chosen = setting.lowering(lowering)
    with ProgressLine("lowering:", quiet, undisturbed=True) as line:
        result = lower_model(model, lowering=chosen, progress=line.update)
    result.save(output_path(output))
    if json_file is not None:
        write_text(json_file, result.report.to_json())
    out = console(quiet or goes_to_stdout(output, json_file))
    show_lowering(out, result.report, verbose=verbose)
    show_checks(out, result.report)
    out.print(f"wrote {output}", markup=False)
