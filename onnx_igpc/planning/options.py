"""What compress is asked for: one frozen record, checked before any work is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx_igpc.errors import UsageError
from onnx_igpc.layout.schemes import SCHEMES
from onnx_igpc.planning.knapsack import Target
from onnx_igpc.report.sections import OptionsReport
from onnx_igpc.sites.rewrite import Form

DEFAULT_CH = 16
FAMILIES = ("published", "extended")
GROUPINGS = ("learned", "contiguous")


@dataclass(frozen=True)
class CompressOptions:
    """What :func:`~onnx_igpc.compression.pipeline.compress` is asked for; see there."""

    channels_per_group: int = DEFAULT_CH
    scheme: str = "v2"
    form: Form = "linear"
    init: str = "fitted"
    seed: int = 0
    fold_batch_norm: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include_heads: bool = False
    target: Target | None = None
    family: str = "published"
    grouping: str = "contiguous"
    sensitivity: Path | None = None
    save_sensitivity: Path | None = None
    passes: tuple[str, ...] = ()
    lowering: str = "literal"

    def described(self) -> OptionsReport:
        """For the report: everything that decides what is written."""
        budget = self.target is not None
        return OptionsReport(
            form=self.form,
            init=self.init,
            fold_batch_norm=self.fold_batch_norm,
            include=list(self.include),
            exclude=list(self.exclude),
            include_heads=self.include_heads,
            grouping=self.grouping,
            ch=None if budget else self.channels_per_group,
            scheme=None if budget else self.scheme,
            target=str(self.target) if budget else None,
            family=self.family if budget else None,
            seed=self.seed if self.init == "random" else None,
            lowering=self.lowering if self.lowering != "literal" else None,
            passes=list(self.passes) or None,
        )

    def check(self, calibrated: bool) -> None:
        """Refuse what cannot be used, or not together.

        Raises:
            UsageError: one line that names the option.
        """
        if self.channels_per_group < 1:
            raise UsageError(f"--ch must be at least 1, not {self.channels_per_group}")
        for option, value, known in (
            ("--scheme", self.scheme, SCHEMES),
            ("--form", self.form, ("linear", "paper")),
            ("--init", self.init, ("fitted", "random")),
            ("--family", self.family, FAMILIES),
            ("--grouping", self.grouping, GROUPINGS),
            ("--lowering", self.lowering, ("literal", "auto")),
        ):
            if value not in known:
                raise UsageError(f"{option} must be one of {', '.join(known)}, not {value!r}")
        if self.form == "paper" and self.lowering != "literal":
            raise UsageError("the paper's form is for training: train it, then use onnx-igpc lower")
        if calibrated and self.init == "random":
            raise UsageError("random weights are not fitted to data: leave out --calibration")
        needs_data = {
            "--target": self.target is not None,
            "--grouping learned": self.grouping == "learned",
        }
        for option, given in needs_data.items():
            if given and not calibrated:
                raise UsageError(f"{option} needs data to choose by: give --calibration")
        if self.target is None:
            if self.family == "extended":
                raise UsageError("--family extended is chosen from by a budget: give --target")
            if self.sensitivity or self.save_sensitivity:
                raise UsageError("--sensitivity belongs to a budget: give --target")


def chosen_init(form: str, init: str | None) -> str:
    """``init``, or what suits the form.

    Raises:
        UsageError: fitted weights for the paper's form.
    """
    if form == "paper" and init == "fitted":
        raise UsageError(
            "the paper's form cannot be fitted to the dense weights: "
            "use the linear form, or leave out --init fitted"
        )
    return init or ("random" if form == "paper" else "fitted")
