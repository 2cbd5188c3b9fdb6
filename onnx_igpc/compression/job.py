"""What compress is asked for, with what belongs together checked together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx_igpc.calibration.options import Calibration
from onnx_igpc.compression.plugins import PluginPass
from onnx_igpc.data.batches import Data
from onnx_igpc.data.file_guard import FileGuard
from onnx_igpc.data.sources import Arrays
from onnx_igpc.errors import UsageError
from onnx_igpc.graph.model import OpenModel, PathLike
from onnx_igpc.lowering.options import AUTO, LITERAL, Lowering
from onnx_igpc.planning.options import Budget, Keep, Published
from onnx_igpc.report.sections import OptionsReport
from onnx_igpc.sites.find import SiteFilter


@dataclass(frozen=True)
class Job:
    """What compress is asked for, checked before any work is done."""

    plan: Published | Budget | Keep
    sites: SiteFilter
    calibration: Calibration | None = None
    lowering: Lowering | None = None
    fold_batch_norm: bool = False

    @classmethod
    def of(
        cls,
        plan: Published | Budget | Keep | None,
        sites: SiteFilter | None,
        calibration: Calibration | PathLike | Arrays | Data | None = None,
        lowering: Lowering | None = None,
        fold_batch_norm: bool = False,
    ) -> Job:
        plan = plan or Published()
        if calibration is not None and not isinstance(calibration, Calibration):
            calibration = Calibration(calibration)
        if not isinstance(plan, Published) and plan.quantity.is_latency:
            lowering = lowering or Lowering()
        job = cls(plan, sites or SiteFilter(), calibration, lowering, fold_batch_norm)
        job._check()
        return job

    def _check(self) -> None:
        if isinstance(self.plan, Published):
            if self.plan.form == "paper" and self.lowering is not None:
                raise UsageError(
                    "the paper's form is for training: train it, then use onnx-igpc lower"
                )
            if self.calibration is not None and self.plan.random:
                raise UsageError("random weights are not fitted to data: leave out `calibration`")
        kind = self.lowering.kind if self.lowering is not None else AUTO
        if kind != AUTO and not (kind == LITERAL and self.times):
            raise UsageError(
                f"compress lowers by measurement only, not to {kind!r}: use onnx-igpc lower"
            )
        needs_data = {
            "`target`": isinstance(self.plan, Budget),
            "`keep`": isinstance(self.plan, Keep),
            "`grouping` learned": self.plan.grouping == "learned",
        }
        for option, given in needs_data.items():
            if given and self.calibration is None:
                raise UsageError(f"{option} needs data to choose by: give `calibration`")

    def guard(self, model: OpenModel) -> FileGuard:
        """What the run reads; UsageError where it would write its measurements over some of it."""
        guard = FileGuard()
        guard.reads_model(model)
        if self.calibration is not None:
            guard.reads_data(self.calibration.data, "calibration")
        if not isinstance(self.plan, Published):
            guard.reads(self.plan.sensitivity, "sensitivity")
            guard.writes(self.plan.save_sensitivity, "save_sensitivity")
        guard.check()
        return guard

    @property
    def plans_with_data(self) -> bool:
        """Whether layouts are chosen by calibration data."""
        return not isinstance(self.plan, Published) or self.plan.grouping == "learned"

    @property
    def times(self) -> bool:
        """Whether layouts are chosen by measured time."""
        return not isinstance(self.plan, Published) and self.plan.quantity.is_latency

    @property
    def labelled(self) -> bool:
        """Whether the labels of the calibration data count."""
        return isinstance(self.plan, Keep) and self.plan.kept.labelled

    @property
    def published(self) -> Published:
        """The form and the weights that the plan asks for; a budget's are linear and fitted."""
        return self.plan if isinstance(self.plan, Published) else Published()

    def describe(self, plugins: Sequence[PluginPass] = ()) -> OptionsReport:
        """For the report: everything that decides what is written."""
        published, plan = self.published, self.plan
        options = OptionsReport(
            form=published.form,
            init="random" if published.random else "fitted",
            fold_batch_norm=self.fold_batch_norm,
            include=list(self.sites.include),
            exclude=list(self.sites.exclude),
            include_heads=self.sites.include_heads,
            grouping=plan.grouping,
            seed=published.seed if published.random else None,
            lowering=self.lowering.kind if self.lowering is not None else None,
            passes=[plugin.label for plugin in plugins] or None,
        )
        if not isinstance(plan, Published) and plan.blocks != "auto":
            options.blocks = plan.blocks
        if isinstance(plan, Budget) and plan.channels != "auto":
            options.channels = plan.channels
        if isinstance(plan, Budget):
            return replace(options, target=str(plan.quantity), family=plan.family)
        if isinstance(plan, Keep):
            kept = str(plan.kept)
            return replace(options, keep=kept, minimize=plan.minimize, family=plan.family)
        return replace(options, ch=plan.channels_per_group, scheme=plan.scheme)
