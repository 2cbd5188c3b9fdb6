"""The commands that measure models against each other: verify, benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnx_igpc.cli.options import (
    OUTPUT,
    check_files,
    console,
    goes_to_stdout,
    label_offset_option,
    parse_shapes,
    shape_option,
    write_text,
)
from onnx_igpc.cli.preprocessing import (
    PreprocessingOptions,
    preprocessing_options,
    recorded_preprocessing,
)
from onnx_igpc.cli.progress import ProgressLine
from onnx_igpc.cli.report import report_option, write_report
from onnx_igpc.errors import UsageError

_MODEL = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path)


def _counts(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[int, ...]:
    """Option callback: ``1,8`` or the option several times, or both, as whole numbers above 0."""
    counts = [part.strip() for value in values for part in value.split(",")]
    for count in counts:
        if not (count.isascii() and count.isdigit()) or int(count) < 1:
            raise click.BadParameter(f"{count!r} is not a whole number above 0: write 1,8")
    return tuple(dict.fromkeys(int(count) for count in counts))


def _module_file(metric: str | None) -> Path | None:
    """Where the module of ``MODULE:FUNCTION`` lies, if that is the folder one works in."""
    module = metric.partition(":")[0] if metric is not None else ""
    return Path(f"{module.replace('.', '/')}.py") if module else None


def register(main: click.Group) -> None:
    """Add the commands of this module to the command line."""
    for command in (verify, benchmark):
        main.add_command(command)


_provider_option = click.option(
    "--provider",
    default="cpu",
    show_default=True,
    help="Execution provider: cpu, cuda, tensorrt, openvino, ...",
)


@click.command(epilog="Example: onnx-igpc verify model.onnx small.onnx --data images/")
@click.argument("original", type=_MODEL)
@click.argument("candidate", type=_MODEL)
@click.option(
    "--data", type=_FILE, help="Images (folder, .tar) or arrays (.npz); random if left out."
)
@click.option("--samples", type=int, help="At most so many samples.")
@click.option("--batch-size", type=int, default=16, show_default=True, help="Samples run at once.")
@shape_option
@_provider_option
@click.option("--scores", metavar="NAME", help="The output with class scores.")
@click.option(
    "--outputs",
    multiple=True,
    metavar="NAME",
    help="Compare this output only. Repeatable  [all that can be].",
)
@label_offset_option
@click.option("--metric", metavar="MODULE:FUNCTION", help="A measure of your own.")
@click.option("--min-agreement", type=float, help="Fail below this top-1 agreement (0 to 1).")
@click.option("--atol", type=float, help="Fail where max|a-b| > atol + rtol max|b|.")
@click.option("--rtol", type=float, help="See --atol.")
@preprocessing_options
@report_option
@click.option("--json", "json_file", type=OUTPUT, metavar="FILE", help="Write JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def verify(
    original: Path,
    candidate: Path,
    shapes: tuple[str, ...],
    report_file: Path | None,
    json_file: Path | None,
    quiet: bool,
    preprocessing: PreprocessingOptions,
    **options: Any,
) -> None:
    """Run ORIGINAL and CANDIDATE on the same inputs and compare what they make.

    Exit code 1 if a given threshold does not hold, or nodes ran elsewhere than asked.
    """
    from onnx_igpc.data.dataset import Dataset
    from onnx_igpc.data.file_guard import FileGuard
    from onnx_igpc.evaluation.options import Thresholds
    from onnx_igpc.evaluation.verify import verify as run
    from onnx_igpc.report.console.rewrite import show_verify
    from onnx_igpc.report.files import compared_report
    from onnx_igpc.runtime.setting import Setting

    guard = FileGuard()
    guard.reads_model(original, candidate)
    guard.reads_data(options["data"], "--data")
    guard.reads(preprocessing.preprocess, "--preprocess")
    guard.reads(_module_file(options["metric"]), "--metric")
    check_files(guard, report=report_file, json=json_file)
    source, prepared = options.pop("data"), preprocessing.read()
    if prepared is None and source is not None:
        prepared = recorded_preprocessing(candidate, source)
    data = Dataset(source, prepared, options.pop("samples"), options.pop("label_offset"))
    bounds = {name: options.pop(name) for name in ("min_agreement", "atol", "rtol")}
    if (batch := options.pop("batch_size")) < 1:
        raise UsageError(f"batch size must be at least 1, not {batch}")
    setting = Setting(options.pop("provider"), batch=batch, shapes=parse_shapes(shapes))
    with ProgressLine("verifying", quiet) as line:
        result = run(
            original,
            candidate,
            data,
            setting=setting,
            thresholds=Thresholds(**bounds),
            progress=line.update,
            **options,
        )
    if json_file is not None:
        write_text(json_file, json.dumps(result.to_dict(), indent=2))
    if report_file is not None:
        report = compared_report(original, candidate)
        report.verify = result
        write_report(report_file, report, candidate.name, candidate, original)
    show_verify(console(quiet or goes_to_stdout(json_file, report_file)), result)
    if not result.passed:
        raise SystemExit(1)


@click.command(
    epilog="Example: onnx-igpc benchmark model.onnx small.onnx --batch 1,8 --threads 1,2"
)
@click.argument("models", type=_MODEL, nargs=-1, required=True)
@_provider_option
@click.option(
    "--batch",
    "batches",
    multiple=True,
    metavar="N,...",
    callback=_counts,
    help="Batch sizes, as 1,8; also repeatable.",
)
@click.option(
    "--threads",
    multiple=True,
    metavar="N,...",
    callback=_counts,
    help="Threads of a run, as 1,2; also repeatable. Every batch size is raced with each.",
)
@shape_option
@click.option("--data", type=_FILE, help="Images or arrays; random if left out.")
@click.option("--rounds", type=int, default=30, show_default=True, help="Turns of each model.")
@click.option("--warmup", type=int, default=3, show_default=True, help="Turns that do not count.")
@click.option("--per-operator", is_flag=True, help="Where the time goes: operators and nodes.")
@click.option(
    "--limit/--no-limit",
    default=True,
    show_default=True,
    help="How fast a rewritten model could at best be, and how much of that it reaches.",
)
@preprocessing_options
@report_option
@click.option("--json", "json_file", type=OUTPUT, metavar="FILE", help="Write JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def benchmark(
    models: tuple[Path, ...],
    threads: tuple[int, ...],
    shapes: tuple[str, ...],
    report_file: Path | None,
    json_file: Path | None,
    quiet: bool,
    preprocessing: PreprocessingOptions,
    **options: Any,
) -> None:
    """Race MODELS in one process, in turns; the first is the baseline.

    Exit code 1 if the provider asked for is not there, or did not run a model's arithmetic.
    """
    from onnx_igpc.data.dataset import Dataset
    from onnx_igpc.data.file_guard import FileGuard
    from onnx_igpc.evaluation.benchmark import benchmark as run
    from onnx_igpc.report.console.benchmark import show_benchmark
    from onnx_igpc.report.files import compared_report, subject
    from onnx_igpc.runtime.setting import Settings

    guard = FileGuard()
    guard.reads_model(*models)
    guard.reads_data(options["data"], "--data")
    guard.reads(preprocessing.preprocess, "--preprocess")
    check_files(guard, report=report_file, json=json_file)
    data = Dataset(options.pop("data"), preprocessing.read())
    provider, batches = options.pop("provider"), options.pop("batches")
    settings = Settings(provider, batches, threads or (None,), parse_shapes(shapes))
    with ProgressLine("benchmarking", quiet, undisturbed=True) as line:
        result = run(models, settings=settings, data=data, progress=line.update, **options)
    if json_file is not None:
        write_text(json_file, json.dumps(result.to_dict(), indent=2))
    if report_file is not None:
        candidate = subject(models)
        report = compared_report(models[0], candidate)
        report.benchmark = result
        write_report(report_file, report, candidate.name, candidate, models[0])
    show_benchmark(console(quiet or goes_to_stdout(json_file, report_file)), result)
    if result.failures:
        raise SystemExit(1)
