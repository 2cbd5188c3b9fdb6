"""The commands that use PyTorch: finetune, to-torch, from-torch. Nothing here imports torch by itself."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_igpc.cli.options import (
    OUTPUT,
    all_options,
    check_files,
    console,
    goes_to_stdout,
    guard_model_output,
    label_offset_option,
    output_path,
    write_text,
)
from onnx_igpc.cli.preprocessing import PreprocessingOptions, preprocessing_options
from onnx_igpc.cli.progress import ProgressLine
from onnx_igpc.cli.report import report_option, write_report
from onnx_igpc.errors import CheckFailedError

if TYPE_CHECKING:
    from onnx_igpc.report.sections import EpochReport
    from onnx_igpc.torch_bridge.training.log import Progress
    from onnx_igpc.torch_bridge.training.recipe import Recipe

_PATH = click.Path(path_type=Path)


def register(main: click.Group) -> None:
    """Add the commands of this module to the command line."""
    for command in (finetune, to_torch, from_torch):
        main.add_command(command)


class EpochLines:
    """A line on stderr for each epoch and note, and on terminals a bar for what is under way."""

    def __init__(self, line: ProgressLine) -> None:
        self._line = line

    def show(self, progress: Progress) -> None:
        """Write what a run reports."""
        for note in progress.notes:
            self._line.log(f"note: {note}")
        if progress.row is not None:
            self._line.log(_epoch_line(progress, progress.row))
        if progress.epoch:
            done = (progress.epoch - 1) * progress.steps + progress.step
            self._line.update(done, progress.epochs * progress.steps, _step_label(progress))


def _epoch_line(progress: Progress, row: EpochReport) -> str:
    parts = [f"epoch {progress.epoch}/{progress.epochs}", f"loss {row.loss:.4f}"]
    for label, value, form in (
        ("accuracy", row.accuracy, ".2%"),
        ("agreement", row.agreement, ".2%"),
        ("val loss", row.val_judged, ".4f"),
        ("val accuracy", row.val_accuracy, ".2%"),
        ("val agreement", row.val_agreement, ".2%"),
    ):
        if value is not None:
            parts.append(f"{label} {value:{form}}")
    parts.append(f"{row.images_per_second or 0.0:.0f} images/s")
    left = (row.seconds or 0.0) / progress.epoch * (progress.epochs - progress.epoch)
    return "  ".join([*parts, f"{_duration(left)} left"])


def _step_label(progress: Progress) -> str:
    parts = [f"epoch {progress.epoch}/{progress.epochs}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.seconds_left is not None:
        parts.append(f"{_duration(progress.seconds_left)} left")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


_recipe_options = all_options(
    click.option(
        "--recipe",
        metavar="few|some|many|FILE.json",
        help="What fills in the options left out  [few up to 1200 training samples, some from 400 on where much was lost].",
    ),
    click.option(
        "--epochs", type=int, help="Passes over the data  [few 700 steps, some 2000, many 500]."
    ),
    click.option(
        "--lr", type=float, help="Highest; adamw: relative  [few 0.002, tried; else 0.01; sgd x5]."
    ),
    click.option("--batch-size", type=int, help="Of all processes together  [few 32, else 64]."),
    click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), help="[adamw]"),
    click.option("--weight-decay", type=float, help="[0.001]"),
    click.option(
        "--schedule", type=click.Choice(["cosine", "linear", "constant"]), help="[cosine]"
    ),
    click.option("--warmup", type=float, help="Share of the steps with a rising rate  [0.05]."),
    click.option(
        "--loss",
        type=click.Choice(["kd", "kd+ce", "ce", "mse"]),
        help="Distillation, labels, both, or values  [kd; ce without a teacher].",
    ),
    click.option("--temperature", type=float, help="Of the distillation  [4]."),
    click.option("--label-weight", type=float, help="Share of the labels in kd+ce  [0.5]."),
    click.option(
        "--features",
        type=click.Choice(["sites", "penultimate"]),
        help="What is matched inside: the rewritten sites, or what the last layer reads.",
    ),
    click.option("--feature-loss", type=float, help="Weight of that  [sites 1, penultimate 3]."),
    click.option(
        "--augment",
        multiple=True,
        metavar="WORD",
        help="flip, shift, shift=PIXELS, crop, resized-crop, mixup, none. Repeatable.",
    ),
    click.option("--amp", type=click.Choice(["bf16", "fp16"]), help="Mixed precision  [float32]."),
    click.option(
        "--freeze",
        multiple=True,
        metavar="GLOB",
        help="Weights to leave. Repeatable  [few: the last layer].",
    ),
    click.option(
        "--batch-norm",
        type=click.Choice(["train", "frozen"]),
        help="Whether its statistics move  [few frozen, else train].",
    ),
    click.option(
        "--front",
        type=click.Choice(["train", "frozen"]),
        help="What lies before the first rewritten layer  [few, some frozen, else train].",
    ),
    click.option(
        "--interpolation",
        type=float,
        help="How far to go from the weights given to the trained ones  [few 0.75, else 1].",
    ),
    click.option(
        "--views",
        type=int,
        help="Different views of each sample, which come again  [few, some up to 32; many: none does].",
    ),
    click.option("--seed", type=int, help="[0]"),
    click.option("--scores", metavar="NAME", help="The output with class scores."),
    click.option(
        "--hold-out", type=float, help="Share of the data to judge by, without --val  [0.1]."
    ),
    click.option(
        "--precision",
        type=click.Choice(["int8"]),
        help="Train and judge as quantize will round  [float32].",
    ),
    click.option("--int8-share", type=float, help="Of the epochs, the last ones  [1]."),
)


_RECIPE_OPTIONS = (
    "epochs",
    "lr",
    "batch_size",
    "optimizer",
    "weight_decay",
    "schedule",
    "warmup",
    "loss",
    "temperature",
    "label_weight",
    "features",
    "feature_loss",
    "amp",
    "batch_norm",
    "front",
    "interpolation",
    "views",
    "seed",
    "scores",
    "hold_out",
    "precision",
    "int8_share",
)


def _take_recipe(options: dict[str, Any]) -> Recipe:
    """The recipe, with the options that were given in place of what it says; taken out of ``options``."""
    from onnx_igpc.torch_bridge.training.recipe import Recipe
    from onnx_igpc.torch_bridge.training.recipe_file import read_recipe

    named = options.pop("recipe")
    values = {name: options.pop(name) for name in _RECIPE_OPTIONS}
    values |= {"augment": options.pop("augment") or None, "freeze": options.pop("freeze") or None}
    given = {name: value for name, value in values.items() if value is not None}
    return replace(read_recipe(named) if named is not None else Recipe(), **given)


def let_threads_sleep() -> None:
    """Let OpenMP threads that wait for others sleep rather than spin, unless the user says otherwise.

    Where other processes share the processors, a spinning thread holds the one that it waits for off its
    processor: a step of the digits model took 3.5 s with two threads then, and 76 ms with sleeping ones.
    It is read when torch is imported.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@click.command(
    epilog="Example: onnx-igpc finetune small.onnx --teacher model.onnx --data train/ -o tuned.onnx"
)
@click.argument("compressed", type=_PATH)
@click.option("--teacher", type=_PATH, help="The original model, to learn from.")
@click.option(
    "--data", type=_PATH, required=True, help="Images (folder, .tar shards) or arrays (.npz)."
)
@click.option(
    "--val", type=_PATH, help="Data to judge every epoch by  [a part of DATA is held out]."
)
@click.option("-o", "--output", type=OUTPUT, required=True, help="The model to write.")
@_recipe_options
@click.option(
    "--require-gain", is_flag=True, help="Exit code 1 where training made nothing better."
)
@click.option("--fold-batch-norm", is_flag=True, help="Fold BatchNorm in the written model.")
@label_offset_option
@click.option("--device", help="cpu, cuda or cuda:N  [a GPU if there is one].")
@click.option("--workers", type=int, help="Processes that decode images  [one a processor].")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of a stopped run.")
@click.option("--restart", is_flag=True, help="Start anew although there is a checkpoint.")
@click.option(
    "--cache-size",
    type=float,
    default=8.0,
    metavar="GIB",
    help="Most that views which come again take on disk during the run  [8].",
)
@click.option("--no-cache", is_flag=True, help="Keep none of them: the same as --cache-size 0.")
@click.option("--log", type=_PATH, metavar="BASE", help="BASE.csv and BASE.json  [beside OUTPUT].")
@report_option
@click.option("--json", "json_file", type=OUTPUT, metavar="FILE", help="Write JSON; - for stdout.")
@preprocessing_options
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def finetune(
    compressed: Path,
    teacher: Path | None,
    output: Path,
    report_file: Path | None,
    json_file: Path | None,
    require_gain: bool,
    quiet: bool,
    preprocessing: PreprocessingOptions,
    **options: Any,
) -> None:
    """Train COMPRESSED against the original, and write the weights into the same graph.

    Without --teacher it learns from labels: class folders, .cls files, an array 'labels'. The weights of the
    best epoch are written, or those that were given where no epoch is better.
    """
    from onnx_igpc.data.dataset import Dataset
    from onnx_igpc.torch_bridge import require_torch
    from onnx_igpc.torch_bridge.training.recipe import BASES
    from onnx_igpc.torch_bridge.training.run_files import finetune_files

    if options["resume"] and options["restart"]:
        raise click.UsageError("--resume and --restart exclude each other")
    if goes_to_stdout(options["log"]):
        raise click.UsageError("--log is the start of two files' names: it cannot be stdout")
    sources = (options["data"], options["val"])
    guard = finetune_files((compressed, teacher), sources, output_path(output), options["log"])
    guard.reads(preprocessing.preprocess, "--preprocess")
    if options["recipe"] not in (None, *BASES):
        guard.reads(options["recipe"], "--recipe")
    check_files(guard, report=report_file, json=json_file)
    prepared = preprocessing.read()
    require_torch()
    let_threads_sleep()
    # Of the processes of a torchrun, the first one speaks.
    with ProgressLine("fine-tuning", quiet or os.environ.get("RANK", "0") != "0") as line:
        from onnx_igpc.lowering.quantization.aware import finetune as run
        from onnx_igpc.torch_bridge.training.options import Run

        val, fold_batch_norm = options.pop("val"), options.pop("fold_batch_norm")
        if options.pop("no_cache"):
            options["cache_size"] = 0.0
        recipe = _take_recipe(options)
        data = Dataset(options.pop("data"), prepared, label_offset=options.pop("label_offset"))
        result = run(
            compressed,
            data,
            teacher=teacher,
            val=val,
            recipe=recipe,
            output=output,
            fold_batch_norm=fold_batch_norm,
            run=Run(**options),
            progress=EpochLines(line).show,
        )
    if result.leads:
        if json_file is not None:
            write_text(json_file, result.report.to_json())
        write_report(report_file, result.report, output.name, output, teacher)
        out = console(quiet or goes_to_stdout(report_file, json_file))
        for text in result.summary():
            out.print(text, markup=False)
        out.print(f"wrote {output}", markup=False)
    if require_gain and not result.gained:
        raise CheckFailedError(f"training made nothing better: {output} has the weights as given")


@click.command("to-torch", epilog="Example: onnx-igpc to-torch small.onnx -o weights/")
@click.argument("model", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="The folder to write into.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def to_torch(model: Path, output: Path, quiet: bool) -> None:
    """Write the weights of MODEL as a PyTorch state dict: weights.safetensors in a folder."""
    from onnx_igpc.torch_bridge import require_torch

    require_torch()
    from onnx_igpc.data.file_guard import FileGuard
    from onnx_igpc.graph.checks import load_checked
    from onnx_igpc.report.digest import read_digest, refuse_lowered
    from onnx_igpc.torch_bridge.state_files import STATE_FILE, export_state

    guard = FileGuard()
    guard.reads_model(model)
    if output.is_dir():
        guard.writes(output / STATE_FILE, "-o", stream=False)
    guard.check()

    proto = load_checked(model)
    refuse_lowered(read_digest(proto), str(model), "train")
    path = export_state(proto, output)
    console(quiet).print(f"wrote {path}", markup=False)


@click.command(
    "from-torch", epilog="Example: onnx-igpc from-torch small.onnx weights/ -o tuned.onnx"
)
@click.argument("model", type=_PATH)
@click.argument("state", type=_PATH)
@click.option(
    "-o", "--output", type=OUTPUT, required=True, help="The model to write; - for stdout."
)
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def from_torch(model: Path, state: Path, output: Path, quiet: bool) -> None:
    """Write the weights in STATE (.safetensors, .pt, or what to-torch wrote) into the graph of MODEL."""
    from onnx_igpc.torch_bridge import require_torch

    require_torch()
    from onnx_igpc.data.file_guard import FileGuard
    from onnx_igpc.graph.checks import check_original
    from onnx_igpc.graph.model import open_model, save_model
    from onnx_igpc.torch_bridge.state_files import import_state, state_file

    opened = open_model(model)
    guard = FileGuard()
    guard.reads_model(opened)
    guard.reads(state_file(state), "STATE")
    guard_model_output(guard, output, model)
    guard.check()
    check_original(opened)
    proto = opened.materialized() if opened.has_external_data else opened.proto
    changed = import_state(proto, state)
    save_model(changed, output_path(output), outside=opened.has_external_data)
    console(quiet or goes_to_stdout(output)).print(f"wrote {output}", markup=False)
