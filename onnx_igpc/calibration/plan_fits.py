"""The sites of a plan fitted to data without writing them: the matrices that a rewrite would apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnx_igpc.calibration.graph_cuts import DenseWeight
from onnx_igpc.calibration.options import Fit
from onnx_igpc.calibration.site_fitter import SiteCalibrator
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.data.batches import Data
from onnx_igpc.fitting.fit import TOLERANCE
from onnx_igpc.fitting.moments import Moments
from onnx_igpc.fitting.weights import IgpcWeights, igpc_matrix
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.sites.batch_norm import following_batch_norm
from onnx_igpc.sites.find import FoundSites, Rewritable
from onnx_igpc.sites.rewrite import site_identity


@dataclass
class FittedSites:
    """``weights`` by the name of the site, and what each then computes, ``applied``."""

    weights: dict[str, IgpcWeights] = field(default_factory=dict)
    applied: dict[str, DenseWeight] = field(default_factory=dict)


def fit_sites(
    model: OpenModel,
    found: FoundSites,
    layouts: Mapping[str, GroupLayout],
    data: Data,
    fit: Fit,
    *,
    fisher: Mapping[str, np.ndarray] | None = None,
    starts: Mapping[str, IgpcWeights] | None = None,
    tolerance: float = TOLERANCE,
    moments: Callable[[], Mapping[Tap, Moments]] | None = None,
) -> FittedSites:
    """Fit every site whose layout replaces it, in graph order, as a rewrite would.

    Args:
        model: the model, which is not changed.
        found: its sites.
        layouts: by the name of the site.
        data: what to fit to.
        fit: how.
        fisher: see :class:`~onnx_igpc.calibration.site_fitter.SiteCalibrator`, as for ``starts``,
            ``tolerance`` and ``moments``.

    Raises:
        DataError: activations that are not finite.
        ModelError: the model cannot run on the data.
    """
    wanted = [site for site in found.rewritable if layouts[site.name].kept_reason is None]
    result = FittedSites()
    shared: dict[tuple[object, ...], IgpcWeights] = {}
    fitter = SiteCalibrator(
        model,
        wanted,
        data,
        fit=fit,
        fisher=fisher,
        starts=starts,
        tolerance=tolerance,
        moments=moments,
    )
    with fitter as calibrator:
        for site in wanted:
            layout, key = layouts[site.name], (*site_identity(site), layouts[site.name])
            if key not in shared:
                norm = following_batch_norm(found.view, site.ref)
                scale = norm.factor if norm is not None else None
                shared[key], _ = calibrator.weigh(site, layout, scale)
            weights = shared[key]
            bias = calibrator.rebias(site, layout, weights)
            result.weights[site.name] = weights
            result.applied[site.name] = DenseWeight(
                igpc_matrix(layout, weights).astype(site.dtype),
                _bias(site, bias),
                site.spatial_rank,
            )
    return result


def _bias(site: Rewritable, bias: np.ndarray | None) -> np.ndarray | None:
    if bias is None:
        return site.bias.values() if site.bias is not None else None
    return bias.astype(site.dtype)
