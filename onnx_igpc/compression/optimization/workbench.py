"""The folder in which an optimization goes on: steps that are kept once they are done, and the clock."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from onnx_igpc._version import __version__
from onnx_igpc.data.progress import Progress
from onnx_igpc.data.sources import ArraySource, find_source
from onnx_igpc.errors import IgpcError, with_flags
from onnx_igpc.files.atomic import write_atomically
from onnx_igpc.graph.external_data import external_locations
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.report.optimization import StepReport
from onnx_igpc.report.typed_json import from_values, to_values

T = TypeVar("T")
Make = Callable[[Progress], str | None]
"""Does a step, and returns what is to be known of it."""
# What is known of a step for which there was no time begins with this.
_LATE = "no time"
# Of the time, kept for the race and the report: this share, within these bounds.
_RESERVED, _LEAST_RESERVED, _MOST_RESERVED = 0.1, 5.0, 120.0


class OutOfTimeError(IgpcError):
    """The time is over; what is under way stops."""

    exit_code = 1


class LeftOutError(IgpcError):
    """A step that turns out to have nothing to do, or no time for it."""

    exit_code = 1


@dataclass
class Clock:
    """The time of a run. ``used`` before it was stopped and started again, by steps that were kept; ``race``: what
    the shortest race takes, once that is known."""

    limit: float
    used: float = 0.0
    race: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds, of all starts together."""
        return self.used + time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds that trying has left; what the race and the report need is not among them."""
        reserved = min(max(_RESERVED * self.limit, _LEAST_RESERVED), _MOST_RESERVED)
        return self.limit - max(reserved, self.race) - self.spent

    def check(self) -> None:
        """Raise OutOfTimeError where nothing is left."""
        if self.left <= 0:
            raise OutOfTimeError("the time was over")


class Journal:
    """Values in files of a folder, each of which appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str, kind: type[T]) -> T | None:
        """What was written under the name; ``None`` if nothing was."""
        try:
            text = self._path(name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return from_values(kind, json.loads(text))

    def write(self, name: str, value: object) -> None:
        """Keep a dataclass."""
        text = json.dumps(to_values(value), ensure_ascii=False)
        write_atomically(self._path(name), lambda file: file.write(text.encode()))

    def steps(self) -> Iterator[StepReport]:
        """The steps that are kept, in no order."""
        for path in self.folder.glob("step-*.json"):
            step = self.read(path.stem, StepReport)
            if step is not None:
                yield step

    def _path(self, name: str) -> Path:
        return self.folder / f"{slug(name)}.json"


@dataclass
class Workbench:
    """Where steps are done. ``steps`` are those of this run in order, done now or before.

    Args:
        folder: that of the work, in which commands run.
        journal: what is kept.
        clock: of the run.
        progress: as everywhere.
        log: called with a line for every step.
    """

    folder: Path
    journal: Journal
    clock: Clock
    progress: Progress
    log: Callable[[str], None]
    steps: list[StepReport] = field(default_factory=list)

    def file(self, name: str) -> Path:
        """A file of a step."""
        return self.folder / name

    def step(
        self,
        name: str,
        kind: str,
        command: Callable[[], str],
        make: Make,
        *,
        needed: bool = False,
    ) -> bool:
        """Take a step, unless that was done before; whether it is done.

        ``command`` is asked for the line that repeats it once it is done. ``needed``: whatever the time.

        A step that fails with a message of this tool, or for which there is no time, is left out, which its
        record says.
        """
        kept = self.journal.read(f"step {name}", StepReport)
        if kept is None or (is_late(kept) and self.clock.left > self._expected(kind, kept)):
            kept = self._taken(name, kind, command, make, needed)
            self.journal.write(f"step {name}", kept)
        self.steps.append(kept)
        return kept.status == "done"

    def skip(self, name: str, kind: str, why: str) -> None:
        """Say that a step is not taken."""
        step = StepReport(name=name, kind=kind, status="skipped", note=why)
        # Not kept as a step: with more time it may be taken after all.
        if self.journal.read(f"skip {name}", StepReport) != step:
            self.journal.write(f"skip {name}", step)
            self._say(step)
        self.steps.append(step)

    def _taken(
        self, name: str, kind: str, command: Callable[[], str], make: Make, needed: bool
    ) -> StepReport:
        def record(status: Literal["done", "skipped", "failed"], note: str | None) -> StepReport:
            seconds = round(time.monotonic() - start, 3)
            line = command() if status == "done" else None
            made = StepReport(
                name=name, kind=kind, status=status, seconds=seconds, command=line, note=note
            )
            self._say(made)
            return made

        start = time.monotonic()
        expected = self._expected(kind)
        if not needed and self.clock.left <= expected:
            left = max(self.clock.left, 0.0)
            takes = f"it takes about {expected:.0f} s, {left:.0f} s are left"
            return record("skipped", f"{_LATE}: {takes}" if left >= 1 else f"{_LATE} is left")
        self.progress(0, 0, name)
        try:
            return record("done", make(self._watched(name, needed)))
        except OutOfTimeError:
            return record("skipped", f"{_LATE}: stopped when it was over")
        except LeftOutError as error:
            return record("skipped", str(error))
        except IgpcError as error:
            return record("failed", with_flags(str(error)))

    def _expected(self, kind: str, *others: StepReport) -> float:
        """The seconds that a step of a kind takes: the most that one took."""
        if kind == "finetune":
            return 0.0  # as long as there is time for, which it tells by itself
        return max(
            (step.seconds for step in (*self.steps, *others) if step.kind == kind), default=0.0
        )

    def _watched(self, name: str, needed: bool) -> Progress:
        """A progress that stops what reports to it when the time is over, unless that is needed."""

        def tell(done: int, total: int, label: str = "") -> None:
            if not needed:
                self.clock.check()
            self.progress(done, total, f"{name}: {label}" if label else name)

        return tell

    def _say(self, step: StepReport) -> None:
        head = f"[{self.clock.spent:6.0f} s] {step.name}"
        if step.status != "done":
            self.log(f"{head}: {step.status}: {step.note}")
            return
        self.log(head + (f": {step.note}" if step.note else ""))
        if step.command is not None:
            self.log(f"           $ {step.command}")


def is_late(step: StepReport) -> bool:
    """Whether a step was left out for want of time."""
    return step.status == "skipped" and (step.note or "").startswith(_LATE)


def slug(name: str) -> str:
    """A name as a part of file names: ``70 %, trained, int8`` is ``70-trained-int8``."""
    kept = "".join(each if each.isalnum() else " " for each in name)
    return "-".join(kept.split())


def run_key(model: OpenModel, files: list[Path], decided_by: dict[str, Any]) -> str:
    """What tells a run from others: the model, the files of data, and everything that decides the result.

    Files of data are told apart by their names, sizes and times.
    """
    assert model.path is not None
    digest = hashlib.sha256(model.path.read_bytes())
    for location in sorted(external_locations(model.proto)):
        with model.data.locate(location, location).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    listed = [
        (str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in sorted(files)
    ]
    told = json.dumps([__version__, listed, decided_by], sort_keys=True, default=str)
    digest.update(told.encode())
    return digest.hexdigest()[:32]


def source_files(path: Path) -> list[Path]:
    """The files that a source of data is made of.

    Raises:
        DataError: it is none.
    """
    source = find_source(path)
    if isinstance(source, ArraySource):
        return list(source.paths)
    images = [path / name for name in source.images.index.names]
    if images[0].is_file():
        return images
    if path.is_dir():  # of archives
        return [file for file in path.iterdir() if file.is_file()]
    return [next(each for each in (path, *path.parents) if each.is_file())]
