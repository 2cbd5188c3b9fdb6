"""Arrays that are kept between runs: in memory up to a limit, beyond it in temporary files."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Hashable
from pathlib import Path
from types import TracebackType

import numpy as np

from onnx_igpc.errors import UsageError

MEMORY_BYTES = 1 << 30
"""What a store keeps in memory, in bytes, unless it is said otherwise."""

# Smaller arrays are not worth a file.
_MIN_FILE_BYTES = 1 << 16


class ActivationStore:
    """Arrays by key; what does not fit into memory is spilled to a temporary folder.

    The folder is made when it is first needed, where Python puts temporary files (TMPDIR), and goes
    away with :meth:`close`. ``peak_bytes`` is the most that was held at once, ``peak_spilled_bytes``
    the part of it that lay in files.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._limit = memory_bytes
        self._arrays: dict[Hashable, np.ndarray] = {}
        self._files: dict[Hashable, tuple[Path, int]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._written = 0
        self._in_memory = self._spilled = 0
        self.peak_bytes = self.peak_spilled_bytes = 0

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def put(self, key: Hashable, array: np.ndarray) -> None:
        """Keep an array of any shape and dtype.

        Raises:
            UsageError: the temporary folder is full; the message says how much was needed.
        """
        self.drop(key)
        if self._in_memory + array.nbytes <= self._limit or array.nbytes < _MIN_FILE_BYTES:
            self._arrays[key] = array
            self._in_memory += array.nbytes
        else:
            self._files[key] = (self._write(array), array.nbytes)
            self._spilled += array.nbytes
        self.peak_bytes = max(self.peak_bytes, self._in_memory + self._spilled)
        self.peak_spilled_bytes = max(self.peak_spilled_bytes, self._spilled)

    def get(self, key: Hashable) -> np.ndarray:
        """The array that was put under ``key``; read-only where it lies in a file."""
        if key in self._arrays:
            return self._arrays[key]
        loaded: np.ndarray = np.load(self._files[key][0], mmap_mode="r")
        return loaded

    def drop(self, key: Hashable) -> None:
        """Forget an array; nothing where there is none."""
        if key in self._arrays:
            self._in_memory -= self._arrays.pop(key).nbytes
        elif key in self._files:
            path, size = self._files.pop(key)
            # Where a file cannot be removed while it is mapped, it goes with the folder.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            self._spilled -= size

    def close(self) -> None:
        """Forget everything and remove the temporary folder."""
        self._arrays.clear()
        self._files.clear()
        self._in_memory = self._spilled = 0
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.cleanup()
            self._folder = None

    def _write(self, array: np.ndarray) -> Path:
        folder = Path(tempfile.gettempdir())
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(
                    prefix="onnx-igpc-", ignore_cleanup_errors=True
                )
            folder = Path(self._folder.name)
            path = folder / f"{self._written}.npy"
            self._written += 1
            np.save(path, array)
        except OSError as error:
            free = shutil.disk_usage(folder).free if folder.exists() else 0
            raise UsageError(
                f"activations of {self._spilled + array.nbytes:,} bytes do not fit into "
                f"{folder.parent} ({free:,} bytes free): use fewer samples or set TMPDIR"
            ) from error
        return path
