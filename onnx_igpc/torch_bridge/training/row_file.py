"""Rows of tensors in a file without a name, which goes with the process."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

# Every tensor of a row begins at a multiple of this, so that its dtype can be read in place.
_ALIGNMENT = 64
# Of the space that is free, the part that may be taken.
_MOST_OF_FREE = 0.5


class RowFile:
    """So many rows, each of one sample's part of some tensors.

    Args:
        folder: where the file lies.
        like: the tensors, with the samples as their first dimension.
        rows: how many are wanted.
        most: bytes that the file may have; there are fewer rows where they do not suffice, or where they were
            more than half of what is free in the folder.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, folder: Path, like: Sequence[torch.Tensor], rows: int, most: float) -> None:
        sizes = [tensor[0].numel() * tensor.element_size() for tensor in like]
        starts = np.cumsum([0, *(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]).tolist()
        most = min(most, shutil.disk_usage(folder).free * _MOST_OF_FREE)
        self.rows = min(rows, int(most // starts[-1]))
        self.bytes = self.rows * starts[-1]
        self._forms = [_form(tensor) for tensor in like]
        self._fields: list[torch.Tensor] = []
        if not self.rows:
            return
        with tempfile.TemporaryFile(dir=folder) as file:
            # Writing to a mapped file on a full disk ends the process: the space is taken beforehand.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, self.bytes)
            else:
                file.truncate(self.bytes)
            mapped = np.memmap(file, np.uint8, "r+", shape=(self.rows, starts[-1]))
        memory = torch.from_numpy(mapped)
        for tensor, start, size in zip(like, starts, sizes, strict=False):
            shape = _inner_last(tensor).shape[1:]
            field = memory[:, start : start + size].view(tensor.dtype)
            self._fields.append(field.view(self.rows, *shape))

    def fits(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are tensors of the same dtypes and shapes, but for the number of samples."""
        return [_form(tensor) for tensor in tensors] == self._forms

    def put(self, places: Sequence[int], tensors: Sequence[torch.Tensor]) -> None:
        """Keep the samples of the tensors as the rows of these places."""
        where = torch.tensor(places)
        for field, tensor in zip(self._fields, tensors, strict=True):
            field[where] = _inner_last(tensor.detach()).to(field.device)

    def get(self, places: Sequence[int]) -> list[torch.Tensor]:
        """The rows of these places, images with the channels innermost in memory."""
        where = torch.tensor(places, dtype=torch.int64)
        return [
            _inner_first(field[where], len(form[1]))
            for field, form in zip(self._fields, self._forms, strict=True)
        ]


def _form(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape[1:])


def _inner_last(tensor: torch.Tensor) -> torch.Tensor:
    """Images in the order in which they are computed; anything else as it is."""
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor


def _inner_first(rows: torch.Tensor, dimensions: int) -> torch.Tensor:
    return rows.permute(0, 3, 1, 2) if dimensions == 3 else rows


def gibibytes(size: float) -> str:
    """A size as a person reads it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{math.ceil(size / 2**20)} MiB"
