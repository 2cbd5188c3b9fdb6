"""Arguments that may be one or several."""

from __future__ import annotations

from collections.abc import Iterable

from onnx_igpc.errors import UsageError


def texts(name: str, given: str | Iterable[str] | None) -> tuple[str, ...]:
    """One text or several as a tuple: a single one is not taken letter by letter.

    ``name`` is how the argument is called.

    Raises:
        UsageError: it is something else.
    """
    if given is None:
        return ()
    several = (given,) if isinstance(given, str) else given
    if not isinstance(several, Iterable):
        raise UsageError(f"{name} takes one text or several, not {given!r}")
    found = tuple(several)
    for each in found:
        if not isinstance(each, str):
            raise UsageError(f"{name} takes one text or several, not {each!r}")
    return found
