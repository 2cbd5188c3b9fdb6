"""How long-running functions tell how far they are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, in all or 0, what is being done or is next)."""

_STEPS = 1000


def portion(progress: Progress | None, begin: float, end: float) -> Progress | None:
    """What a part of some work tells, as progress of the whole.

    Args:
        progress: of the whole, of which it is told in thousandths.
        begin, end: where the part begins and ends, from 0 to 1, by the time that it takes.
    """
    if progress is None:
        return None

    def tell(done: int, total: int, what: str) -> None:
        at = begin + (end - begin) * (min(done / total, 1.0) if total else 0.0)
        progress(round(_STEPS * at), _STEPS, what)

    return tell
