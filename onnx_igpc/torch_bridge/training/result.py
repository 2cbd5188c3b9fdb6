"""What a fine-tuning run gives, and what came of it in words."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnx_igpc.report.sections import EpochReport, FinetuneReport
from onnx_igpc.report.tree import RewriteReport


@dataclass
class FinetuneResult:
    """What a run gives.

    Attributes:
        model: The trained model.
        report: Its report; ``report.finetune`` tells the run.
        history: A row for each epoch.
        leads: Whether this process is the one of the run that wrote files.
        gained: Whether the model is judged better than the one that was given; where it is not, the
            weights are those that were given.
    """

    model: onnx.ModelProto
    report: RewriteReport
    history: list[EpochReport]
    leads: bool = True
    gained: bool = True

    def summary(self) -> list[str]:
        """What came of it, in lines for a person."""
        run = self.report.finetune
        lines = [f"fine-tuned: loss {self.history[0].loss:.4g} -> {self.history[-1].loss:.4g}"]
        lines += self._judgement(run) if run is not None else []
        lines += self._damage(run)
        if run is not None and (check := run.check):
            lines.append(f"check: onnxruntime is within {check.relative:.1e} of the trained module")
        if run is not None and run.int8 is not None:
            lines.append("next: onnx-igpc quantize; in float it is not what was judged")
        return [*lines, *(f"warning: {text}" for text in self.report.warnings)]

    def _judgement(self, run: FinetuneReport) -> list[str]:
        judged, before = run.judged, run.val_before
        if judged is None:
            return []
        fitted = (
            "" if judged.counted is None else f" (fitted to them: counts as {judged.counted:.4g})"
        )
        change = f"{judged.before:.4g}{fitted} -> {judged.after:.4g}"
        where = f"(epoch {judged.epoch} of {len(self.history)})"
        rounded = "" if run.int8 is None else ", in fake int8"
        lines = [f"loss on {judged.samples} {judged.on} samples{rounded}: {change} {where}"]
        if before is None:
            return lines
        accuracy, agreement = before.accuracy, before.agreement
        if judged.epoch:
            best = self.history[judged.epoch - 1]
            accuracy, agreement = best.val_accuracy, best.val_agreement
        for name, old, new in (
            ("accuracy", before.accuracy, accuracy),
            ("agreement", before.agreement, agreement),
        ):
            if old is not None and new is not None:
                lines.append(f"{judged.on} {name}{rounded}: {old:.2%} -> {new:.2%}")
        return lines

    def _damage(self, run: FinetuneReport | None) -> list[str]:
        damage, earlier = self.report.damage, run.damage_before if run is not None else None
        if damage is None:
            return []
        in_float = ", in float" if run is not None and run.int8 is not None else ""
        if damage.agreement is not None:
            known = earlier.agreement if earlier is not None else None
            start = f"{known:.1%} -> " if known is not None else ""
            return [f"agreement with the original{in_float}: {start}{damage.agreement:.1%}"]
        if damage.relative_error is None:
            return []
        known = earlier.relative_error if earlier is not None else None
        start = f"{known:.3g} -> " if known is not None else ""
        return [f"relative error of {damage.output}{in_float}: {start}{damage.relative_error:.3g}"]
