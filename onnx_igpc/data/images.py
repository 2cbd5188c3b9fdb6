"""Images in folders and in tar archives: which there are, their labels, and their bytes.

What counts as an image and what its label is, :mod:`onnx_igpc.data.class_folders` says for both. In
WebDataset shards ``key.cls`` beside ``key.jpg`` holds the class index. Archives are read as streams, or
where they are not compressed at the place of a member; nothing is extracted.
"""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from onnx_igpc.data.class_folders import (
    MOST_CLASSES,
    ImageIndex,
    is_hidden,
    is_image,
    labelled_by_folder,
    lies_hidden,
    unread_notes,
)
from onnx_igpc.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_IMAGE_BYTES = 2**28
"""Files in an archive that are larger are no images, and not read into memory."""
_CLASS_BYTES = 64


class ImageFolder:
    """All images below a folder, sorted by path. Links to folders are followed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        names, folders = _walk(root)
        names.sort(key=lambda name: Path(name).parts)
        index, _ = labelled_by_folder([n for n in names if _counts(n)], str(root), folders)
        self.index = _noted(index, names)

    def read(self, chosen: Sequence[int]) -> Iterator[tuple[int, IO[bytes]]]:
        """The open files at the chosen positions of the index, in ascending order."""
        for position in sorted(chosen):
            try:
                file = (self._root / self.index.names[position]).open("rb")
            except OSError as error:
                raise DataError(f"{self._root}: {error}") from error
            with file:
                yield position, file

    def content(self, position: int) -> bytes:
        """The file at one position of the index. Raises DataError."""
        try:
            return (self._root / self.index.names[position]).read_bytes()
        except OSError as error:
            raise DataError(f"{self._root}: {error}") from error

    def check_random_access(self) -> None:
        """Files can be read in any order."""


class _Place(NamedTuple):
    """Where a member of an archive lies: which archive, and bytes in it."""

    archive: int
    offset: int
    size: int
    sparse: bool

    @classmethod
    def of(cls, archive: int, member: tarfile.TarInfo) -> _Place:
        return cls(archive, member.offset_data, member.size, bool(member.issparse()))


class ImageTar:
    """The images in one or several tar archives, in archive order.

    prefix: a folder inside the archive to keep to. The archives are read twice: for names and
    labels, then for the images. Raises DataError for an archive that cannot be read.
    """

    def __init__(self, paths: Sequence[Path], prefix: str = "") -> None:
        self._paths = list(paths)
        self._prefix = f"{prefix}/" if prefix else ""
        self._compressed: Path | None = None
        names: list[str] = []
        places: list[_Place] = []
        unread: list[str] = []
        folders: list[str] = []
        indices: dict[str, int] = {}
        for number, path in enumerate(self._paths):
            for name, member, file in self._members(path):
                if file is None:
                    folders.append(name)
                elif not lies_hidden(name) and name.lower().endswith(".cls"):
                    content = file.read(_CLASS_BYTES)
                    indices[f"{number}/{_key(name)}"] = _class_index(path, name, content)
                elif _counts(name):
                    names.append(f"{number}/{name}")
                    places.append(_Place.of(number, member))
                else:
                    unread.append(name)
        label = str(self._paths[0].parent if len(self._paths) > 1 else self._paths[0])
        plain = [name.partition("/")[2] for name in names]
        kept = list(range(len(names)))
        if indices:
            missing = [n for n, name in zip(plain, names, strict=True) if _key(name) not in indices]
            if missing:
                raise DataError(f"{label}: {missing[0]} has no .cls file beside it")
            index = ImageIndex(tuple(plain), tuple(indices[_key(name)] for name in names))
        else:
            index, kept = labelled_by_folder(plain, label, folders)
        self.index = _noted(index, unread)
        # Which images of the archives the index holds, and which position each has in it.
        self._positions = {raw: position for position, raw in enumerate(kept)}
        self._places = [places[raw] for raw in kept]

    def read(self, chosen: Sequence[int]) -> Iterator[tuple[int, IO[bytes]]]:
        """The files at the chosen positions of the index, in ascending order."""
        wanted = set(chosen)
        last = max(wanted, default=-1)
        raw = -1
        for path in self._paths:
            for name, _, file in self._members(path):
                if file is None or not _counts(name):
                    continue
                raw += 1
                position = self._positions.get(raw, -1)
                if position in wanted:
                    with _readable(path):
                        image = io.BytesIO(_limited(name, file))
                    yield position, image
                if position == last:
                    return

    def content(self, position: int) -> bytes:
        """The file at one position of the index, read from where it lies. Raises DataError.

        No archive stays open: processes that share one would move each other's position in it.
        """
        place = self._places[position]
        path = self._paths[place.archive]
        try:
            with path.open("rb") as file:
                file.seek(place.offset)
                content = file.read(place.size)
        except OSError as error:
            raise DataError(f"{path}: {error}") from error
        if len(content) != place.size:
            raise DataError(f"{path}: ends too early: it has changed or is damaged")
        return content

    def check_random_access(self) -> None:
        """Refuse with DataError what :meth:`content` cannot read."""
        if self._compressed is not None:
            raise DataError(
                f"{self._compressed}: training reads archives in random order, which a compressed one "
                "does not allow: unpack it to .tar"
            )
        for name, place in zip(self.index.names, self._places, strict=True):
            if place.size > MAX_IMAGE_BYTES or place.sparse:
                path = self._paths[place.archive]
                raise DataError(f"{path}: {name} is no image: {place.size} bytes")

    def _members(self, path: Path) -> Iterator[tuple[str, tarfile.TarInfo, IO[bytes] | None]]:
        """Names below the prefix, with files that are only good until the next one; folders have none."""
        with _readable(path), tarfile.open(path, "r:*") as archive:
            if not isinstance(archive.fileobj, io.BufferedReader):
                self._compressed = path
            while (member := archive.next()) is not None:
                # tarfile remembers every member, which grows with the archive
                archive.members = []  # type: ignore[attr-defined]
                name = member.name.removeprefix("./")
                if not name.startswith(self._prefix):
                    continue
                inner = name.removeprefix(self._prefix)
                if member.isdir() and inner.strip("."):
                    yield inner, member, None
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield inner, member, file
            # tarfile takes half a header for the end, which would lose images without a word.
            assert archive.fileobj is not None
            if (archive.fileobj.tell() - archive.offset) % tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends in the middle of a header")


def _counts(name: str) -> bool:
    return is_image(name) and not lies_hidden(name)


def _noted(index: ImageIndex, files: Sequence[str]) -> ImageIndex:
    """The index with what is to be said of the files that are not in it."""
    notes = (*unread_notes(name for name in files if not _counts(name)), *index.notes)
    return ImageIndex(index.names, index.labels, index.classes, notes)


def _limited(name: str, file: IO[bytes]) -> bytes:
    """The content of an image file in an archive, which can declare any size."""
    content = file.read(MAX_IMAGE_BYTES + 1)
    if len(content) > MAX_IMAGE_BYTES:
        raise DataError(f"{name} is larger than {MAX_IMAGE_BYTES} bytes: no image")
    return content


def spread(labels: Sequence[int] | None, count: int, samples: int | None) -> list[int]:
    """Which ``samples`` of ``count`` positions to take: ascending, evenly spaced, classes balanced.

    With labels, every class gives equally many as far as it has them; with fewer samples than
    classes, evenly spaced classes give one each. ``samples`` None takes all.
    """
    if samples is None or samples >= count:
        return list(range(count))
    if labels is None:
        return [i * count // samples for i in range(samples)]
    groups: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        groups.setdefault(label, []).append(position)
    classes = [groups[label] for label in sorted(groups)]
    if samples < len(classes):
        classes = [classes[i * len(classes) // samples] for i in range(samples)]
    chosen: list[int] = []
    left = samples
    # Smallest class first: what it cannot give is shared by those that follow.
    for i, group in enumerate(sorted(classes, key=len)):
        quota = min(len(group), left // (len(classes) - i))
        chosen += [group[k * len(group) // quota] for k in range(quota)]
        left -= quota
    return sorted(chosen)


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Paths below a folder: of its files, and of its folders."""
    names: list[str] = []
    folders: list[str] = []
    lineage: dict[str, frozenset[tuple[int, int]]] = {}

    def refuse(error: OSError) -> None:
        raise DataError(f"{root}: {error}") from error

    # Class folders can be links to where the images lie, and links can lead in circles.
    for folder, inner, files in os.walk(root, onerror=refuse, followlinks=True):
        inner.sort()
        path = Path(folder)
        found, above = path.stat(), lineage.get(str(path.parent), frozenset())
        here = (found.st_dev, found.st_ino)
        if here in above:
            inner.clear()
            continue
        lineage[str(path)] = above | {here}
        below = path.relative_to(root)
        if below.parts:
            folders.append(below.as_posix())
        names += [(below / name).as_posix() for name in files]
        if is_hidden(path.name) and below.parts:
            inner.clear()  # what a program keeps there can be large
    return names, folders


def _key(name: str) -> str:
    """What the files of one WebDataset sample have in common: the path up to the first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _class_index(path: Path, name: str, content: bytes) -> int:
    try:
        index = int(content)
    except ValueError:
        index = -1
    if not 0 <= index < MOST_CLASSES:
        raise DataError(f"{path}: {name} holds no class index: {content[:20]!r}")
    return index


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: cannot be read as a tar archive: {error}") from error
