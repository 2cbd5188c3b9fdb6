"""Images in folders and in tar archives: which there are, their labels, and their bytes in order.

Labels come from class folders: the first folder level below which images lie, after any levels that
hold a single folder. Where all its folder names are integers they are the class indices, otherwise
the sorted names are counted. In WebDataset shards ``key.cls`` beside ``key.jpg`` holds the index.
Archives are read as streams; nothing is extracted.
"""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from onnx_igpc.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_IMAGE_BYTES = 2**28
"""Files in an archive that are larger are no images, and not read into memory."""
_CLASS_BYTES = 64
_MOST_CLASSES = 2**31
_SPLITS = frozenset(
    {"train", "training", "test", "testing", "val", "valid", "validation", "calibration", "eval"}
)


@dataclass(frozen=True)
class ImageIndex:
    """The images of a source in the order in which they are read.

    names: paths below the source. labels: class indices, None where there are no classes. classes:
    the names that the labels count, None where the labels are indices given by name or number.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None


class ImageFolder:
    """All images below a folder, sorted by path."""

    def __init__(self, root: Path) -> None:
        self._root = root
        names = sorted(_walk(root), key=lambda name: PurePosixPath(name).parts)
        self.index = labelled_by_folder(names, str(root))

    def read(self, chosen: Sequence[int]) -> Iterator[tuple[int, IO[bytes]]]:
        """The open files at the chosen positions of the index, in ascending order."""
        for position in sorted(chosen):
            try:
                file = (self._root / self.index.names[position]).open("rb")
            except OSError as error:
                raise DataError(f"{self._root}: {error}") from error
            with file:
                yield position, file


class ImageTar:
    """The images in one or several tar archives, in archive order.

    prefix: a folder inside the archive to keep to. The archives are read twice: for names and
    labels, then for the images. Raises DataError for an archive that cannot be read.
    """

    def __init__(self, paths: Sequence[Path], prefix: str = "") -> None:
        self._paths = list(paths)
        self._prefix = f"{prefix}/" if prefix else ""
        names: list[str] = []
        indices: dict[str, int] = {}
        for number, path in enumerate(self._paths):
            for name, file in self._members(path):
                if name.lower().endswith(".cls"):
                    content = file.read(_CLASS_BYTES)
                    indices[f"{number}/{_key(name)}"] = _class_index(path, name, content)
                elif _is_image(name):
                    names.append(f"{number}/{name}")
        label = str(self._paths[0].parent if len(self._paths) > 1 else self._paths[0])
        plain = [name.partition("/")[2] for name in names]
        if indices:
            missing = [n for n, name in zip(plain, names, strict=True) if _key(name) not in indices]
            if missing:
                raise DataError(f"{label}: {missing[0]} has no .cls file beside it")
            labels = tuple(indices[_key(name)] for name in names)
            self.index = ImageIndex(tuple(plain), labels)
        else:
            self.index = labelled_by_folder(plain, label)

    def read(self, chosen: Sequence[int]) -> Iterator[tuple[int, IO[bytes]]]:
        """The files at the chosen positions of the index, in ascending order."""
        wanted = set(chosen)
        last = max(wanted, default=-1)
        position = 0
        for path in self._paths:
            for name, file in self._members(path):
                if not _is_image(name):
                    continue
                if position in wanted:
                    with _readable(path):
                        image = io.BytesIO(_limited(name, file))
                    yield position, image
                if position == last:
                    return
                position += 1

    def _members(self, path: Path) -> Iterator[tuple[str, IO[bytes]]]:
        """Names below the prefix, and files that are only good until the next one."""
        with _readable(path), tarfile.open(path, "r:*") as archive:
            while (member := archive.next()) is not None:
                # tarfile remembers every member, which grows with the archive
                archive.members = []  # type: ignore[attr-defined]
                name = member.name.removeprefix("./")
                if not member.isfile() or not name.startswith(self._prefix):
                    continue
                file = archive.extractfile(member)
                if file is not None:
                    yield name.removeprefix(self._prefix), file
            # tarfile takes half a header for the end, which would lose images without a word.
            assert archive.fileobj is not None
            if (archive.fileobj.tell() - archive.offset) % tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends in the middle of a header")


def _limited(name: str, file: IO[bytes]) -> bytes:
    """The content of an image file in an archive, which can declare any size."""
    content = file.read(MAX_IMAGE_BYTES + 1)
    if len(content) > MAX_IMAGE_BYTES:
        raise DataError(f"{name} is larger than {MAX_IMAGE_BYTES} bytes: no image")
    return content


def labelled_by_folder(names: Sequence[str], source: str) -> ImageIndex:
    """Labels of images by the class folder that each lies in; the order of the names is kept.

    Raises DataError where the folders are the parts of a data set (train, test) rather than classes.
    """
    parts = [PurePosixPath(name).parts for name in names]
    depth = 0
    while parts and all(len(p) > depth + 2 for p in parts) and len({p[depth] for p in parts}) == 1:
        depth += 1
    if not parts or not all(len(p) > depth + 1 for p in parts):
        return ImageIndex(tuple(names))
    folders = sorted({p[depth] for p in parts})
    if {folder.lower() for folder in folders} <= _SPLITS:
        inside = "/".join([source, *parts[0][:depth], folders[-1]])
        raise DataError(
            f"{source} holds the parts {', '.join(folders)} of a data set: name one, as {inside}"
        )
    if all(folder.isdecimal() and int(folder[:20]) < _MOST_CLASSES for folder in folders):
        return ImageIndex(tuple(names), tuple(int(p[depth]) for p in parts))
    order = {folder: i for i, folder in enumerate(folders)}
    return ImageIndex(tuple(names), tuple(order[p[depth]] for p in parts), tuple(folders))


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


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in files:
            if _is_image(name):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    # Files such as ._a.jpg hold what macOS knows about a.jpg, not an image.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _key(name: str) -> str:
    """What the files of one WebDataset sample have in common: the path up to the first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _class_index(path: Path, name: str, content: bytes) -> int:
    try:
        index = int(content)
    except ValueError:
        index = -1
    if not 0 <= index < _MOST_CLASSES:
        raise DataError(f"{path}: {name} holds no class index: {content[:20]!r}")
    return index


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: cannot be read as a tar archive: {error}") from error
