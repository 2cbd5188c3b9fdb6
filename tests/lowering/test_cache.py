"""The cache of measurements: what it keeps, and that it never fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnx_igpc.lowering.cache import RaceCache, cache_folder, default_folder, read_seconds


def test_what_was_put_is_there_for_the_next(tmp_path: Path) -> None:
    RaceCache(tmp_path).put("race", {"literal": 1.5, "dense": 2.0})
    later = RaceCache(tmp_path)
    assert later.get("race") == {"literal": 1.5, "dense": 2.0}
    assert later.get("another") is None
    assert (later.hits, later.misses, later.note) == (1, 1, None)


def test_without_a_folder_it_lasts_as_long_as_the_object() -> None:
    cache = RaceCache(None)
    cache.put("race", {"literal": 1.0})
    assert cache.get("race") == {"literal": 1.0}
    assert RaceCache(None).get("race") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 1, "key": "race"}',
        '{"version": 1, "key": "race", "measured": []}',
        '{"version": 1, "key": "race", "measured": {}}',
        "\x00\xff",
        "[" * 100000,
    ],
)
def test_a_damaged_file_is_a_note_and_measured_again(tmp_path: Path, text: str) -> None:
    RaceCache(tmp_path).put("race", {"literal": 1.0})
    (file,) = tmp_path.iterdir()
    file.write_bytes(text.encode("latin-1"))
    cache = RaceCache(tmp_path)
    assert cache.get("race") is None
    assert cache.note is not None
    assert "is damaged: measured again" in cache.note
    cache.put("race", {"literal": 2.0})
    assert RaceCache(tmp_path).get("race") == {"literal": 2.0}


def test_a_file_of_another_version_is_passed_over(tmp_path: Path) -> None:
    RaceCache(tmp_path).put("race", {"literal": 1.0})
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 0}))
    cache = RaceCache(tmp_path)
    assert cache.get("race") is None
    assert cache.note is None


def test_a_folder_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = RaceCache(tmp_path / "file" / "folder")
    cache.put("race", {"literal": 1.0})
    assert cache.get("race") == {"literal": 1.0}
    assert cache.note is not None
    assert "the cache cannot be written" in cache.note


def test_values_that_are_no_times_are_refused() -> None:
    assert read_seconds({"a": 1, "b": 0.5, "c": "x"}, ["a", "b"]) == {"a": 1.0, "b": 0.5}
    for bad in ({"a": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 1.0, "b": "soon"}, {"a": 1.0, "b": None}):
        assert read_seconds(bad, ["a", "b"]) is None
    assert read_seconds({"a": float("inf")}, ["a"]) is None
    assert read_seconds({"a": float("nan")}, ["a"]) is None


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "onnx-igpc" / "races"
    assert cache_folder(True) == default_folder()
    assert cache_folder(False) is None
    assert cache_folder(str(tmp_path)) == tmp_path
