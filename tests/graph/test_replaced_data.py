"""Who still needs the data file of a model that is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_igpc.graph import replaced_data
from onnx_igpc.graph.replaced_data import used_by_others

NAMES = {"m.onnx.0123456789abcdef.data", "m.onnx.fedcba9876543210.data"}


@pytest.mark.parametrize("before", range(0, 64, 5))
def test_a_name_is_found_wherever_it_lies_in_a_file(
    tmp_path: Path, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaced_data, "_PIECE", 16)
    wanted = min(NAMES)
    (tmp_path / "copy.onnx").write_bytes(b"x" * before + wanted.encode() + b"y" * 7)
    (tmp_path / "other.onnx").write_bytes(max(NAMES)[:-1].encode() * 3)
    (tmp_path / "empty.onnx").touch()
    assert used_by_others(tmp_path / "m.onnx", NAMES) == {wanted}


def test_the_model_itself_and_the_data_do_not_count(tmp_path: Path) -> None:
    for name in ("m.onnx", *NAMES):
        (tmp_path / name).write_text("".join(NAMES))
    assert used_by_others(tmp_path / "m.onnx", NAMES) == set()
    assert used_by_others(tmp_path / "m.onnx", set()) == set()


def test_what_is_too_large_to_be_a_model_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.bin").write_text("".join(NAMES))
    assert used_by_others(tmp_path / "m.onnx", NAMES) == NAMES
    monkeypatch.setattr(replaced_data, "MAX_MESSAGE_BYTES", 8)
    assert used_by_others(tmp_path / "m.onnx", NAMES) == set()


def test_in_a_crowded_folder_all_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaced_data, "_MAX_SIBLINGS", 2)
    for name in "ab":
        (tmp_path / name).touch()
    assert used_by_others(tmp_path / "m.onnx", NAMES) == NAMES
