"""Steps are kept once they are done, what fails is left out with its reason, and the time is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onnx_igpc.compression.optimization.workbench import (
    Clock,
    Journal,
    LeftOutError,
    Workbench,
    slug,
)
from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import ModelError
from onnx_igpc.report.optimization import StepReport


def bench(folder: Path, limit: float = 1000.0, log: list[str] | None = None) -> Workbench:
    say = [] if log is None else log
    return Workbench(folder, Journal(folder), Clock(limit), lambda *_: None, say.append)


def doing(*said: str) -> Callable[[Progress], str | None]:
    def make(_: Progress) -> str | None:
        return said[0] if said else None

    return make


def raising(error: BaseException) -> Callable[[Progress], str | None]:
    def make(_: Progress) -> str | None:
        raise error

    return make


def no_command() -> str:
    return "onnx-igpc x"


def test_a_step_is_done_once(tmp_path: Path) -> None:
    log: list[str] = []
    assert bench(tmp_path, log=log).step("a", "x", no_command, doing("said"))
    assert [line.split("] ")[-1].strip() for line in log] == ["a: said", "$ onnx-igpc x"]
    again = bench(tmp_path)
    assert again.step("a", "x", no_command, raising(AssertionError("done again")))
    assert (again.steps[0].status, again.steps[0].note) == ("done", "said")


@pytest.mark.parametrize(
    ("error", "status"),
    [(ModelError("`teacher` is missing"), "failed"), (LeftOutError("no need"), "skipped")],
)
def test_what_fails_is_left_out_and_said(tmp_path: Path, error: Exception, status: str) -> None:
    made = bench(tmp_path)
    assert not made.step("a", "x", no_command, raising(error))
    assert made.steps[0].status == status
    assert made.steps[0].command is None
    assert made.steps[0].note in ("--teacher is missing", "no need")


def test_a_stop_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path).step("a", "x", no_command, raising(KeyboardInterrupt()))
    assert not list(tmp_path.iterdir())


def test_time_that_is_over_stops_what_reports(tmp_path: Path) -> None:
    made = bench(tmp_path, limit=10.0)

    def make(progress: Progress) -> None:
        progress(1, 10, "before")
        made.clock.used = 10.0
        progress(2, 10, "after")
        raise AssertionError("went on")

    assert not made.step("a", "x", no_command, make)
    assert made.steps[0].note == "no time: stopped when it was over"
    assert not made.step("b", "x", no_command, raising(AssertionError("was begun")))
    assert made.steps[1].note == "no time is left"


def test_what_there_was_no_time_for_is_done_with_more_of_it(tmp_path: Path) -> None:
    late = bench(tmp_path, limit=10.0)
    late.clock.used = 10.0
    assert not late.step("a", "x", no_command, raising(AssertionError("was begun")))
    late.skip("b", "x", "there is no a")
    more = bench(tmp_path, limit=1000.0)
    assert more.step("a", "x", no_command, doing())
    assert more.step("b", "x", no_command, doing())
    again = bench(tmp_path, limit=1000.0)
    assert again.step("a", "x", no_command, raising(AssertionError("was done before")))


def test_what_the_race_takes_is_kept_for_it() -> None:
    clock = Clock(100.0)
    before = clock.left
    clock.race = 30.0
    assert clock.left == pytest.approx(before - 20.0, abs=0.1)


def test_what_takes_longer_than_there_is_time_is_not_begun(tmp_path: Path) -> None:
    made = bench(tmp_path, limit=100.0)
    made.steps.append(StepReport(name="a", kind="x", status="done", seconds=95.0))
    assert not made.step("b", "x", no_command, raising(AssertionError("was begun")))
    assert (made.steps[1].note or "").startswith("no time: it takes about 95 s")
    assert made.step("c", "other", no_command, doing())
    assert made.step("d", "x", no_command, doing(), needed=True)


def test_a_training_is_as_long_as_there_is_time_for(tmp_path: Path) -> None:
    made = bench(tmp_path, limit=100.0)
    made.steps.append(StepReport(name="a", kind="finetune", status="done", seconds=95.0))
    assert made.step("b", "finetune", no_command, doing())


def test_time_counts_over_several_starts(tmp_path: Path) -> None:
    made = bench(tmp_path)
    made.step("a", "x", no_command, doing())
    kept = Journal(tmp_path)
    kept.write("step a", StepReport(name="a", kind="x", status="done", seconds=40.0))
    assert [step.seconds for step in kept.steps()] == [40.0]


def test_names_as_parts_of_files() -> None:
    assert slug("cut to 70 %, trained, int8") == "cut-to-70-trained-int8"
