"""Elements of the page. Whatever text goes in is text on the page: the only way to write it escapes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from xml.etree import ElementTree

Element = ElementTree.Element
Child = str | Element | None | Iterable["Child"]

# Control characters, what turns the direction of text, line separators and halves of surrogate pairs:
# a browser would show them as nothing, as something else, or let them move what stands beside them.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def element(tag: str, attributes: Mapping[str, object] | None = None, *children: Child) -> Element:
    """An element with the children in order; strings are text, ``None`` is nothing.

    An attribute that is ``None`` or ``False`` is left out, ``True`` is an empty one.
    """
    made = ElementTree.Element(tag)
    for name, value in (attributes or {}).items():
        if value is not None and value is not False:
            made.set(name, "" if value is True else visible(str(value)))
    _append(made, children)
    return made


def visible(text: str) -> str:
    """The text with characters that cannot be seen written out, as ``\\u202e``."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def verbatim(tag: str, text: str) -> Element:
    """A script or style of ours, which HTML does not escape.

    Raises:
        ValueError: the text would end the element.
    """
    if tag not in ("script", "style") or "</" in text:
        raise ValueError(f"not the text of a {tag}")
    made = ElementTree.Element(tag)
    made.text = text
    return made


def to_html(root: Element) -> str:
    """The document as text."""
    return "<!doctype html>\n" + ElementTree.tostring(root, encoding="unicode", method="html")


def _append(parent: Element, children: Iterable[Child]) -> None:
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            _append_text(parent, visible(child))
        elif isinstance(child, Element):
            parent.append(child)
        else:
            _append(parent, child)


def _append_text(parent: Element, text: str) -> None:
    if len(parent):
        parent[-1].tail = (parent[-1].tail or "") + text
    else:
        parent.text = (parent.text or "") + text
