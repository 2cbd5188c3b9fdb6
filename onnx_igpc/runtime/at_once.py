"""Work on several samples at once, each piece by one thread.

Threads that share a piece of work wait for each other at every step, and most wait busily: on a machine that has other
work as well, or allows a process less than its processors, two took up to twenty times as long as one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Work = TypeVar("_Work")
_Made = TypeVar("_Made")

MOST_AT_ONCE = 4
"""Pieces of work at once, where each holds the activations of a batch."""


def usable_processors() -> int:
    """Processors that this process may use, which in a container may be fewer than the machine has."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return len(usable) or os.cpu_count() or 1


def pieces_at_once() -> int:
    """So many pieces of work at once as there are processors for, and memory may be expected to be."""
    return min(MOST_AT_ONCE, usable_processors())


def threads_of_each() -> int:
    """Threads that each of as many pieces may have."""
    return max(usable_processors() // pieces_at_once(), 1)


def at_once(
    function: Callable[[_Work], _Made],
    work: Iterable[_Work],
    begin: Callable[[], object] | None = None,
) -> Iterator[_Made]:
    """What the function makes of each piece of work, in order; of what is not taken yet no more is held than runs at once.

    begin: called in each thread before its first piece.
    """
    workers = pieces_at_once()
    with ThreadPoolExecutor(workers, initializer=begin) as pool:
        running: deque[Future[_Made]] = deque()
        for piece in work:
            if len(running) == workers:
                yield running.popleft().result()
            running.append(pool.submit(function, piece))
        while running:
            yield running.popleft().result()
