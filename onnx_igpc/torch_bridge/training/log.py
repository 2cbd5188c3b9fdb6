"""The record of a fine-tuning run: a row for each epoch, as CSV and as JSON, and what is being done."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from onnx_igpc.graph.model import write_atomically
from onnx_igpc.report.sections import EpochReport, FinetuneReport
from onnx_igpc.report.typed_json import to_values

COLUMNS = tuple(part.name for part in fields(EpochReport))
"""Columns of the CSV. What was not measured is empty, and null in the JSON."""


@dataclass(frozen=True)
class Progress:
    """What a run reports while it runs.

    epoch and step count from 1, of ``epochs`` and ``steps`` (of the epoch). loss, accuracy and agreement are
    the means of the epoch so far. seconds_left: of the whole run. row: the row of the epoch, once it is
    complete. notes: what a person should know, before the first step.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None = None
    accuracy: float | None = None
    agreement: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    row: EpochReport | None = None
    notes: Sequence[str] = field(default_factory=tuple)


Reporter = Callable[[Progress], None]


@dataclass(frozen=True)
class RunLog:
    """The two files of a log; ``base`` without a suffix is where they lie."""

    base: Path

    @property
    def csv(self) -> Path:
        return self.base.with_name(f"{self.base.name}.csv")

    @property
    def json(self) -> Path:
        return self.base.with_name(f"{self.base.name}.json")

    def write(self, run: FinetuneReport) -> None:
        """Write both files, whole or not at all.

        Raises:
            UsageError: they cannot be written.
        """
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(vars(row) for row in run.epochs)
        content = json.dumps(to_values(run), indent=2, ensure_ascii=False)
        write_atomically(self.csv, lambda file: file.write(table.getvalue().encode()))
        write_atomically(self.json, lambda file: file.write(f"{content}\n".encode()))


def log_base(output: Path) -> Path:
    """Where the log of a run lies that writes ``output``: ``small.onnx`` has ``small.finetune.csv``."""
    return output.with_name(f"{output.stem}.finetune")
