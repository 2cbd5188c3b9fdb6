"""Names of files for people: no longer than is needed to tell them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The last part of each path, or the whole of it where several end alike."""
    ends = Counter(PurePath(each).name for each in set(paths))
    return {
        each: name if (name := PurePath(each).name) and ends[name] == 1 else each for each in paths
    }
