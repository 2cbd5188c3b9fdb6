"""Weights and biases for the sites of one model, fitted to data: what a rewrite asks site by site."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnx_igpc.calibration.collect import collect_moments, untapped_reason
from onnx_igpc.calibration.options import Fit
from onnx_igpc.calibration.sequential import SequentialCalibration
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.data.batches import Data
from onnx_igpc.fitting.calibrated import corrected_bias, fit_calibrated
from onnx_igpc.fitting.fit import TOLERANCE, fit_layout
from onnx_igpc.fitting.moments import Moments, SiteStatistics
from onnx_igpc.fitting.output_metric import OutputMetric
from onnx_igpc.fitting.weights import IgpcWeights, igpc_matrix, relative_error
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.report.sections import CalibrationReport
from onnx_igpc.sites.find import Rewritable

LOAD = 2.0
"""Correlations of a Fisher information are divided by 1 + this: a few hundred samples do not show them well."""


class SiteCalibrator:
    """Fits the sites of a model in graph order; a context manager.

    For each site, :meth:`weigh` where its weight is new, then :meth:`rebias`. Sites that share a
    weight share the fit, over the moments of all of them, and each has a bias of its own. In sequence,
    the moments of the later ones of them are the original's, since what comes before is not yet
    rewritten.

    Args:
        model: the model, which must not be edited while this is in use.
        sites: every site that may be asked for, from any view of the model.
        data: batches of all inputs of the model.
        fit: how the sites are fitted.
        fisher: the Fisher information of the sites' outputs by name, shape (F, F), for the metric of
            that name; a site that is missing there is fitted in BatchNorm's.
        starts: weights by site that are near already: a few steps from them will do.
        tolerance: of the fits of other sites.
        threads: of onnxruntime, its own choice if ``None``.
        moments: gives what the taps of the sites read of this data, where that is known.
    """

    def __init__(
        self,
        model: OpenModel,
        sites: Sequence[Rewritable],
        data: Data,
        *,
        fit: Fit | None = None,
        fisher: Mapping[str, np.ndarray] | None = None,
        starts: Mapping[str, IgpcWeights] | None = None,
        tolerance: float = TOLERANCE,
        threads: int | None = None,
        moments: Callable[[], Mapping[Tap, Moments]] | None = None,
    ) -> None:
        self._started = time.perf_counter()
        self._data = data
        self._fit = fit or Fit()
        self._fisher = (fisher or {}) if self._fit.metric == "fisher" else {}
        self._starts = starts or {}
        self._tolerance = tolerance
        self._sequence: SequentialCalibration | None = None
        self._sharing = _sites_by_weight(sites)
        self._without_data: dict[str, str] = {}
        self._samples: int | None = None
        if self._fit.sequential:
            self._sequence = SequentialCalibration(model, sites, data, threads=threads)
            later = [site for group in self._sharing.values() for site in group[1:]]
            wanted = list({id(site): site for site in later}.values())
        else:
            wanted = list(sites)
        taps = [Tap.of(site) for site in wanted if untapped_reason(site) is None]
        self._moments: Mapping[Tap, Moments] = {}
        if taps:
            known = moments() if moments is not None else None
            self._moments = known or collect_moments(model, taps, data, threads=threads)

    def __enter__(self) -> SiteCalibrator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all activations."""
        if self._sequence is not None:
            self._sequence.close()

    def statistics(self, site: Rewritable) -> SiteStatistics | None:
        """Of the input of ``site``; ``None`` where it cannot be observed.

        Raises:
            DataError: no sample could be read, or the input is NaN or infinite somewhere.
            ModelError: the model cannot run on the data.
        """
        if self._sequence is not None:
            return self._sequence.statistics(site)
        return self._from_moments(site)

    def shared_statistics(self, site: Rewritable) -> SiteStatistics | None:
        """As :meth:`statistics`, over ``site`` and all sites after it that have the same weight."""
        sharing = self._sharing.get(_key(site), [])
        others = [self._from_moments(each) for each in sharing if _key(each) != _key(site)]
        parts = [self.statistics(site), *others]
        known = [part for part in parts if part is not None]
        return SiteStatistics.pooled(known) if known else None

    def _from_moments(self, site: Rewritable) -> SiteStatistics | None:
        if untapped_reason(site) is not None:
            return None
        moments = self._moments.get(Tap.of(site))
        return SiteStatistics.unchanged(moments) if moments else None

    def weigh(
        self, site: Rewritable, layout: GroupLayout, scale: np.ndarray | None
    ) -> tuple[IgpcWeights, float]:
        """Weights of K and L and their relative error; without data where there are no statistics.

        The error is that of :func:`~onnx_igpc.fitting.calibrated.calibrated_error`, and E|(W - M) x|^2 /
        E|W x|^2 for white x where the fit is without data. Raises as :meth:`statistics`.
        """
        weight = site.weight_matrix().astype(np.float64)
        statistics = self.shared_statistics(site)
        if statistics is None:
            weights = fit_layout(layout, weight, filter_scale=scale)
            return weights, relative_error(weight, igpc_matrix(layout, weights))
        fit = fit_calibrated(
            layout,
            weight,
            None,
            statistics,
            self._metric(site, scale),
            blend=self._fit.blend,
            start=self._starts.get(site.name),
            tolerance=self._tolerance,
        )
        return fit.weights, fit.error

    def _metric(self, site: Rewritable, scale: np.ndarray | None) -> OutputMetric:
        """The metric of the site's output, over all sites that share its weight."""
        sharing = self._sharing.get(_key(site), [site])
        return output_metric(
            [self._fisher.get(each.name) for each in sharing], scale, site.out_channels
        )

    def rebias(
        self, site: Rewritable, layout: GroupLayout, weights: IgpcWeights
    ) -> np.ndarray | None:
        """The bias with which the mean output of ``site`` is exact, shape (F,), float64.

        Counts with the weights as they are written, rounded to the site's dtype. ``None`` where the
        site is fitted without data and keeps the bias it has.
        """
        statistics = self.statistics(site)
        if statistics is None:
            self._without_data[site.name] = untapped_reason(site) or "its input holds no values"
            return None
        matrix = igpc_matrix(layout, _rounded(weights, site))
        before = site.bias.values() if site.bias is not None else None
        bias = corrected_bias(site.weight_matrix(), matrix, before, statistics)
        if self._sequence is not None:
            self._sequence.advance(site, matrix, bias)
        return bias

    def summary(self) -> CalibrationReport:
        """For the report: where the data came from, how it was used, what it cost."""
        described, sequence = self._data.describe(), self._sequence
        return CalibrationReport(
            source=described.source,
            samples=described.samples - len(described.skipped),
            skipped=described.skipped,
            sequential=sequence is not None,
            fit=self._fit.label,
            seconds=round(time.perf_counter() - self._started, 2),
            without_data=dict(self._without_data),
            activation_bytes=sequence.peak_bytes if sequence else None,
            spilled_bytes=sequence.peak_spilled_bytes if sequence else None,
        )


def output_metric(
    fisher: Sequence[np.ndarray | None], scale: np.ndarray | None, filters: int
) -> OutputMetric:
    """The metric of a layer's output by the Fisher information, shape (F, F), of all places where it is
    applied; by the scale of its filters, shape (F,), where there is none."""
    known = [each for each in fisher if each is not None]
    if known:
        return OutputMetric.of_matrix(np.asarray(sum(known)), LOAD)
    return OutputMetric.of_scale(scale, filters)


def _key(site: Rewritable) -> tuple[str, int]:
    """What tells a node of the model from others, whichever view it was found in."""
    return site.ref.scope.path, site.ref.index


def _sites_by_weight(
    sites: Sequence[Rewritable],
) -> dict[tuple[str, int], list[Rewritable]]:
    """For each site that shares its weight: all that do, in order."""
    groups: dict[tuple[int, bytes], list[Rewritable]] = {}
    for site in sites:
        if site.weight is not None:
            # A view of the stored tensor, through Transpose say, can hold other values than it.
            seen = hashlib.sha256(site.weight_matrix().tobytes()).digest()
            groups.setdefault((id(site.weight.root), seen), []).append(site)
    return {_key(site): group for group in groups.values() if len(group) > 1 for site in group}


def _rounded(weights: IgpcWeights, site: Rewritable) -> IgpcWeights:
    """The weights as they are stored in the site's dtype."""

    def stored(values: np.ndarray) -> np.ndarray:
        return values.astype(site.dtype).astype(np.float64)

    return IgpcWeights(
        tuple(stored(each) for each in weights.k),
        tuple(stored(each) for each in weights.l),
    )
