"""What became of the model's answers: lines of the ledger about damage, agreement and accuracy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnx_igpc.report.damage import large_damage_warning
from onnx_igpc.report.html.texts import GAP, percent
from onnx_igpc.report.numbers import exact
from onnx_igpc.report.sections import DamageReport, MeasuredOn
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.report.verification import ClassifierResult, VerifyReport


@dataclass(frozen=True)
class Entry:
    """A line of the ledger: texts, and both bars as parts of the whole width, ``None`` for no bar.

    ``missing`` says how to get what is not known, in the place of everything else, and the command, if
    one does. ``between`` are the ends of an interval around the bar after, ``style`` is that bar's.
    """

    label: str
    detail: str = ""
    before: str = "–"
    after: str = "–"
    change: str = ""
    bars: tuple[float | None, float | None] = (None, None)
    missing: tuple[str, str] | None = None
    worse: bool = False
    between: tuple[float, float] | None = None
    style: str = "after"


def answers(report: RewriteReport, title: str) -> list[Entry]:
    """How far the model's answers are from the original's, or how to measure it."""
    verified = report.verify
    entries = _verified(verified) if verified is not None else []
    if verified is None or verified.random:
        entries += _damage(report)
    if verified is None:
        line = f"onnx-igpc verify ORIGINAL.onnx {title} --data DATA --report FILE.html"
        entries.append(Entry("Accuracy", missing=("not measured:", line)))
    return entries


def _damage(report: RewriteReport) -> list[Entry]:
    """What the rewrite did to the answers, and beside it the figure that flatters, named as such."""
    damage = report.damage
    if damage is None:
        return []
    on = MeasuredOn.said_in(report.notes)
    detail = f"on {exact(damage.samples)} samples" + (f" of {on}" if on else "")
    if damage.unknown is not None:
        entries = [Entry("Damage", missing=(damage.unknown, ""))]
    else:
        entries = _figures(damage, detail)
        if large_damage_warning(damage) is not None:
            entries[0] = replace(entries[0], worse=True, change="needs training")
    if damage.fitted is not None:
        detail = f"on {exact(damage.fitted.samples)} samples that it was fitted to, which flatters"
        fitted = _figures(replace(damage.fitted, interval=None, kl=None), detail)
        entries += [replace(each, style="kept") for each in fitted]
    return entries


def _figures(damage: DamageReport, detail: str) -> list[Entry]:
    if damage.agreement is not None:
        entry = _agreement(damage.agreement, detail)
        if damage.interval is not None:
            low, high = damage.interval
            text = f"{detail}; 95{GAP}% interval {percent(low)} to {percent(high)}"
            entry = replace(entry, detail=text, between=damage.interval)
        if damage.kl is None:
            return [entry]
        text = f"Kullback-Leibler of class probabilities, nats, {detail}"
        return [entry, Entry("Divergence from the original", text, after=f"{damage.kl:.3g}")]
    if damage.relative_error is not None:
        return [_relative(damage.relative_error, f"of output {damage.output or ''}, {detail}")]
    return []


def _verified(verified: VerifyReport) -> list[Entry]:
    entries = []
    if (classifier := verified.classifier) is not None:
        entries += _labelled(classifier)
        on = f"on {exact(classifier.samples)} samples"
        entries.append(_agreement(classifier.agreement, on))
    elif (worst := verified.worst_output) is not None:
        on = " on random inputs" if verified.random else f", {exact(verified.samples)} samples"
        entries.append(_relative(worst.relative_norm or 0.0, f"of output {worst.name}{on}"))
    for name, value in (verified.metric or {}).items():
        entries.append(Entry(name, "your metric", after=f"{value:.6g}"))
    return entries


def _labelled(classifier: ClassifierResult) -> list[Entry]:
    if classifier.original is None or classifier.candidate is None:
        return []
    entries = []
    for label, before, after in (
        ("Top-1 accuracy", classifier.original.top1, classifier.candidate.top1),
        ("Top-5 accuracy", classifier.original.top5, classifier.candidate.top5),
    ):
        if before is None or after is None:
            continue
        entries.append(
            Entry(
                label,
                f"on {exact(classifier.samples)} samples",
                percent(before),
                percent(after),
                f"{_signed(100 * (after - before))} points",
                (before, after),
                worse=after < before,
            )
        )
    return entries


def _agreement(value: float, detail: str) -> Entry:
    return Entry(
        "Same top-1 answer as the original",
        detail,
        after=percent(value),
        bars=(None, value),
    )


def _relative(error: float, detail: str) -> Entry:
    return Entry(
        "Relative difference from the original",
        detail,
        after=f"{100 * error:.3g}{GAP}%",
        bars=(None, min(error, 1.0)),
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−") if round(value, 1) else "0.0"
