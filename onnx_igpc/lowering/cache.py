"""What was measured before: one small JSON file a measurement, in a folder of the user's.

A cache never fails: what cannot be read is measured again, what cannot be written is measured again
next time, and :attr:`RaceCache.note` says so.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from onnx_igpc.errors import IgpcError
from onnx_igpc.graph.model import PathLike, write_atomically

CACHE_VERSION = 1


def default_folder() -> Path:
    """The user's cache folder by the custom of the platform; it need not exist."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        base = Path(given)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base / "onnx-igpc" / "races"


def cache_folder(cache: PathLike | bool) -> Path | None:
    """A given folder; ``True`` is :func:`default_folder`, ``False`` none."""
    if isinstance(cache, bool):
        return default_folder() if cache else None
    return Path(cache)


class RaceCache:
    """Measurements (JSON objects) by their keys.

    ``folder`` None keeps nothing beyond this object. ``hits`` and ``misses`` count lookups; ``note``
    says what was wrong with the folder, if anything.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.hits = 0
        self.misses = 0
        self.note: str | None = None
        self._known: dict[str, dict[str, Any]] = {}

    def get(self, key: str) -> dict[str, Any] | None:
        """What was measured before, or ``None``."""
        found = self._known.get(key) or self._read(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._known[key] = found
        return dict(found)

    def put(self, key: str, measured: Mapping[str, Any]) -> None:
        """Keep a measurement."""
        self._known[key] = dict(measured)
        file = self._file(key)
        if file is None:
            return
        text = json.dumps({"version": CACHE_VERSION, "key": key, "measured": dict(measured)})
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda opened: opened.write(text.encode()))
        except (OSError, IgpcError) as error:
            self._say(f"the cache cannot be written: {error}")

    def damaged(self, key: str) -> None:
        """Say that what :meth:`get` gave is not what belongs there."""
        self._known.pop(key, None)
        self.hits -= 1
        self.misses += 1
        if (file := self._file(key)) is not None:
            self._say(f"{file.name} in the cache is damaged: measured again")

    def _read(self, key: str) -> dict[str, Any] | None:
        file = self._file(key)
        if file is None:
            return None
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if data["version"] != CACHE_VERSION or data["key"] != key:
                return None
            measured: dict[str, Any] = data["measured"]
            if not isinstance(measured, dict) or not measured:
                raise TypeError("nothing measured")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            self._say(f"{file.name} in the cache is damaged: measured again")
            return None
        return measured

    def _file(self, key: str) -> Path | None:
        """Where a measurement is kept; ``None`` without a folder."""
        if self.folder is None:
            return None
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def _say(self, note: str) -> None:
        self.note = self.note or f"{self.folder}: {note}"


def read_seconds(measured: Mapping[str, Any], names: Collection[str]) -> dict[str, float] | None:
    """Seconds by name, if there is a positive number for each of ``names``."""
    try:
        seconds = {name: float(measured[name]) for name in names}
    except (KeyError, TypeError, ValueError):
        return None
    return seconds if all(0 < each < math.inf for each in seconds.values()) else None
