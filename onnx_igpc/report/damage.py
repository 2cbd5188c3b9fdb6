"""How damage reads, and from where on it is so large that the reader must be told before all else."""

from __future__ import annotations

from onnx_igpc.errors import with_flags
from onnx_igpc.report.sections import CalibrationReport, DamageReport
from onnx_igpc.report.tree import RewriteReport

LEAST_AGREEMENT = 0.8
"""Below this share of equal answers a model is not one to use as it is."""
MOST_ERROR = 0.3
"""Beyond this relative error of its outputs it is not, either."""
_HALF = 0.5

_TRAIN = "this model needs training (onnx-igpc finetune), or more data"
_TRAIN_BEFORE_LOWERING = (
    "this model needs training before it is lowered, which is final, or more data: compress it (under a budget "
    "of time with `lowering` literal), then finetune, then lower"
)


def ruined(damage: DamageReport) -> bool:
    """Whether more than half of the answers are others, beyond doubt, or half of the power of an output is error."""
    if damage.unknown is not None:
        return False
    if damage.agreement is not None:
        return (damage.interval[1] if damage.interval else damage.agreement) < _HALF
    return damage.relative_error is not None and damage.relative_error**2 > _HALF


def large_damage_warning(damage: DamageReport | None, lowered: bool = False) -> str | None:
    """What the reader must do about large damage; ``None`` where it is small or not known.

    Where nothing was held out, the figure that flatters speaks: the true one is no better.

    Args:
        damage: of the model.
        lowered: the model can no longer be trained.
    """
    judged = damage if damage is None or damage.unknown is None else damage.fitted
    if damage is None or judged is None:
        return None
    agreement, error = judged.agreement, judged.relative_error
    if agreement is not None and agreement < LEAST_AGREEMENT:
        figure = f"agreement {agreement:.1%}"
    elif error is not None and error > MOST_ERROR:
        figure = f"relative error {error:.3g} of output {judged.output or ''}"
    else:
        return None
    on = f"on {judged.samples} samples"
    if judged is not damage:
        on += " that it was fitted to"
    elif damage.fitted is not None:
        on += " not used for the fit"
    return f"{figure} {on}: {with_flags(_TRAIN_BEFORE_LOWERING) if lowered else _TRAIN}"


def figure_text(damage: DamageReport) -> str:
    """``agreement 97.0 % (95 %: 91.5 to 99.0)``, or the relative error."""
    if damage.agreement is not None:
        text = f"agreement {100 * damage.agreement:.1f} %"
        if damage.interval is not None:
            low, high = damage.interval
            text += f" (95 %: {100 * low:.1f} to {100 * high:.1f})"
        return text
    if damage.relative_error is not None:
        return f"error {damage.relative_error:.3g}, relative, of output {damage.output}"
    return "error unknown"


def ordered_warnings(report: RewriteReport) -> list[str]:
    """The warnings of a report, that of large damage first, as the model is now."""
    lowered = report.lowering is not None
    large = large_damage_warning(report.damage, lowered)
    before = large_damage_warning(report.damage, not lowered)
    others = [text for text in report.warnings if text not in (large, before)]
    return list(dict.fromkeys([*([large] if large else []), *others]))


def held_out_text(calibration: CalibrationReport) -> str | None:
    """How many samples were held out, in words; ``None`` in reports that do not say."""
    if calibration.held_out is None:
        return None
    if calibration.held_out and calibration.held_out >= calibration.samples:
        return f"all {calibration.samples} samples held out in turn"
    return f"{calibration.held_out or 'none'} of {calibration.samples} samples held out"
