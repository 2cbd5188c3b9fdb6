"""The record of a fine-tuning run: a row for each epoch, as CSV and as JSON, and what is being done."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_igpc.graph.model import write_atomically

COLUMNS = (
    "epoch",
    "step",
    "learning_rate",
    "loss",
    "output_loss",
    "label_loss",
    "feature_loss",
    "accuracy",
    "agreement",
    "val_loss",
    "val_judged",
    "val_accuracy",
    "val_agreement",
    "images_per_second",
    "seconds",
)
"""Columns of the CSV and keys of the rows: means over the samples of the epoch. ``accuracy`` is top-1
with the labels and ``agreement`` top-1 with the teacher, both in [0, 1] and measured while the weights
change for the training data; ``val_judged`` is ``val_loss`` less the part of the matched sites, by which
the best epoch is chosen; ``images_per_second`` is of the whole run's processes together; ``seconds``
since the start. What was not measured is empty, and null in the JSON."""


TIMES = ("images_per_second", "seconds")
"""Columns that differ between equal runs."""


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
    row: Mapping[str, Any] | None = None
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

    def write(self, facts: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Write both files, whole or not at all.

        Raises:
            UsageError: they cannot be written.
        """
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        content = json.dumps({**facts, "epochs": list(history)}, indent=2, ensure_ascii=False)
        write_atomically(self.csv, lambda file: file.write(table.getvalue().encode()))
        write_atomically(self.json, lambda file: file.write(f"{content}\n".encode()))


def log_base(output: Path) -> Path:
    """Where the log of a run lies that writes ``output``: ``small.onnx`` has ``small.finetune.csv``."""
    return output.with_name(f"{output.stem}.finetune")
