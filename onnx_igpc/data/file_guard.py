"""No command writes over what it reads, nor one of its outputs over another.

A :class:`FileGuard` is told every file that a run reads and every file that it writes; it refuses what
would be lost before anything is done. Files are compared by what they are, not by what they are
called: through links, hard links, relative paths and file systems that do not tell cases apart.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx_igpc.data.class_folders import IMAGE_SUFFIXES
from onnx_igpc.data.images import TAR_SUFFIXES
from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.files.destinations import Destination, PathLike, destination
from onnx_igpc.graph.external_data import external_locations
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.parsing import parse_model
from onnx_igpc.graph.replaced_data import is_own_name

_DATA_SUFFIXES = (*sorted(IMAGE_SUFFIXES), *TAR_SUFFIXES, ".npz", ".npy")


@dataclass(frozen=True)
class _Read:
    path: Path
    what: str


@dataclass(frozen=True)
class _Write:
    """``beside``: files that are written with it, relative to its folder."""

    goal: Destination
    what: str
    beside: frozenset[str] = frozenset()
    is_model: bool = False

    def companions(self) -> set[Path]:
        """The files of ``beside``: where the model lies, and where a link to it does."""
        folders = (self.goal.path.parent, Path(os.path.realpath(self.goal.given.parent)))
        return {folder / name for folder in folders for name in self.beside}


@dataclass
class FileGuard:
    """The files of one run. What is ``None``, or no path, is no file and left out."""

    _models: list[Path] = field(default_factory=list)
    _data: list[_Read] = field(default_factory=list)
    _files: list[_Read] = field(default_factory=list)
    _writes: list[_Write] = field(default_factory=list)

    def reads_model(self, *models: object) -> None:
        """Models by path or opened: their files and external data are read."""
        for model in models:
            if isinstance(model, (str, os.PathLike)):
                self._models.append(Path(model))
            elif isinstance(model, OpenModel) and model.path is not None:
                # The message changes while the model is rewritten: look at it now.
                self._files += _model_files(model.path, external_locations(model.proto))

    def reads_data(self, source: object, what: str) -> None:
        """Images or arrays, by path or opened, given for ``what``."""
        if hasattr(source, "describe"):
            source = source.describe().source
        if isinstance(source, (str, os.PathLike)):
            path = Path(source)
            # A folder inside an archive is named like one on disk. Path.exists raises for long names.
            places = (path, *path.parents)
            there = next((each for each in places if os.path.exists(each)), path)  # noqa: PTH110
            kind = self._data if there == path and path.is_dir() else self._files
            kind.append(_Read(there, f"what {what} reads"))

    def reads(self, path: PathLike | None, what: str) -> None:
        """Any other file, given for ``what``."""
        if path is not None:
            self._files.append(_Read(Path(path), f"what {what} reads"))

    def writes(self, path: PathLike | None, what: str, *, stream: bool = True) -> None:
        """An output, given for ``what``; ``stream``: it may be a pipe, a device or stdout.

        Raises:
            UsageError: it cannot be written.
        """
        if path is not None:
            self._add(_Write(destination(path), what), stream)

    def writes_model(
        self,
        path: PathLike | None,
        what: str,
        *,
        source: Path | None = None,
        copied: bool = False,
        stream: bool = True,
    ) -> None:
        """An output that is a model made of ``source``; ``copied``: with its data under its names.

        Raises:
            UsageError: it cannot be written.
        """
        if path is None:
            return
        data = frozenset(_locations(source)) if source is not None else frozenset()
        write = _Write(destination(path), what, data if copied else frozenset(), is_model=True)
        self._add(write, stream)
        if data and write.goal.is_stream:
            raise UsageError(f"cannot write {path}: {source} has external data, so give a file")

    def writes_folder(self, path: PathLike | None, what: str) -> None:
        """A folder that files of their own names are put into."""
        if path is not None:
            self._writes.append(_Write(destination(path), what))

    def with_output(self, path: PathLike) -> FileGuard:
        """A guard of the same reads and of one model that is written.

        Raises:
            UsageError: it cannot be written.
        """
        guard = replace(self, _writes=[])
        guard.writes_model(path, "the output")
        return guard

    def check(self) -> None:
        """Refuse outputs that are inputs, or one another.

        Raises:
            UsageError: in one line, which.
        """
        if not self._writes:
            return
        reads = list(self._files)
        for model in self._models:
            reads += _model_files(model, _locations(model))
        for number, write in enumerate(self._writes):
            for read in reads:
                if _same_file(write.goal, read.path):
                    raise UsageError(f"{write.goal.given} is {read.what}: choose another output")
            for read in self._data:
                if _is_data(write.goal, read.path):
                    raise UsageError(
                        f"{write.goal.given} is among {read.what}, {read.path}: choose another output"
                    )
            if write.goal.path in write.companions():
                raise UsageError(
                    f"{write.goal.given} is how the model's external data is called: "
                    "choose another output"
                )
            for other in self._writes[:number]:
                _refuse_pair(other, write)

    def _add(self, write: _Write, stream: bool) -> None:
        write.goal.check_writable()
        if write.goal.is_stream and not stream:
            raise UsageError(f"cannot write {write.goal.given}: {write.what} takes a file")
        self._writes.append(write)


def _refuse_pair(one: _Write, other: _Write) -> None:
    if _same_output(one.goal, other.goal):
        raise UsageError(
            f"{one.what} and {other.what} are one file, {other.goal.given}: give each its own"
        )
    for model, file in ((one, other), (other, one)):
        path, output = file.goal.path, model.goal.path
        made = model.is_model and path.parent == output.parent
        if path in model.companions() or (made and is_own_name(path.name, output.name)):
            raise UsageError(
                f"{file.goal.given} is how external data of {model.goal.given} is called: "
                f"choose another file for {file.what}"
            )


def _same_output(one: Destination, other: Destination) -> bool:
    """Whether what is written to both would be mixed or lost; a device such as a null device takes all."""
    if one.descriptor is not None and one.descriptor == other.descriptor:
        return True
    if "device" in (one.kind, other.kind):
        return False
    if one.path == other.path or _same_file(one, other.path):
        return True
    return str(one.path).lower() == str(other.path).lower() and _ignores_case(one.path.parent)


def _same_file(goal: Destination, path: Path) -> bool:
    """Whether ``path`` is the file or pipe that the output would replace or be written into."""
    try:
        there = path.stat()
        ours = os.fstat(goal.descriptor) if goal.descriptor is not None else goal.path.stat()
    except (OSError, ValueError):
        return False
    return os.path.samestat(ours, there) and not stat.S_ISCHR(there.st_mode)


def _ignores_case(folder: Path) -> bool:
    try:
        return Path(str(folder).swapcase()).samefile(folder)
    except OSError:
        return False


def _is_data(goal: Destination, folder: Path) -> bool:
    """Whether the output is one of the files below a folder of data, or would become one."""
    if goal.kind != "file":
        return False
    inside = goal.path.is_relative_to(folder.resolve())
    if inside and goal.path.name.lower().endswith(_DATA_SUFFIXES):
        return True
    # Under another name: only a hard link, or a link in the folder that leads to it.
    if not goal.path.exists():
        return False
    node = goal.path.stat().st_ino
    return any(
        (entry.is_symlink() or entry.inode() == node) and _same_file(goal, Path(entry.path))
        for entry in _data_files(folder)
    )


def _data_files(folder: Path) -> Iterator[os.DirEntry[str]]:
    pending = [str(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.name.lower().endswith(_DATA_SUFFIXES):
                        yield entry
        except OSError:
            continue  # whoever reads the data says what is wrong with it


def _locations(model: Path) -> set[str]:
    """The external data of a model file; none where it cannot be read, which its reader will say."""
    try:
        return external_locations(parse_model(model))
    except ModelError:
        return set()


def _model_files(path: Path, locations: set[str]) -> list[_Read]:
    found = [_Read(path, "the input itself")]
    for location in sorted(locations):
        for folder in (path.parent, path.resolve().parent):
            found.append(_Read(folder / location, f"external data of {path}, which is read"))
    return found
