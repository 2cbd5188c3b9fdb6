"""How calibration data is shared out: what fits and choices see, and what the shown damage is measured on."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_igpc.calibration.held_samples import HeldSamples, Part

# Fewer samples than this in all leave no part of them for an honest figure.
LEAST_TO_DIVIDE = 20
# A fifth is held out, but at least so many where that leaves half of the data.
_SHARE, _WANTED = 0.2, 100
# Parts of what is held out: each is measured by a fit to everything else.
FOLDS = 4


@dataclass(frozen=True)
class Division:
    """``chosen_by`` is what layouts and fits are chosen by; ``held_out`` is neither fitted to nor
    chosen by where its figure is concerned, ``None`` where there is too little data for one."""

    chosen_by: Part
    held_out: Part | None

    @property
    def everything(self) -> Part:
        """All samples: what the weights that are written are fitted to."""
        return self.chosen_by if self.held_out is None else self.chosen_by.joined(self.held_out)


def held_out_count(total: int) -> int:
    """How many of so many samples are held out by default: a fifth, but 100 where that is at most half.

    None of fewer than 20; an interval on fewer than 100 is too wide to act on, which is why they go so far.
    """
    if total < LEAST_TO_DIVIDE:
        return 0
    return max(round(_SHARE * total), min(_WANTED, total // 2))


def divide(held: HeldSamples, share: float | None = None) -> Division:
    """Hold out a share of the samples.

    Args:
        held: the samples, in the order that was drawn.
        share: in [0, 1), of the samples; 0 holds nothing out. ``None`` for :func:`held_out_count`.

    Nothing is held out of fewer than 20 samples unless a share is given.
    """
    total = len(held)
    if share is not None:
        count = min(round(share * total), total - 1) if share > 0 else 0
        count = max(count, 1) if share > 0 and total > 1 else count
    else:
        count = held_out_count(total)
    chosen_by = Part(held, sorted(held.order[count:]))
    return Division(chosen_by, Part(held, sorted(held.order[:count])) if count else None)
