"""Rows that are kept in a file come back as they were, and the file leaves nothing behind."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnx_igpc.torch_bridge.training.row_file import RowFile, gibibytes

SHAPES = st.lists(st.integers(1, 5), max_size=4)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool])


def numbers(rows: int, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, *shape).mul(3).to(dtype)


@given(st.lists(st.tuples(SHAPES, DTYPES), min_size=1, max_size=3), st.permutations(range(6)))
def test_every_row_comes_back(
    tmp_path_factory: pytest.TempPathFactory, forms: Any, order: list[int]
) -> None:
    tensors = [numbers(6, *form) for form in forms]
    folder = tmp_path_factory.mktemp("rows")
    file = RowFile(folder, tensors, 6, 1e6)
    assert file.fits([tensor[:2] for tensor in tensors])
    for part in (order[:2], order[2:]):
        file.put(part, [tensor[part] for tensor in tensors])
    for tensor, again in zip(tensors, file.get(order[1:4]), strict=True):
        assert again.dtype == tensor.dtype
        assert torch.equal(again, tensor[order[1:4]])
    assert not list(folder.iterdir())


def test_images_come_back_with_the_channels_innermost(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 4, 5)
    file = RowFile(tmp_path, [image], 2, 1e6)
    file.put([0, 1], [image])
    (again,) = file.get([1, 0])
    assert again.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(again, image.flip(0))


def test_of_a_number_expanded_the_number_is_kept(tmp_path: Path) -> None:
    """As where nothing but the shape of an input is read."""
    zeros, image = torch.zeros(()).expand(3, 3, 224, 224), torch.randn(3, 4)
    file = RowFile(tmp_path, [zeros, image], 3, 1e6)
    assert file.bytes == 3 * 2 * 64
    file.put([0, 1, 2], [zeros, image])
    again = file.get([2, 0])
    assert torch.equal(again[0], zeros[:2])
    assert torch.equal(again[1], image[[2, 0]])
    assert not file.fits([zeros.contiguous(), image])


def test_other_forms_do_not_fit(tmp_path: Path) -> None:
    file = RowFile(tmp_path, [torch.zeros(1, 3), torch.zeros(1)], 2, 1e6)
    assert file.fits([torch.zeros(5, 3), torch.zeros(5)])
    assert not file.fits([torch.zeros(5, 4), torch.zeros(5)])
    assert not file.fits([torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)])
    assert not file.fits([torch.zeros(5, 3)])


def test_it_is_no_larger_than_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like = [torch.zeros(1, 16), torch.zeros(1, 3)]  # 64 bytes each, the second with its padding
    assert RowFile(tmp_path, like, 10, 1e6).bytes == 10 * 128
    assert RowFile(tmp_path, like, 10, 400).rows == 3
    assert RowFile(tmp_path, like, 10, 127).rows == 0
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1024))
    assert RowFile(tmp_path, like, 10, 1e6).rows == 4


def test_a_full_disk_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        RowFile(tmp_path, [torch.zeros(1, 16)], 10, 1e6)
    assert not list(tmp_path.iterdir())


def test_sizes_in_words() -> None:
    assert [gibibytes(size) for size in (1, 3 * 2**20, 2**30, 2.5 * 2**30)] == [
        *("1 MiB", "3 MiB", "1.0 GiB", "2.5 GiB")
    ]
