"""The commands that rewrite a model or plan to: inspect, compress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_igpc.cli.lower import SettingOptions, setting_options
from onnx_igpc.cli.options import (
    OUTPUT,
    all_options,
    check_files,
    console,
    goes_to_stdout,
    guard_model_output,
    output_path,
    write_text,
)
from onnx_igpc.cli.preprocessing import PreprocessingOptions, preprocessing_options
from onnx_igpc.cli.progress import ProgressLine
from onnx_igpc.cli.report import report_option, write_report
from onnx_igpc.errors import UsageError

if TYPE_CHECKING:
    from onnx_igpc.calibration.options import Calibration
    from onnx_igpc.data.preprocessing import Preprocessing
    from onnx_igpc.planning.options import Budget, Keep, Published
    from onnx_igpc.sites.find import SiteFilter

_MODEL = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path)


def register(main: click.Group) -> None:
    """Add the commands of this module to the command line."""
    for command in (inspect, compress):
        main.add_command(command)


_site_options = all_options(
    click.option(
        "--ch",
        "channels_per_group",
        type=int,
        help="Channels per group, the schemes' parameter [16].",
    ),
    click.option(
        "--scheme",
        type=click.Choice(["v1", "v2"]),
        default="v2",
        show_default=True,
        help="v2: without divisibility constraints; v1: with.",
    ),
    click.option(
        "--include",
        metavar="GLOB",
        multiple=True,
        help="Only sites whose name matches. Repeatable.",
    ),
    click.option(
        "--exclude",
        metavar="GLOB",
        multiple=True,
        help="No site whose name matches. Repeatable.",
    ),
    click.option(
        "--include-heads", is_flag=True, help="Rewrite convolutions that make an output, too."
    ),
    click.option("-v", "--verbose", is_flag=True, help="Every name and note in full."),
    click.option("-q", "--quiet", is_flag=True, help="Errors only."),
)


@click.command(epilog="Example: onnx-igpc inspect model.onnx --ch 32")
@click.argument("model", type=_MODEL)
@_site_options
@click.option(
    "--json", "json_file", type=OUTPUT, metavar="FILE", help="Write the plan as JSON; - for stdout."
)
def inspect(
    model: Path, json_file: Path | None, verbose: bool, quiet: bool, **options: Any
) -> None:
    """List every pointwise convolution of MODEL and what rewriting it would save."""
    from onnx_igpc.compression.pipeline import inspect as run
    from onnx_igpc.data.file_guard import FileGuard
    from onnx_igpc.report.console.rewrite import show_rewrite

    guard = FileGuard()
    guard.reads_model(model)
    check_files(guard, json=json_file)
    sites = _read_sites(options)
    report = run(model, _read_published(options), sites=sites)
    if json_file is not None:
        write_text(json_file, report.to_json())
    show_rewrite(console(quiet or goes_to_stdout(json_file)), report, planned=True, verbose=verbose)


@click.command(epilog="Example: onnx-igpc compress model.onnx -o small.onnx --ch 32")
@click.argument("model", type=_MODEL)
@click.option("-o", "--output", type=OUTPUT, help="The model to write; - for stdout.")
@_site_options
@click.option(
    "--form",
    type=click.Choice(["linear", "paper"]),
    default="linear",
    show_default=True,
    help="linear: replace only the convolution; paper: BatchNorm and activation after K "
    "and after L, for training from scratch.",
)
@click.option(
    "--init",
    type=click.Choice(["fitted", "random"]),
    help="Weights of K and L [fitted; random in the paper's form].",
)
@click.option("--seed", type=int, default=0, show_default=True, help="For random weights.")
@click.option("--fold-batch-norm", is_flag=True, help="Fold BatchNormalization first.")
@click.option(
    "--calibration",
    type=_FILE,
    metavar="DATA",
    help="Unlabelled images or arrays to fit the weights to.",
)
@click.option(
    "--samples",
    type=int,
    default=1024,
    show_default=True,
    help="At most so many samples for calibration.",
)
@click.option(
    "--holdout",
    type=float,
    metavar="SHARE",
    help="Share of them on which the damage is measured, by fits without them [a fifth, but 100 "
    "where that is at most half].",
)
@click.option(
    "--sequential/--no-sequential",
    default=None,
    help="Fit each site behind those that are rewritten already, or by itself [what holds on data "
    "left out of the fit].",
)
@click.option(
    "--target",
    metavar="QUANTITY=SHARE%",
    help="A budget in the place of --ch: pointwise-parameters, pointwise-macs, parameters, macs or "
    "latency (measured here), as pointwise-parameters=40%. Needs --calibration.",
)
@click.option(
    "--keep",
    metavar="PROMISE",
    help="In the place of a budget: as little as keeps agreement=95%, output=0.05 (relative error) or, "
    "with labels, accuracy=-1 (points) on held-out data.",
)
@click.option(
    "--minimize",
    type=click.Choice(["pointwise-parameters", "pointwise-macs", "parameters", "macs", "latency"]),
    help="What --keep makes least [pointwise-parameters].",
)
@click.option(
    "--family",
    type=click.Choice(["extended", "published"]),
    help="What a budget chooses from [extended].",
)
@click.option(
    "--grouping",
    type=click.Choice(["learned", "contiguous"]),
    help="Which channels share a group [learned under a budget, else contiguous].",
)
@click.option(
    "--blocks",
    type=click.Choice(["auto", "keep", "only"]),
    help="Under a budget of latency or macs, or a promise with the least of them, whether one pointwise convolution takes the place of whole "
    "residual blocks: where that does less damage, never, or nothing but that [auto].",
)
@click.option(
    "--channels",
    type=click.Choice(["auto", "keep", "only"]),
    help="Under a budget of latency or macs, whether channels between convolutions are left out: as --blocks [auto].",
)
@click.option("--save-sensitivity", type=OUTPUT, help="Keep what a budget measured.")
@click.option("--sensitivity", type=_FILE, help="Use what an earlier run kept.")
@click.option(
    "--pass",
    "passes",
    metavar="NAME",
    multiple=True,
    help="A pass that an installed package brings, behind the rewrite. Repeatable.",
)
@click.option(
    "--lowering",
    type=click.Choice(["literal", "auto"]),
    help="auto: measure here, keep dense what would be slower, write the rest for speed. Final: to "
    "fine-tune, compress literally and use lower at the end [auto for a budget of latency, else literal].",
)
@setting_options
@preprocessing_options
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@report_option
@click.option("--json", "json_file", type=OUTPUT, metavar="FILE", help="Write JSON; - for stdout.")
def compress(
    model: Path,
    output: Path | None,
    dry_run: bool,
    report_file: Path | None,
    json_file: Path | None,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Rewrite the pointwise convolutions of MODEL into interleaved grouped ones."""
    from onnx_igpc.compression.pipeline import compress as run
    from onnx_igpc.data.file_guard import FileGuard
    from onnx_igpc.planning.options import Published
    from onnx_igpc.report.console.lowering import show_lowering
    from onnx_igpc.report.console.rewrite import show_rewrite

    if output is None and not dry_run:
        raise click.UsageError("say where to write the model with -o FILE, or use --dry-run")
    kept = options["save_sensitivity"]
    preprocessing: PreprocessingOptions = options.pop("preprocessing")
    setting: SettingOptions = options.pop("setting")
    guard = FileGuard()
    guard.reads_model(model)
    guard.reads_data(options["calibration"], "--calibration")
    guard.reads(preprocessing.preprocess, "--preprocess")
    guard.reads(options["sensitivity"], "--sensitivity")
    guard.writes_folder(setting.cache_folder, "--cache")
    guard_model_output(guard, output, model, copied=True)
    check_files(guard, save_sensitivity=kept, report=report_file, json=json_file)
    options["save_sensitivity"] = output_path(kept) if kept is not None else None
    sites, calibration = _read_sites(options), _read_calibration(options, preprocessing.read())
    lowering = options.pop("lowering")
    speed = setting.lowering(lowering or "auto")
    fold, passes = options.pop("fold_batch_norm"), options.pop("passes")
    plan = _read_plan(options, calibrated=calibration is not None)
    timed = not isinstance(plan, Published) and plan.quantity.is_latency
    measured = timed or lowering == "auto"
    if speed.precision == "int8" and not measured:
        raise UsageError(
            "--precision int8 is for what is measured: give --lowering auto or --target latency=..."
        )
    with ProgressLine("compressing", quiet, undisturbed=True) as line:
        result = run(
            model,
            plan,
            sites=sites,
            calibration=calibration,
            lowering=speed if measured else None,
            fold_batch_norm=fold,
            passes=passes,
            progress=line.update,
        )
    if not dry_run and output is not None:
        result.save(output_path(output))
    if json_file is not None:
        write_text(json_file, result.report.to_json())
    alone = goes_to_stdout(output if not dry_run else None, report_file, json_file, kept)
    title = model if output is None or goes_to_stdout(output) else output
    write_report(report_file, result.report, title.name, result.opened, model)
    out = console(quiet or alone)
    show_rewrite(out, result.report, verbose=verbose)
    show_lowering(out, result.report, verbose=verbose)
    if not result.changed:
        click.echo("warning: nothing to rewrite", err=True)
    if not dry_run:
        out.print(f"wrote {output}", markup=False)


def _read_sites(values: dict[str, Any]) -> SiteFilter:
    from onnx_igpc.sites.find import SiteFilter

    include, exclude = values.pop("include"), values.pop("exclude")
    return SiteFilter(include, exclude, values.pop("include_heads"))


def _read_calibration(
    values: dict[str, Any], preprocessing: Preprocessing | None
) -> Calibration | None:
    """Take what belongs to calibration out of ``values``; ``None`` if there is no data.

    Raises:
        UsageError: preprocessing without data.
    """
    from onnx_igpc.calibration.options import Calibration

    data, samples = values.pop("calibration"), values.pop("samples")
    sequential, holdout = values.pop("sequential"), values.pop("holdout")
    if data is not None:
        return Calibration(data, preprocessing, samples, sequential, holdout)
    if preprocessing is not None:
        raise UsageError("preprocessing is for calibration images: give --calibration as well")
    return None


def _read_published(values: dict[str, Any]) -> Published:
    """What is left in ``values`` as a published plan."""
    from onnx_igpc.planning.options import Published

    return Published(**{name: value for name, value in values.items() if value is not None})


def _read_plan(values: dict[str, Any], calibrated: bool) -> Published | Budget | Keep:
    """What is left in ``values`` as a plan.

    Raises:
        UsageError: options of a budget without one, or the other way round.
    """
    from onnx_igpc.planning.options import Budget, Keep

    target, keep, least = (values.pop(name) for name in ("target", "keep", "minimize"))
    budget = {name: values.pop(name) for name in ("family", "sensitivity", "save_sensitivity")}
    blocks, channels = values.pop("blocks"), values.pop("channels")
    if blocks is not None and target is None and keep is None:
        raise UsageError("--blocks is for a budget: give --target or --keep")
    if channels is not None and target is None:
        raise UsageError("--channels is for a budget: give --target")
    if keep is None and least is not None:
        raise UsageError("--minimize says what --keep makes least: give --keep")
    if target is None and keep is None:
        if budget["family"] == "extended":
            raise UsageError("--family extended is chosen from by a budget: give --target")
        if budget["sensitivity"] or budget["save_sensitivity"]:
            raise UsageError("--sensitivity belongs to a budget: give --target")
        return _read_published(values)
    if target is not None and keep is not None:
        raise UsageError("--target and --keep both say how small: give one of them")
    if values["channels_per_group"] is not None:
        raise UsageError(
            f"--ch and {'--target' if keep is None else '--keep'} both say how small: give one of them"
        )
    published = _read_published(values)
    if published.random and calibrated:
        raise UsageError("random weights are not fitted to data: leave out --calibration")
    given = {name: value for name, value in budget.items() if value is not None}
    if values["grouping"] is not None:
        given["grouping"] = values["grouping"]
    given["blocks"] = blocks or "auto"
    if keep is None:
        return Budget(target, **given, channels=channels or "auto")
    return Keep(keep, **({"minimize": least} if least else {}), **given)
