"""A rewrite on calibration data: fitted to it, measured on it, and said so in the report."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from onnx_igpc.calibration.site_fitter import SiteCalibrator
from onnx_igpc.data.batches import Data, data_doubts, data_notes
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.sources import open_data
from onnx_igpc.evaluation.damage import measure_damage
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.lowering.latency import LatencyBudget
from onnx_igpc.passes import GroupPointwise
from onnx_igpc.passes.base import PassResult
from onnx_igpc.planning.budget import learned_layouts, plan_budget
from onnx_igpc.planning.options import CompressOptions
from onnx_igpc.report.tree import RewriteReport
from onnx_igpc.runtime.session_source import AnyModel
from onnx_igpc.sites.find import find_sites

DEFAULT_SAMPLES = 512
_BATCH = 16


@dataclass
class CalibrationRun:
    """The data of one rewrite and what became of it; ``original`` is the model before any pass."""

    original: AnyModel
    data: Data
    sequential: bool = True
    summary: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        original: AnyModel,
        opened: OpenModel,
        source: str | os.PathLike[str] | Data,
        preprocessing: Preprocessing | None = None,
        samples: int = DEFAULT_SAMPLES,
        sequential: bool = True,
    ) -> CalibrationRun:
        """A run on ``source``: data that is opened already, or what :func:`open_data` takes.

        Raises:
            DataError: the data is missing, empty, or does not fit the model's inputs.
            UsageError: options that cannot be used for it.
        """
        if not isinstance(source, (str, os.PathLike)):
            return cls(original, source, sequential)
        inputs = model_inputs(opened.proto)
        data = open_data(source, inputs, preprocessing, samples=samples, batch_size=_BATCH)
        return cls(original, data, sequential)

    def plan(
        self,
        model: OpenModel,
        group: GroupPointwise,
        options: CompressOptions,
        report: RewriteReport,
        progress: Callable[[int, int, str], None] | None = None,
        latency: LatencyBudget | None = None,
    ) -> None:
        """Let the data choose the pass's layouts, where a budget or learned grouping asks for it.

        Raises:
            CheckFailedError: the budget cannot be reached.
            UsageError: measurements to reuse that are those of another model.
            DataError: as :meth:`rewrite`.
        """
        view = GraphView(model)
        sites = [s for s in find_sites(view, group.site_filter) if s.kept_reason is None]
        if options.target is not None:
            cost = count(model)
            plan = plan_budget(model, view, sites, self.data, cost, options, progress, latency)
            report.selection = plan.summary
            layouts = plan.layouts
        elif options.grouping == "learned":
            layouts = learned_layouts(model, view, sites, self.data, group.plan)
        else:
            return
        group.plan = lambda site: layouts[site.name]

    def rewrite(self, model: OpenModel, group: GroupPointwise) -> PassResult:
        """Run the pass with weights and biases that are fitted to the data.

        Raises:
            DataError: no sample could be read, or activations are NaN or infinite.
            ModelError: the model cannot run on the data.
        """
        found = find_sites(GraphView(model), group.site_filter)
        candidates = [site for site in found if site.kept_reason is None]
        wanted = [site for site in candidates if group.plan(site).kept_reason is None]
        with SiteCalibrator(model, wanted, self.data, sequential=self.sequential) as calibrator:
            group.weigh, group.rebias = calibrator.weigh, calibrator.rebias
            result = group.run(model)
            self.summary = calibrator.summary()
        return result

    def fill(self, report: RewriteReport, rewritten: OpenModel) -> None:
        """Put into the report what was done with the data, and the damage measured on it.

        Raises:
            ModelError: the rewritten model cannot run on the data.
        """
        report.calibration = self.summary
        if self.data.preprocessing is not None:
            report.preprocessing = self.data.preprocessing.to_dict()
        report.warnings += [f"calibration data: {doubt}" for doubt in data_doubts(self.data)]
        report.notes += [f"calibration data: {note}" for note in data_notes(self.data)]
        damage = measure_damage(self.original, rewritten, self.data, report=report)
        report.notes += damage.pop("left_out", [])
        report.damage = damage
        report.notes.append("the damage was measured on the data that the weights were fitted to")
        if without := self.summary["without_data"]:
            names = ", ".join(without)
            report.warnings.append(f"{len(without)} sites were fitted without data: {names}")
