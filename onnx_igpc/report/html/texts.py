"""Numbers and names for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from onnx_igpc.report.html.elements import Child, element

GAP = "\N{NO-BREAK SPACE}"
"""Between a number and its unit, which belong into one line."""


def percent(value: float, digits: int = 1) -> str:
    """A part of 1 in per cent."""
    return f"{100 * value:.{digits}f}{GAP}%"


def milliseconds(value: float) -> str:
    """A time in three digits."""
    return f"{value:.3g}{GAP}ms"


def command(text: str) -> list[Child]:
    """A command line that breaks between its words only, not within an option."""
    made: list[Child] = []
    for word in text.split(" "):
        whole = element("span", {"class": "unbroken"}, word) if word.startswith("-") else word
        made += [" ", whole] if made else [whole]
    return made


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The last part of each path, or the whole of it where several end alike."""
    ends = Counter(PurePath(each).name for each in set(paths))
    return {
        each: name if (name := PurePath(each).name) and ends[name] == 1 else each for each in paths
    }
