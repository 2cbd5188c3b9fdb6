"""The errors a user can meet: one line that says what is wrong, where, and what to do.

The exit code is part of each class, so that the command line maps an error to it in one place:
1, a check did not hold (verification failed, a budget cannot be reached); 2, usage or unreadable
input.

A message names a Python argument in backticks, as in "`lr` must be above 0". The command line and the
notes that are kept in reports, which are read beside commands, say the flag: :func:`with_flags`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class IgpcError(Exception):
    """Base of every error that is the user's to mend; ``str(error)`` is one line."""

    exit_code = 2


class UsageError(IgpcError):
    """An option or argument that cannot be used as given."""


class ModelError(IgpcError):
    """A model file or graph that cannot be read, is broken, or is not supported."""


class DataError(IgpcError):
    """Calibration, verification or training data that cannot be used."""


class MissingExtraError(IgpcError):
    """An optional dependency that the requested command needs is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: "
            f"pip install 'onnx-igpc[{extra}]' brings it"
        )


class CheckFailedError(IgpcError):
    """A check on otherwise usable input did not hold."""

    exit_code = 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``". Did you mean 'cuda'?"`` for the nearest of the known words, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f". Did you mean {near[0]!r}?" if near else ""


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


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


_AS_THEY_ARE = [
    "amp",
    "augment",
    "blocks",
    "calibration",
    "channels",
    "crop",
    "data",
    "device",
    "exclude",
    "family",
    "form",
    "freeze",
    "grouping",
    "holdout",
    "include",
    "init",
    "keep",
    "log",
    "lowering",
    "loss",
    "lr",
    "minimize",
    "optimizer",
    "precision",
    "resize",
    "restart",
    "resume",
    "samples",
    "scale",
    "schedule",
    "scheme",
    "scores",
    "seed",
    "sensitivity",
    "target",
    "teacher",
    "temperature",
    "val",
    "warmup",
    "workers",
    "batch_norm",
    "batch_size",
    "epochs",
    "features",
    "feature_loss",
    "front",
    "hold_out",
    "interpolation",
    "int8_share",
    "label_offset",
    "label_weight",
    "cache_size",
    "views",
    "min_agreement",
    "save_sensitivity",
    "weight_decay",
]
FLAGS = {
    **{name: f"--{name.replace('_', '-')}" for name in _AS_THEY_ARE},
    "base": "--recipe",
    "channels_per_group": "--ch",
    "output": "-o",
    "seconds": "--time",
    "sequential=False": "--no-sequential",
    "shapes": "--shape",
}
"""The flag of each argument that a message names."""

_PHRASES = {"a `teacher`": "--teacher ORIGINAL", "sizes in `shapes`": "a --shape"}


def with_flags(text: str) -> str:
    """A message of the library with flags in the place of the arguments that stand in backticks."""
    for phrase, flag in _PHRASES.items():
        text = text.replace(phrase, flag)
    return re.sub(r"`([\w=]+)`", lambda found: FLAGS.get(found[1], found[0]), text)
