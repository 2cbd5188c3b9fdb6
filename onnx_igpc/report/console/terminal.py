"""Text from models and data on a terminal: nothing in a name may steer it.

Names in a model are anybody's. An escape sequence among them could clear the screen, rewrite what was
printed before, or turn the direction of a line round; it is shown as what it is instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

# Control characters but for the line feed, and those that change the direction of text.
_STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """``text`` with what steers a terminal written as an escape, as in ``\\x1b``; lines stay lines."""
    return _STEERING.sub(lambda found: ascii(found.group())[1:-1], text)


class SafeConsole(Console):
    """A console on which only its own styles steer the terminal."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not _STEERING.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)
