"""What an output path leads to: a file that is replaced whole, or a stream that is written into.

A link keeps pointing: what it leads to is replaced, in the folder where that lies. Pipes, character
devices and open descriptors (``/dev/stdout``, ``/dev/fd/3``) are never replaced by a file.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from onnx_igpc.errors import UsageError

PathLike = str | os.PathLike[str]
Kind = Literal["file", "folder", "device", "pipe", "descriptor", "refused"]

STDOUT = Path("/dev/stdout")
"""Names the standard output of this process, also on systems that have no such file."""

# Windows has no flags of descriptors.
fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

_MOST_LINKS = 40
_DESCRIPTORS = re.compile(r"/(?:dev|proc/(\d+)|proc/(\d+)/task/\d+)/fd")
_REFUSED = {stat.S_IFBLK: "a block device", stat.S_IFSOCK: "a socket"}


@dataclass(frozen=True)
class Destination:
    """Where an output goes.

    Attributes:
        given: The path as the user wrote it.
        path: The same with all links followed; it need not exist.
        kind: ``file`` (there or not), ``folder``, ``device`` (a character device), ``pipe``, or
            ``descriptor`` of this process; ``refused``: nothing that can be written to.
        descriptor: Its number.
        refusal: What it is, where it is refused.
    """

    given: Path
    path: Path
    kind: Kind = "file"
    descriptor: int | None = None
    refusal: str = ""

    @property
    def is_stream(self) -> bool:
        """Whether it is written into rather than replaced."""
        return self.kind in ("device", "pipe", "descriptor")

    def check_writable(self) -> None:
        """Refuse what cannot be written, before any work is done for it.

        Raises:
            UsageError: it is a folder, a block device or a socket, its folder is missing or read-only,
                or a stream is not open for writing.
        """
        folder = self.path.parent
        reason = self.refusal
        if self.kind == "folder":
            reason = "it is a folder"
        elif self.kind == "descriptor":
            reason = _closed(self.descriptor)
        elif self.is_stream and not os.access(self.path, os.W_OK):
            reason = "it is read-only"
        elif self.kind == "file" and not folder.is_dir():
            reason = f"the folder {folder} does not exist"
        elif self.kind == "file" and not os.access(folder, os.W_OK):
            reason = f"the folder {folder} is read-only"
        if reason:
            raise UsageError(f"cannot write {self.given}: {reason}")

    @contextlib.contextmanager
    def open_stream(self) -> Iterator[IO[bytes]]:
        """A stream, open for writing; a pipe waits for its reader. Raises OSError."""
        assert self.is_stream
        if self.descriptor == 1 and hasattr(sys.stdout, "buffer"):
            sys.stdout.flush()
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
            return
        if self.descriptor is not None:
            number = os.dup(self.descriptor)
        else:
            number = os.open(self.path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0))
        with os.fdopen(number, "wb") as file:
            yield file


def destination(path: PathLike) -> Destination:
    """Follow ``path`` to what would be written.

    Raises:
        UsageError: links that lead in a circle, or a name that the system does not take.
    """
    given = Path(path)
    if given == STDOUT:
        return Destination(given, given, "descriptor", 1)
    try:
        return _follow(given)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write {given}: {reason}") from error


def is_stdout(path: PathLike) -> bool:
    """Whether ``path`` is a name of this process's standard output."""
    try:
        return destination(path).descriptor == 1
    except UsageError:
        return False


def _follow(given: Path) -> Destination:
    here = given
    for _ in range(_MOST_LINKS):
        # Only the folder is resolved: the link of a descriptor leads to a file that is not to be replaced.
        here = Path(os.path.realpath(here.parent)) / here.name
        if (found := _DESCRIPTORS.fullmatch(here.parent.as_posix())) and here.name.isdecimal():
            process = found[1] or found[2]
            if process and int(process) != os.getpid():
                return Destination(given, here, "refused", refusal="it is open in another process")
            return Destination(given, here, "descriptor", int(here.name))
        try:
            mode = here.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return Destination(given, here)
        if not stat.S_ISLNK(mode):
            return _classified(given, here, mode)
        here = here.parent / here.readlink()
    raise UsageError(f"cannot write {given}: its links lead in a circle")


def _classified(given: Path, path: Path, mode: int) -> Destination:
    if stat.S_ISREG(mode):
        return Destination(given, path)
    kinds: dict[int, Kind] = {
        stat.S_IFDIR: "folder",
        stat.S_IFCHR: "device",
        stat.S_IFIFO: "pipe",
    }
    kind = kinds.get(stat.S_IFMT(mode), "refused")
    what = _REFUSED.get(stat.S_IFMT(mode), "not a file")
    return Destination(given, path, kind, refusal=f"it is {what}" if kind == "refused" else "")


def _closed(descriptor: int | None) -> str:
    """Why a descriptor cannot be written to, if so."""
    if descriptor == 1 and sys.stdout is None:
        return "it is closed"  # a file that was opened since may have its number
    if fcntl is None or descriptor == 1:
        return ""
    try:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    except OSError as error:
        return error.strerror or str(error)
    return "it is open for reading only" if flags & os.O_ACCMODE == os.O_RDONLY else ""
