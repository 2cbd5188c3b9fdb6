"""Data files that are no longer needed once a model with external data is replaced by another."""

from __future__ import annotations

import itertools
from pathlib import Path

from onnx_igpc.errors import ModelError
from onnx_igpc.graph.external_data import MAX_MESSAGE_BYTES, external_locations
from onnx_igpc.graph.parsing import parse_model

# A folder with more files than this is not searched for other models that use the old data.
_MAX_SIBLINGS = 1000
_PIECE = 1 << 22


def own_data_of(target: Path) -> set[str]:
    """Data files that we wrote for the model that ``target`` is about to replace."""
    if not target.is_file():
        return set()
    try:
        old = parse_model(target)
    except ModelError:
        return set()
    locations = external_locations(old)
    return {name for name in locations if is_own_name(name, target.name)}


def used_by_others(target: Path, locations: set[str]) -> set[str]:
    """Which of the data files ``locations`` a file beside ``target`` names: a copy of the old model.

    Where that is not sure, all of them.
    """
    if not locations:
        return set()
    siblings = list(itertools.islice(target.parent.iterdir(), _MAX_SIBLINGS))
    if len(siblings) == _MAX_SIBLINGS:
        return locations
    used: set[str] = set()
    for sibling in siblings:
        if sibling.name in (target.name, *locations) or not sibling.is_file():
            continue
        try:
            # What is larger than a message can be is no model.
            if sibling.stat().st_size <= MAX_MESSAGE_BYTES:
                used |= _named_in(sibling, locations)
        except FileNotFoundError:
            continue
        except OSError:
            return locations
    return used


def _named_in(path: Path, names: set[str]) -> set[str]:
    """Which of ``names`` are in the bytes of a file, which is read a piece at a time."""
    found: set[str] = set()
    overlap = max(len(name.encode()) for name in names) - 1
    before = b""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            content = before + piece
            found |= {name for name in names if name.encode() in content}
            before = content[-overlap:] if overlap else b""
    return found


def is_own_name(name: str, model_name: str) -> bool:
    digest = name.removeprefix(f"{model_name}.").removesuffix(".data")
    return name == f"{model_name}.{digest}.data" and len(digest) == 16 and digest.isalnum()
