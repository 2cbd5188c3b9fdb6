"""Rows of tensors in a file without a name, which goes with the process."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

# Every tensor of a row begins at a multiple of this, so that its dtype can be read in place.
_ALIGNMENT = 64
# Of the space that is free, the part that may be taken.
_MOST_OF_FREE = 0.5


@dataclass(frozen=True)
class _Form:
    """Of the samples of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    expanded: bool

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Form:
        return cls(tensor.dtype, tuple(tensor.shape[1:]), _is_expanded(tensor))


class RowFile:
    """So many rows, each of one sample's part of some tensors.

    Args:
        folder: where the file lies.
        like: the tensors, with the samples as their first dimension. Of one number expanded only that is kept.
        rows: how many are wanted.
        most: bytes that the file may have; there are fewer rows where they do not suffice, or where they were
            more than half of what is free in the folder.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, folder: Path, like: Sequence[torch.Tensor], rows: int, most: float) -> None:
        self._forms = [_Form.of(tensor) for tensor in like]
        like = [_kept_of(tensor) for tensor in like]
        sizes = [tensor[0].numel() * tensor.element_size() for tensor in like]
        starts = np.cumsum([0, *(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]).tolist()
        most = min(most, shutil.disk_usage(folder).free * _MOST_OF_FREE)
        self.rows = min(rows, int(most // starts[-1]))
        self.bytes = self.rows * starts[-1]
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
            field = memory[:, start : start + size].view(tensor.dtype)
            self._fields.append(field.view(self.rows, *tensor.shape[1:]))

    def fits(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are tensors of the same dtypes and shapes, but for the number of samples."""
        return [_Form.of(tensor) for tensor in tensors] == self._forms

    def put(self, places: Sequence[int], tensors: Sequence[torch.Tensor]) -> None:
        """Keep the samples of the tensors as the rows of these places."""
        where = torch.tensor(places)
        for field, tensor in zip(self._fields, tensors, strict=True):
            field[where] = _kept_of(tensor.detach()).to(field.device)

    def get(self, places: Sequence[int]) -> list[torch.Tensor]:
        """The rows of these places, images with the channels innermost in memory."""
        where = torch.tensor(places, dtype=torch.int64)
        return [
            _whole_of(field[where], form.shape)
            for field, form in zip(self._fields, self._forms, strict=True)
        ]


def _is_expanded(tensor: torch.Tensor) -> bool:
    """Whether each sample is one number."""
    return tensor.dim() > 1 and not any(tensor.stride()[1:])


def _kept_of(tensor: torch.Tensor) -> torch.Tensor:
    """What is kept: images in the order in which they are computed, of a number expanded the number."""
    if _is_expanded(tensor):
        return tensor.flatten(1)[:, 0]
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor


def _whole_of(kept: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """From what is kept to samples of a shape."""
    if kept.dim() == 1:
        return kept.view(-1, *[1] * len(shape)).expand(-1, *shape)
    return kept.permute(0, 3, 1, 2) if kept.dim() == 4 else kept


def gibibytes(size: float) -> str:
    """A size as a person reads it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{math.ceil(size / 2**20)} MiB"
