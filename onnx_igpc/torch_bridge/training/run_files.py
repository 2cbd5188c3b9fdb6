"""The files of a fine-tuning run: where its log and its checkpoint lie, and what it reads and writes."""

from __future__ import annotations

from pathlib import Path

from onnx_igpc.data.file_guard import FileGuard
from onnx_igpc.errors import UsageError
from onnx_igpc.files.destinations import destination
from onnx_igpc.graph.model import PathLike
from onnx_igpc.torch_bridge.training.log import RunLog, log_base


def checkpoint_path(output: Path) -> Path:
    """Where the checkpoint of a run lies that writes ``output``."""
    return output.with_name(f"{output.name}.checkpoint")


def run_log(output: Path | None, log: PathLike | None) -> RunLog | None:
    """The log of a run that writes ``output``; None where there is none."""
    if log is not None:
        return RunLog(Path(log))
    return RunLog(log_base(output)) if output is not None else None


def finetune_files(
    models: tuple[object, ...],
    sources: tuple[object, object],
    output: PathLike | None,
    log: PathLike | None,
) -> FileGuard:
    """Every file of a run; ``models`` by path or opened, ``sources`` of training and validation.

    Raises:
        UsageError: an output that cannot be written. The model, its checkpoint and the log are written
            again and again or read again, so that they are files.
    """
    guard = FileGuard()
    guard.reads_model(*models)
    for source, what in zip(sources, ("`data`", "`val`"), strict=True):
        guard.reads_data(source, what)
    target = Path(output) if output is not None else None
    if target is not None:
        guard.writes_model(target, "`output`", stream=False)
        guard.writes(checkpoint_path(target), "the checkpoint", stream=False)
    if log is not None and destination(log).is_stream:
        raise UsageError(f"`log` {log} is the start of two files' names, not a pipe or device")
    if (files := run_log(target, log)) is not None:
        guard.writes(files.csv, "the log", stream=False)
        guard.writes(files.json, "the log", stream=False)
    return guard
