"""Pieces of work at once: in order, a bounded number of them, and errors where they belong."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from onnx_igpc.runtime import at_once as module
from onnx_igpc.runtime.at_once import at_once, pieces_at_once, threads_of_each


@pytest.fixture(autouse=True)
def processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_processors", lambda: 3)


def test_in_order_whichever_is_done_first() -> None:
    first_may_end = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert first_may_end.wait(10)
        elif number == 1:
            first_may_end.set()
        return number * 10

    assert list(at_once(work, range(5))) == [0, 10, 20, 30, 40]


def test_no_more_is_begun_than_runs_at_once() -> None:
    begun = []

    def pieces() -> Iterator[int]:
        for number in range(10):
            begun.append(number)
            yield number

    made = at_once(lambda number: number, pieces())
    assert [next(made), next(made)] == [0, 1]
    assert len(begun) <= 2 + 3


def test_each_thread_begins() -> None:
    names: set[str] = set()
    list(at_once(lambda _: None, range(6), lambda: names.add(threading.current_thread().name)))
    assert 1 <= len(names) <= 3
    assert threading.current_thread().name not in names


def test_an_error_comes_where_its_result_would() -> None:
    made = at_once(lambda number: 1 / number, [1, 0, 2])
    assert next(made) == 1
    with pytest.raises(ZeroDivisionError):
        next(made)


@pytest.mark.parametrize(
    ("processors", "pieces", "threads"), [(1, 1, 1), (2, 2, 1), (6, 4, 1), (64, 4, 16)]
)
def test_as_many_as_there_are_processors_for(
    monkeypatch: pytest.MonkeyPatch, processors: int, pieces: int, threads: int
) -> None:
    monkeypatch.setattr(module, "usable_processors", lambda: processors)
    assert (pieces_at_once(), threads_of_each()) == (pieces, threads)
