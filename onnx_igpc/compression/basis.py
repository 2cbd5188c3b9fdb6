"""What a rewrite on calibration data stands on: the data shared out, trials, and the figure of damage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from onnx_igpc.calibration.division import FOLDS, Division, divide
from onnx_igpc.calibration.held_samples import HeldSamples, Part
from onnx_igpc.calibration.options import Calibration, Fit
from onnx_igpc.calibration.site_fitter import SiteCalibrator
from onnx_igpc.compression.fisher import known_fisher
from onnx_igpc.compression.rewrite import Rewriter
from onnx_igpc.compression.summary import Original, describe
from onnx_igpc.data.batches import Data
from onnx_igpc.data.progress import Progress
from onnx_igpc.errors import UsageError
from onnx_igpc.evaluation.damage import joined_damage, measure_damage
from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel, snapshot
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.planning.promise import Promise
from onnx_igpc.planning.search import Plan
from onnx_igpc.planning.trials import Trials
from onnx_igpc.report.sections import CalibrationReport, DamageReport, OptionsReport
from onnx_igpc.runtime.session_source import AnyModel
from onnx_igpc.sites.find import FoundSites, SiteFilter

TOO_FEW = (
    "{samples} samples are too few to hold some of them out: "
    "give 20 or more, or measure with onnx-igpc verify on other data"
)
ENOUGH = 200
"""Held-out samples whose interval is narrow enough: with fewer, the parts of the data are exchanged too."""

BLOCK_FIT = "residual blocks one after another, by least squares"
CHANNEL_FIT = "fewer channels in one place after another, by least squares"
NONE_HELD_OUT = "no data was held out: measure with onnx-igpc verify on other data"


@dataclass
class Basis:
    """Calibration data, shared out, for one model; :meth:`close` lets go of it.

    ``fit`` is how the sites are fitted, once that is chosen, ``fits`` the damages that it was chosen by.
    ``by_default``: the share that is held out was not asked for.
    """

    division: Division
    trials: Trials
    held: HeldSamples
    allowed: tuple[bool, ...]
    by_default: bool = False
    fit: Fit = field(default_factory=Fit)
    fits: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, model: OpenModel, found: FoundSites, data: Data, calibration: Calibration) -> Basis:
        """Read the data and share it out.

        Raises:
            DataError: no sample could be read.
            ModelError: the model cannot run on the data.
        """
        held = HeldSamples(data, model_inputs(model.proto))
        try:
            division = divide(held, calibration.holdout)
            fisher, notes = known_fisher(model, found, division.chosen_by)
        except BaseException:
            held.close()
            raise
        allowed = (True, False) if calibration.sequential is None else (calibration.sequential,)
        trials = Trials(model, found, division.chosen_by, fisher)
        return cls(division, trials, held, allowed, calibration.holdout is None, notes=notes)

    @property
    def fisher(self) -> Mapping[str, np.ndarray]:
        """The Fisher information of the sites' outputs, as far as it is known."""
        return self.trials.fisher

    @property
    def held_out_size(self) -> int:
        """Samples that are held out."""
        return self.division.held_out.size if self.division.held_out is not None else 0

    @property
    def exchangeable(self) -> bool:
        """Whether so little is held out that the figure is worth measuring on the other part as well."""
        return self.by_default and 0 < self.held_out_size < ENOUGH

    def exchanged(self) -> Basis:
        """The same data with the parts exchanged: what was chosen by is held out, and the other way round.

        The samples stay those of this basis, which closes them.
        """
        assert self.division.held_out is not None
        division = Division(self.division.held_out, self.division.chosen_by)
        model, found = self.trials.model, self.trials.found
        fisher, _ = known_fisher(model, found, division.chosen_by)
        trials = Trials(model, found, division.chosen_by, fisher)
        return Basis(division, trials, self.held, self.allowed)

    def check_promise(self, promise: Promise) -> None:
        """Refuse a promise that so much data could not show to hold.

        Raises:
            UsageError: too few samples are held out, or the data is not labelled.
        """
        needed = promise.fewest_samples()
        if self.held_out_size < needed:
            raise UsageError(
                f"to show that {promise} holds takes {needed} held-out samples or more, here are "
                f"{self.held_out_size}: give more data, or a larger `holdout`"
            )
        if promise.labelled and not self.held.source.labelled:
            raise UsageError(f"{promise} takes labelled data: images in a folder for each class")

    def close(self) -> None:
        """Let go of the samples."""
        self.trials.close()
        self.held.close()

    def choose_fit(self, planned: Plan, progress: Progress | None = None) -> None:
        """Choose how the sites of a plan are fitted, by what holds on data that was left out."""
        if progress is not None:
            progress(0, 1, "how to fit, chosen on data left out of the fits")
        self.fit, tried = self.trials.choose_fit(planned.layouts, self.allowed, planned.starts)
        self.fits = {label: damage.value for label, damage in tried.items()}

    def calibrator(
        self,
        model: OpenModel,
        found: FoundSites,
        layouts: Mapping[str, GroupLayout],
        data: Part,
        starts: Mapping[str, IgpcWeights] | None = None,
    ) -> SiteCalibrator:
        """Fits the sites that a plan rewrites, as was chosen."""
        wanted = [site for site in found.rewritable if layouts[site.name].kept_reason is None]
        return SiteCalibrator(
            model,
            wanted,
            data,
            fit=self.fit,
            fisher=self.fisher,
            starts=starts,
            moments=partial(self.trials.moments.of, data),
        )

    def complete(self, used: CalibrationReport, planned: Plan) -> CalibrationReport:
        """The report of the final fit of a plan, with how the fit was chosen."""
        used.chosen_by = self.fits or None
        if planned.restructures:
            used.fit, used.sequential = BLOCK_FIT if planned.blocks else CHANNEL_FIT, True
        return used


@dataclass(frozen=True)
class HeldOutMeasure:
    """Measures a plan on held-out data: each part by a fit to all other data.

    Args:
        original: the model before anything was done to it, and what is known of it.
        model: the model that is rewritten, as it is before that.
        site_filter: which sites may be rewritten.
        options: for the report of each rewrite.
        labelled: measure the change of accuracy too.
    """

    original: AnyModel
    known: Original
    model: OpenModel
    site_filter: SiteFilter
    options: OptionsReport
    labelled: bool = False

    def damage(self, basis: Basis, planned: Plan, progress: Progress | None = None) -> DamageReport:
        """The damage on held-out data; without a figure where nothing was held out.

        Raises:
            DataError: activations that are not finite.
            ModelError: a model cannot run on the data.
        """
        division = basis.division
        if division.held_out is None:
            few = TOO_FEW.format(samples=division.everything.size)
            return DamageReport(samples=0, unknown=few if basis.by_default else NONE_HELD_OUT)
        parts = division.held_out.folds(FOLDS)
        found = []
        for number, part in enumerate(parts):
            if progress is not None:
                progress(number, len(parts), "damage, on data left out of the fit")
            rest = division.everything.without(part)
            rewriter = Rewriter(snapshot(self.model), self.known.digest)
            sites = rewriter.find(self.site_filter)
            sites = rewriter.restructure(sites, planned, rest, self.site_filter)
            layouts = planned.for_sites(sites)
            with basis.calibrator(
                rewriter.model, sites, layouts, rest, planned.starts
            ) as calibrator:
                rewriter.rewrite(sites, layouts, calibrator)
            rewriter.settle(checked=False)
            report = describe(self.known, rewriter.changes, rewriter.model, self.options)
            found.append(
                measure_damage(
                    self.original, rewriter.model, part, report=report, labelled=self.labelled
                )
            )
        return joined_damage(found)
