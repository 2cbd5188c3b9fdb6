"""The command that quantizes a model to int8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_igpc.cli.options import (
    OUTPUT,
    check_files,
    console,
    goes_to_stdout,
    guard_model_output,
    output_path,
    where_options,
    write_text,
)
from onnx_igpc.cli.preprocessing import PreprocessingOptions, preprocessing_options
from onnx_igpc.cli.progress import ProgressLine
from onnx_igpc.cli.report import report_option, write_report

if TYPE_CHECKING:
    from onnx_igpc.lowering.quantization.options import Quantization

_FILE = click.Path(path_type=Path)
_REDUCE_RANGE = {"auto": None, "yes": True, "no": False}


def register(main: click.Group) -> None:
    """Add the command of this module to the command line."""
    main.add_command(quantize)


@click.command(epilog="Example: onnx-igpc quantize tuned.onnx -o int8.onnx --calibration images/")
@click.argument("model", type=_FILE)
@click.option(
    "-o", "--output", type=OUTPUT, required=True, help="The model to write; - for stdout."
)
@click.option(
    "--calibration",
    type=_FILE,
    metavar="DATA",
    required=True,
    help="Unlabelled images or arrays; a part of them is held out to measure the damage on.",
)
@click.option(
    "--samples", type=int, default=512, show_default=True, help="At most so many samples."
)
@click.option(
    "--method",
    type=click.Choice(["auto", "minmax", "percentile", "entropy"]),
    default="auto",
    show_default=True,
    help="How ranges of activations are found; auto: what does least damage to held-out samples.",
)
@click.option(
    "--activations",
    type=click.Choice(["auto", "uint8", "int8"]),
    default="auto",
    show_default=True,
    help="Their type; auto: what suits the provider.",
)
@click.option(
    "--reduce-range",
    type=click.Choice(list(_REDUCE_RANGE)),
    default="auto",
    show_default=True,
    help="Weights of 7 bits; auto: on processors without VNNI, whose sums would overflow.",
)
@click.option(
    "--exclude",
    metavar="GLOB",
    multiple=True,
    help="Nodes whose name matches stay in float. Repeatable.",
)
@click.option("--exclude-first", is_flag=True, help="Layers that read the inputs stay in float.")
@click.option("--exclude-heads", is_flag=True, help="Layers that make the outputs stay in float.")
@where_options
@preprocessing_options
@report_option
@click.option("--json", "json_file", type=OUTPUT, metavar="FILE", help="Write JSON; - for stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Every name and note in full.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def quantize(
    model: Path,
    output: Path,
    calibration: Path,
    samples: int,
    report_file: Path | None,
    json_file: Path | None,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Quantize MODEL to int8 with onnxruntime's static quantization.

    MODEL is an original, or what compress, finetune or lower wrote. The result is final.
    """
    from onnx_igpc.calibration.options import Calibration
    from onnx_igpc.data.file_guard import FileGuard
    from onnx_igpc.lowering.quantization.quantize import quantize_model
    from onnx_igpc.report.console.quantization import show_quantization
    from onnx_igpc.report.console.rewrite import show_summary

    preprocessing: PreprocessingOptions = options.pop("preprocessing")
    guard = FileGuard()
    guard.reads_model(model)
    guard.reads_data(calibration, "--calibration")
    guard.reads(preprocessing.preprocess, "--preprocess")
    guard_model_output(guard, output, model)
    check_files(guard, report=report_file, json=json_file)
    data = Calibration(calibration, preprocessing.read(), samples)
    chosen = _read_quantization(options)
    with ProgressLine("quantizing:", quiet) as line:
        result = quantize_model(model, data, quantization=chosen, progress=line.update)
    result.save(output_path(output))
    if json_file is not None:
        write_text(json_file, result.report.to_json())
    title = model if goes_to_stdout(output) else output
    write_report(report_file, result.report, title.name, result.opened, model)
    out = console(quiet or goes_to_stdout(output, report_file, json_file))
    show_quantization(out, result.report, verbose=verbose)
    show_summary(out, result.report)
    out.print(f"wrote {output}", markup=False)


def _read_quantization(values: dict[str, Any]) -> Quantization:
    """What is left in ``values`` as the API takes it.

    Raises:
        UsageError: a value that cannot be used.
    """
    from onnx_igpc.lowering.quantization.options import Quantization
    from onnx_igpc.runtime.setting import Setting

    setting = Setting(values.pop("provider"), values.pop("threads"))
    reduced = _REDUCE_RANGE[values.pop("reduce_range")]
    return Quantization(reduce_range=reduced, setting=setting, **values)
