"""Files that appear whole or not at all: written under another name, then renamed into place.

What is no file, a pipe or a device, is written into; a link keeps pointing (see
:mod:`onnx_igpc.files.destinations`).

A process that is killed leaves its temporary file behind. Whoever writes a file of that name next
removes it: a temporary file is locked while its writer lives, so that one which can be locked, and
has not been written to for a while, belongs to nobody.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from onnx_igpc.errors import UsageError
from onnx_igpc.files.destinations import PathLike, destination

__all__ = ["PathLike", "locked_folder", "publish", "temporary_file", "write_atomically"]

# Windows has no advisory locks: nothing is locked there, and nothing swept away.
fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

# A file is made before it is locked; younger ones may be between the two.
_STRAY_SECONDS = 60.0


def write_atomically(path: PathLike, write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write`` with a temporary file, then rename that file to what ``path`` leads to.

    A stream (pipe, character device, open descriptor) is handed to ``write`` itself.

    Raises:
        UsageError: the folder does not exist or the file cannot be written.
    """
    goal = destination(path)
    if goal.kind == "file":
        with temporary_file(goal.path, goal.given) as file:
            write(file)
            publish(file, goal.path)
        return
    goal.check_writable()
    try:
        with goal.open_stream() as stream:
            write(stream)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def temporary_file(target: Path, given: Path | None = None) -> Iterator[IO[bytes]]:
    """A temporary file in the folder of ``target``, removed unless it was renamed.

    ``given`` is how messages call the target.

    Raises:
        UsageError: the folder does not exist or the file cannot be written.
    """
    prefix = f".{target.name[:100]}."
    try:
        _sweep(target.parent, prefix)
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=prefix, suffix=".tmp", delete=False
        ) as file:
            try:
                _lock(file.fileno())
                yield file
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot write {given or target}: {reason}") from error


def publish(file: IO[bytes], target: Path) -> None:
    """Give a complete temporary file its name, with the permissions a new file would have."""
    file.flush()
    os.fsync(file.fileno())
    umask = os.umask(0)
    os.umask(umask)
    Path(file.name).chmod(0o666 & ~umask)
    Path(file.name).replace(target)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold off other processes of this tool that publish several files in ``folder`` at once.

    Where the system cannot lock a folder, nothing is held off.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the file is locked by this process now; the lock goes when the file is closed."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sweep(folder: Path, prefix: str) -> None:
    """Remove temporary files whose writer was killed."""
    with os.scandir(folder) as entries:
        found = [e for e in entries if e.name.startswith(prefix) and e.name.endswith(".tmp")]
    for entry in found:
        with contextlib.suppress(OSError):
            if time.time() - entry.stat(follow_symlinks=False).st_mtime < _STRAY_SECONDS:
                continue
            descriptor = os.open(entry.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _lock(descriptor):
                    Path(entry.path).unlink()
            finally:
                os.close(descriptor)
