"""The folder that an optimization writes: whole or not at all, and known again."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

from onnx_igpc.compression.optimization.task import DATA, PREPROCESSING, STEPS, Task
from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.evaluation.thumbnails import add_thumbnails
from onnx_igpc.graph.model import copy_model, open_model
from onnx_igpc.report.benchmark import BenchmarkReport
from onnx_igpc.report.files import compared_report
from onnx_igpc.report.html.optimization_page import render_optimization
from onnx_igpc.report.optimization import ORIGINAL, OptimizationReport, PointReport
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.report.verification import VerifyReport

MODEL, PAGE, REPORT, COMMANDS = "model.onnx", "report.html", "report.json", "commands.sh"
_RESULT = "result"


def finished(folder: Path, key: str) -> OptimizationReport | None:
    """The report of the same run, if that has written the folder.

    Raises:
        UsageError: there is something else in the folder.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        report = OptimizationReport.from_json((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ModelError):
        report = None
    if report is None or report.key != key:
        raise UsageError(
            f"cannot write {folder}: it is there already, from another run: name another"
        )
    return report


def chosen_report(
    task: Task, file: Path, chosen: PointReport, raced: BenchmarkReport, found: VerifyReport
) -> RewriteReport:
    """The report of the chosen model, with its verification and the race."""

    def name(path: str) -> str:
        return MODEL if path == chosen.name else path

    races = (
        replace(each, timings=tuple(replace(t, path=name(t.path)) for t in each.timings))
        for each in raced.races
    )
    models = tuple(replace(each, path=name(each.path)) for each in raced.models)
    report = compared_report(task.model, file)
    report.benchmark = replace(raced, models=models, races=tuple(races))
    report.verify = found
    if report.rewritten:
        add_thumbnails(report, file, task.model)
    return report


def write_result(work: Path, task: Task, report: OptimizationReport) -> None:
    """Write all files of the result, into a folder of the work.

    Raises:
        UsageError: they cannot be written.
    """
    result = work / _RESULT
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    copy_model(open_model(work / report.chosen_point.file), result / MODEL)
    (result / REPORT).write_text(f"{report.to_json()}\n", encoding="utf-8")
    title = task.model.name
    (result / PAGE).write_text(f"{render_optimization(report, title)}\n", encoding="utf-8")
    commands = result / COMMANDS
    commands.write_text(_commands(task, report), encoding="utf-8")
    commands.chmod(0o755)
    if (work / PREPROCESSING).is_file():
        shutil.copyfile(work / PREPROCESSING, result / PREPROCESSING)
    (work / DATA).rename(result / DATA)


def publish(work: Path, folder: Path) -> None:
    """Give the result its name, and let go of the work.

    Raises:
        UsageError: it cannot be had.
    """
    try:
        os.replace(work / _RESULT, folder)  # noqa: PTH105 - an empty folder of that name may be there
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from error
    shutil.rmtree(work, ignore_errors=True)


def _commands(task: Task, report: OptimizationReport) -> str:
    """Every step that was done, as a script that runs in the folder."""
    lines = [
        "#!/bin/sh",
        f"# {report.verdict[0]}",
        "# The steps that led to model.onnx, and those that led elsewhere. What is measured, times and what is",
        "# chosen by them, differs a little from run to run.",
        'set -e; cd "$(dirname "$0")"',
        f"mkdir -p {STEPS}",
    ]
    for step in report.steps:
        if step.status == "done" and step.command is not None:
            lines += ["", f"# {step.name}" + (f": {step.note}" if step.note else ""), step.command]
    chosen = str(task.model) if report.chosen == ORIGINAL else report.chosen_point.file
    lines += [
        "",
        "# is what was chosen made again?",
        f"cmp {shlex.quote(chosen)} {MODEL} && echo yes, byte for byte",
    ]
    return "\n".join(" ".join(line.splitlines()) for line in lines) + "\n"
