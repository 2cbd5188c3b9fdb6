"""What was measured before: one small JSON file a race, in a folder of the user's.

A cache never fails: what cannot be read is measured again, what cannot be written is measured again
next time, and :attr:`RaceCache.note` says so.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from onnx_igpc.errors import IgpcError
from onnx_igpc.model_io import write_atomically

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


class RaceCache:
    """Seconds by contender, by the key of the race.

    ``folder`` None keeps nothing beyond this object. ``hits`` and ``misses`` count lookups; ``note``
    says what was wrong with the folder, if anything.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.hits = 0
        self.misses = 0
        self.note: str | None = None
        self._known: dict[str, dict[str, float]] = {}

    def get(self, key: str) -> dict[str, float] | None:
        """The seconds of an earlier race, or ``None``."""
        found = self._known.get(key) or self._read(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._known[key] = found
        return dict(found)

    def put(self, key: str, seconds: Mapping[str, float]) -> None:
        """Keep the seconds of a race."""
        self._known[key] = dict(seconds)
        if self.folder is None:
            return
        text = json.dumps({"version": CACHE_VERSION, "key": key, "seconds": dict(seconds)})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file(key), lambda file: file.write(text.encode()))
        except (OSError, IgpcError) as error:
            self._say(f"the cache cannot be written: {error}")

    def _read(self, key: str) -> dict[str, float] | None:
        if self.folder is None:
            return None
        file = self._file(key)
        try:
            data = json.loads(file.read_text())
            if data["version"] != CACHE_VERSION or data["key"] != key:
                return None
            seconds = {str(name): float(value) for name, value in data["seconds"].items()}
            if not seconds or not all(0 < each < math.inf for each in seconds.values()):
                raise ValueError("times that are none")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._say(f"{file.name} in the cache is damaged ({error}): measured again")
            return None
        return seconds

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def _say(self, note: str) -> None:
        self.note = self.note or f"{self.folder}: {note}"
