"""Which images of a source count, and what the folders that they lie in say of their labels.

Labels come from class folders: the first folder level below which images lie, after any levels that
hold a single folder. Where all its folder names are integers they are the class indices, otherwise
the sorted names are counted, a folder without images among them. Hidden folders, and a few images that
lie beside the class folders, are left out, which the index says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from onnx_igpc.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
)
_OTHER_IMAGES = frozenset({".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".exr"})
# What file managers, archivers and network drives leave beside a user's files.
_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
)
_SPLITS = frozenset(
    {"train", "training", "test", "testing", "val", "valid", "validation", "calibration", "eval"}
)
MOST_CLASSES = 2**31
_LISTED = 3

Parts = tuple[str, ...]


@dataclass(frozen=True)
class ImageIndex:
    """The images of a source in the order in which they are read.

    names: paths below the source. labels: class indices, None where there are no classes. classes:
    the names that the labels count, None where the labels are indices given by name or number.
    notes: what was left out or is unusual, in sentences.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def shifted(self, offset: int) -> ImageIndex:
        """The same with ``offset`` added to every label."""
        if self.labels is None or not offset:
            return self
        labels = tuple(label + offset for label in self.labels)
        return ImageIndex(self.names, labels, self.classes, self.notes)


def is_image(name: str) -> bool:
    """Whether a file is an image that can be read; hidden files are none."""
    path = PurePosixPath(name)
    # Files such as ._a.jpg hold what macOS knows about a.jpg, not an image.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def is_hidden(folder: str) -> bool:
    """Whether a folder, by its name, is one that programs made for themselves."""
    return folder.startswith(".") or folder.lower() in _SYSTEM_FOLDERS


def lies_hidden(name: str) -> bool:
    """Whether a path below a source leads through a hidden folder."""
    return any(is_hidden(part) for part in PurePosixPath(name).parts[:-1])


def unread_notes(names: Iterable[str]) -> list[str]:
    """What a user should know of the files among ``names`` that are no images that can be read."""
    hidden: Counter[str] = Counter()
    suffixes: Counter[str] = Counter()
    for name in names:
        path = PurePosixPath(name)
        if lies_hidden(name):
            hidden[next(part for part in path.parts if is_hidden(part))] += is_image(name)
        elif path.suffix.lower() in _OTHER_IMAGES and not path.name.startswith("."):
            suffixes[path.suffix.lower()] += 1
    notes = [
        f"hidden folder {folder!r} left out ({_images(count)})"
        for folder, count in sorted(hidden.items())
        if count
    ]
    notes += [f"{count} {suffix} files left out" for suffix, count in sorted(suffixes.items())]
    return notes


def labelled_by_folder(
    names: Sequence[str], source: str, folders: Iterable[str] = ()
) -> tuple[ImageIndex, list[int]]:
    """Labels of images by the class folder that each lies in; the order of the names is kept.

    Args:
        names: paths of the images below the source.
        source: what the user called it, for messages.
        folders: paths of all folders below the source, those without images among them.

    Returns:
        The index, and the positions in ``names`` of the images in it: a few that lie beside the class
        folders have no class and are left out.

    Raises:
        DataError: the folders are the parts of a data set (train, test) rather than classes.
    """
    parts = [PurePosixPath(name).parts for name in names]
    root = _class_level(parts)
    depth = len(root or ())
    kept = [i for i, p in enumerate(parts) if p[:depth] == root and len(p) > depth + 1]
    found = {parts[i][depth] for i in kept}
    # Beside a single folder, images are no strays: there is nothing to tell apart.
    if root is None or (len(kept) < len(names) and len(found) < 2):
        return ImageIndex(tuple(names), notes=_unlabelled_notes(parts)), list(range(len(names)))
    if {folder.lower() for folder in found} <= _SPLITS:
        inside = "/".join([source, *root, max(found)])
        listed = ", ".join(sorted(found))
        raise DataError(f"{source} holds the parts {listed} of a data set: name one, as {inside}")
    notes = []
    if left := [names[i] for i in sorted(set(range(len(names))) - set(kept))]:
        notes.append(f"{_images(len(left))} beside the class folders left out: {_listed(left)}")
    names = [names[i] for i in kept]
    if all(folder.isdecimal() and int(folder[:20]) < MOST_CLASSES for folder in found):
        indices = tuple(int(parts[i][depth]) for i in kept)
        return ImageIndex(tuple(names), indices, notes=tuple(notes)), kept
    below = [PurePosixPath(folder).parts for folder in folders]
    empty = {p[depth] for p in below if len(p) > depth and p[:depth] == root} - found
    if empty := {folder for folder in empty if not is_hidden(folder)}:
        notes.append(f"class folders without an image, which count: {_listed(sorted(empty))}")
    classes = tuple(sorted(found | empty))
    order = {folder: i for i, folder in enumerate(classes)}
    labels = tuple(order[parts[i][depth]] for i in kept)
    return ImageIndex(tuple(names), labels, classes, tuple(notes)), kept


def _class_level(parts: Sequence[Parts]) -> Parts | None:
    """The folder in which the class folders lie; ``None`` where most images lie in no folder."""
    root: Parts = ()
    while True:
        here = [p for p in parts if p[: len(root)] == root]
        deeper = [p for p in here if len(p) > len(root) + 1]
        # Strays are few: images that are as many as those in folders are a set without classes.
        if not deeper or 2 * len(deeper) <= len(here):
            return None
        folders = {p[len(root)] for p in deeper}
        if len(folders) > 1:
            return root
        inner = (*root, *folders)
        below = [p for p in deeper if len(p) > len(inner) + 1]
        if 2 * len(below) <= len(deeper):
            return root
        root = inner


def _unlabelled_notes(parts: Sequence[Parts]) -> tuple[str, ...]:
    folders = {p[0] for p in parts if len(p) > 1}
    if not folders or all(len(p) > 1 for p in parts):
        return ()
    count = sum(len(p) == 1 for p in parts)
    listed = _listed(sorted(folders))
    return (f"no labels: {count} images lie beside the folders {listed}, in no class",)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def label_problem(
    source: str,
    labels: np.ndarray,
    names: Sequence[str] | None,
    classes: int,
    offset: int | None,
) -> str | None:
    """Why labels cannot be those of a model with so many classes, and what to do; ``None`` if they can.

    Args:
        source: what the user called the data, empty where there is only one.
        labels: int64[samples], with the offset in them.
        names: the class folders that the labels count; ``None`` where labels are indices by themselves.
        classes: of the model.
        offset: what was added to the labels; ``None`` where the user left it open, which is 0.
    """
    shift = offset or 0
    if names is not None and len(names) + shift != classes:
        told = f"{source or 'the data'} has {len(names)} class folders, the model {classes} classes"
        if shift:
            told += f" with `label_offset` {shift}"
        if len(names) + 1 == classes:
            return (
                f"{told}: if the first one is a background class, as TensorFlow's models have, give "
                "`label_offset` 1; otherwise name the folders by class index, as 0000, 0001"
            )
        return f"{told}: name the folders by class index, as 0000, 0001"
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        hint, of = "", f" of {source}" if source else ""
        if not shift and int(labels.min()) == 1 and int(labels.max()) == classes:
            hint = ": labels that count from 1 take `label_offset` -1"
        return (
            f"label {int(wrong[0])}{of} is not one of the model's {classes} classes "
            f"(0 to {classes - 1}){hint}"
        )
    return None


def background_hint(labels: np.ndarray, classes: int) -> str | None:
    """What to say where the labels are all but the last of a model's classes, which one may stand first."""
    present = np.unique(labels)
    if len(present) != classes - 1 or present[0] != 0 or present[-1] != classes - 2:
        return None
    return (
        f"labels are 0 to {classes - 2}, the model has {classes} classes: if the first one is a "
        "background class, as TensorFlow's models have, give `label_offset` 1"
    )
