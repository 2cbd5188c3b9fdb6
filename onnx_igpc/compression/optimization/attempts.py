"""The steps that make models and measure them: each calls one public function, and knows its command."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from onnx_igpc.compression.optimization.task import SENSITIVITY, STEPS, Task
from onnx_igpc.compression.optimization.workbench import LeftOutError, Workbench
from onnx_igpc.compression.pipeline import compress
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import CheckFailedError, first_line
from onnx_igpc.evaluation.damage import damage_of
from onnx_igpc.evaluation.verify import DEFAULT_SETTING, verify
from onnx_igpc.lowering.lower import lower_model
from onnx_igpc.lowering.options import LITERAL
from onnx_igpc.lowering.quantization.options import Quantization
from onnx_igpc.lowering.quantization.quantize import quantize_model
from onnx_igpc.lowering.site_races import DENSE
from onnx_igpc.planning.options import Budget
from onnx_igpc.report.damage import figure_text
from onnx_igpc.report.optimization import ORIGINAL
from onnx_igpc.report.result import CompressResult
from onnx_igpc.report.verification import VerifyReport
from onnx_igpc.runtime.racing import Interval
from onnx_igpc.sites.find import SiteFilter

QUANTITY = "pointwise-macs"
"""What cuts are made in: of all counts the one that is nearest to time."""


@dataclass(frozen=True)
class Attempts:
    """Steps at a workbench for a task; each returns whether it is done."""

    task: Task
    bench: Workbench

    def fold(self, point: str) -> bool:
        """The original with BatchNormalization folded, and nothing else."""

        def make(_: Progress) -> None:
            every = SiteFilter(exclude="*")
            result = compress(self.task.model, sites=every, fold_batch_norm=True)
            if not result.changed:
                raise LeftOutError("there is no BatchNormalization to fold")
            self._save(result, point)

        output = self.task.file(point)
        line = self.task.command(
            "compress", self.task.model, o=output, fold_batch_norm=True, exclude="*"
        )
        return self.bench.step(point, "fold", lambda: line, make)

    def quantize(self, point: str, source: str, *, kept: bool = False) -> bool:
        """int8 of a model; ``kept``: the layers at both ends stay in float."""
        options = Quantization(exclude_first=kept, exclude_heads=kept, setting=self.task.setting)

        def make(progress: Progress) -> str | None:
            result = quantize_model(
                self._path(source), self.task.calibration, quantization=options, progress=progress
            )
            self._save(result, point)
            said = result.report.quantization
            return None if said is None else f"ranges by {said.method}"

        line = self.task.command(
            "quantize",
            self.task.place(source),
            o=self.task.file(point),
            exclude_first=kept,
            exclude_heads=kept,
            **self.task.fitting,
            **self.task.where,
        )
        return self.bench.step(point, "quantize", lambda: line, make)

    def cut(self, point: str, share: int, *, first: bool) -> bool:
        """The cut that leaves a share; the first one measures what the others use, too."""
        target = f"{QUANTITY}={share}%"
        kept = self.bench.file(SENSITIVITY)

        def make(progress: Progress) -> str:
            budget = Budget(
                target,
                sensitivity=None if first else kept,
                save_sensitivity=kept if first else None,
            )
            self.bench.file(STEPS).mkdir(exist_ok=True)
            result = compress(
                self.task.model, budget, calibration=self.task.calibration, progress=progress
            )
            if not result.report.rewritten:
                raise LeftOutError("no pointwise convolution can be rewritten")
            self._save(result, point)
            return f"{len(result.report.rewritten)} pointwise convolutions rewritten"

        line = self.task.command(
            "compress",
            self.task.model,
            o=self.task.file(point),
            target=target,
            save_sensitivity=SENSITIVITY if first else None,
            sensitivity=None if first else SENSITIVITY,
            holdout=self.task.calibration.holdout,
            **self.task.fitting,
        )
        return self.bench.step(point, "compress", lambda: line, make)

    def shorten(self, point: str, share: int) -> bool:
        """The original with so many residual blocks collapsed that a share of its time is left."""
        target = f"latency={share}%"

        def make(progress: Progress) -> str:
            self.bench.file(STEPS).mkdir(exist_ok=True)
            try:
                result = compress(
                    self.task.model,
                    Budget(target, blocks="only"),
                    calibration=self.task.calibration,
                    lowering=replace(self.task.options.lowering, kind=LITERAL),
                    progress=progress,
                )
            except CheckFailedError as error:
                raise LeftOutError(first_line(error)) from None
            self._save(result, point)
            return f"{len(result.report.blocks)} residual blocks collapsed"

        line = self.task.command(
            "compress",
            self.task.model,
            o=self.task.file(point),
            target=target,
            blocks="only",
            lowering=LITERAL,
            holdout=self.task.calibration.holdout,
            **self.task.fitting,
            **self.task.where,
            **self.task.batch,
            shape=self.task.setting.shapes,
        )
        return self.bench.step(point, "compress", lambda: line, make)

    def lower(self, point: str, source: str) -> bool:
        """A cut written for where it will run."""

        def make(progress: Progress) -> str | None:
            result = lower_model(
                self._path(source), lowering=self.task.options.lowering, progress=progress
            )
            self._save(result, point)
            said = result.report.lowering
            assert said is not None
            if all(site.lowering == DENSE for site in said.sites.values()):
                self.bench.journal.write(f"speed {point}", Interval(1.0, 1.0, 1.0))
                return "every layer is faster dense"
            if said.model is None or DENSE not in said.model.speedup:
                return said.counts
            speed = Interval(*said.model.speedup[DENSE])
            self.bench.journal.write(f"speed {point}", speed)
            return f"{speed.value:.2f} x as fast as dense"

        line = self.task.command(
            "lower",
            self.task.place(source),
            o=self.task.file(point),
            **self.task.where,
            **self.task.batch,
            shape=self.task.setting.shapes,
        )
        return self.bench.step(point, "lower", lambda: line, make)

    def speed(self, point: str) -> Interval | None:
        """How much faster than dense a lowered cut was when it was lowered, where that is known."""
        return self.bench.journal.read(f"speed {point}", Interval)

    def measure(self, point: str, data: Dataset | None = None, part: str = "") -> bool:
        """Compare a model with the original, on what is chosen by unless other data is named."""
        data = data or self.task.judge
        name = f"verify {point}" + (f" on {part}" if part else "")
        setting = replace(
            DEFAULT_SETTING, provider=self.task.setting.provider, threads=self.task.setting.threads
        )

        def make(progress: Progress) -> str:
            found = verify(
                self.task.model,
                self._path(point),
                data,
                setting=setting,
                progress=lambda done, total: progress(done, total, ""),
            )
            self.bench.journal.write(f"found {name}", found)
            return figure_text(damage_of(found))

        models = self.task.model, self.task.place(point)
        line = self.task.command("verify", *models, **self.task.data(data), **self.task.provider)
        # What is stated of the chosen model is measured whatever the time, and what all is compared with.
        needed = point == ORIGINAL or bool(part)
        return self.bench.step(name, "verify", lambda: line, make, needed=needed)

    def found(self, point: str, part: str = "") -> VerifyReport:
        """What :meth:`measure` found."""
        name = f"verify {point}" + (f" on {part}" if part else "")
        found = self.bench.journal.read(f"found {name}", VerifyReport)
        assert found is not None
        return found

    def _path(self, point: str) -> Path:
        return self.task.model if point == ORIGINAL else self.bench.file(self.task.file(point))

    def _save(self, result: CompressResult, point: str) -> None:
        self.bench.file(STEPS).mkdir(exist_ok=True)
        result.save(self.bench.file(self.task.file(point)))
