"""What options are called: by the Python argument in what is raised, by the flag where commands are read.

An error names the argument in backticks, as in "`lr` must be above 0". The command line and the notes
that are kept in reports, which are read beside commands, say the flag.
"""

from __future__ import annotations

import re

_AS_THEY_ARE = [
    "amp",
    "augment",
    "calibration",
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
    "loss",
    "lr",
    "minimize",
    "optimizer",
    "resize",
    "restart",
    "resume",
    "samples",
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
    "hold_out",
    "label_offset",
    "label_weight",
    "min_agreement",
    "save_sensitivity",
    "weight_decay",
]
FLAGS = {
    **{name: f"--{name.replace('_', '-')}" for name in _AS_THEY_ARE},
    "base": "--recipe",
    "channels_per_group": "--ch",
    "output": "-o",
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
