"""Progress on stderr for what takes longer than a second: on terminals only, and not when quiet."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress

SHOW_AFTER_SECONDS = 1.0
"""A command that takes no longer than this shows no progress."""
_REDRAW_SECONDS = 0.2
_LABEL_WIDTH = 44
# Before so long, and so much of what is counted, no time is foretold.
_PACE_SECONDS, _PACE_PART = 3.0, 0.04


class ProgressLine:
    """A bar with what is being done, how much of it, for how long, and how long it is likely to take yet.

    It appears by itself once a second has passed, moving to and fro where nobody knows how much there is
    to do. ``undisturbed``: while something is counted, it is drawn only when the count is moved on, so that
    nothing runs beside what is being timed.
    """

    def __init__(self, what: str, quiet: bool = False, *, undisturbed: bool = False) -> None:
        self._quiet = quiet
        self._enabled = not quiet and _is_terminal()
        self._undisturbed = undisturbed
        self._start = time.monotonic()
        self._state: tuple[str, int, int | None] = (what, 0, None)
        self._what = what
        self._drawn = 0.0
        self._pace = _Pace()
        self._bar: Progress | None = None
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> ProgressLine:
        if self._enabled:
            self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._ticker.is_alive():
            self._ticker.join()
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, label: str = "") -> None:
        """``done`` of ``total`` (0: nobody knows); ``label`` is what is being worked on."""
        text = f"{self._what} {label}".strip()
        self._state = (text, done, total or None)
        self._pace.update(done, total)
        if self._enabled and time.monotonic() - self._drawn >= _REDRAW_SECONDS:
            self._draw()

    def log(self, text: str) -> None:
        """Write a line on stderr that stays, above the bar; also where stderr is no terminal."""
        if self._quiet:
            return
        with self._lock:
            if self._bar is None:
                click.echo(text, err=True)
            else:
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _tick(self) -> None:
        while not self._ended.wait(_REDRAW_SECONDS):
            if not (self._undisturbed and self._state[2] is not None):
                self._draw()

    def _draw(self) -> None:
        now = time.monotonic()
        if now - self._start < SHOW_AFTER_SECONDS or self._ended.is_set():
            return
        with self._lock:
            text, done, total = self._state
            if self._bar is None:
                self._bar = _new_bar()
                self._bar.add_task(text, total=None, left="")
                self._bar.start()
            task = self._bar.task_ids[0]
            self._bar.update(
                task,
                description=_shortened(text),
                completed=done,
                total=total,
                left=self._pace.left(),
            )
            self._bar.refresh()
            self._drawn = now


class _Pace:
    """How long what is counted takes yet, if it goes on as it went so far."""

    def __init__(self) -> None:
        self._begin = (time.monotonic(), 0, 0)
        self._done = 0

    def update(self, done: int, total: int) -> None:
        """Note how far it is; another total, or less done than before, is another count that begins."""
        if total != self._begin[2] or done < self._done:
            self._begin = (time.monotonic(), done, total)
        self._done = done

    def left(self) -> str:
        """In words; empty as long as that would be a guess."""
        began, first, total = self._begin
        taken = time.monotonic() - began
        if taken < _PACE_SECONDS or self._done - first < _PACE_PART * total or not total:
            return ""
        seconds = taken * (total - self._done) / (self._done - first)
        return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"


def _is_terminal() -> bool:
    return sys.stderr.isatty()


def _new_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        # Whether stderr is a terminal was asked already.
        console=Console(stderr=True, force_terminal=True),
        transient=True,
        auto_refresh=False,
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _LABEL_WIDTH else f"{text[: _LABEL_WIDTH - 1]}…"
