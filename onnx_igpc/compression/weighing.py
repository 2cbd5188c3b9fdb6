"""Layouts and weights of single sites, as the options of a rewrite ask for them."""

from __future__ import annotations

import numpy as np

from onnx_igpc.fitting.fit import fit_layout, random_weights
from onnx_igpc.fitting.weights import IgpcWeights, plain_error
from onnx_igpc.layout.extended import dense_layout
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.planning.options import CompressOptions
from onnx_igpc.sites.find import PointwiseSite
from onnx_igpc.sites.rewrite import Weigher


def published_layout(site: PointwiseSite, options: CompressOptions) -> GroupLayout:
    """The published layout of a site."""
    return plan_layout(*_channels(site), options.channels_per_group, options.scheme)


def kept_layout(site: PointwiseSite, reason: str) -> GroupLayout:
    """The dense layout of a site that is kept for ``reason``."""
    return dense_layout(*_channels(site), reason)


def _channels(site: PointwiseSite) -> tuple[int, int]:
    assert site.in_channels is not None
    assert site.out_channels is not None
    return site.in_channels, site.out_channels


def weigher(options: CompressOptions) -> Weigher:
    """Fitted or random weights, as the options say."""
    if options.init == "random":
        return lambda site, layout, scale: (
            random_weights(layout, options.seed, site.name, options.form == "paper"),
            None,
        )
    return fit_without_data


def fit_without_data(
    site: PointwiseSite, layout: GroupLayout, scale: np.ndarray | None
) -> tuple[IgpcWeights, float]:
    """The fit to the dense weight alone, and its relative error."""
    weight = site.weight_matrix()
    weights = fit_layout(layout, weight, filter_scale=scale)
    return weights, plain_error(layout, weights, weight)


def no_weights(
    site: PointwiseSite, layout: GroupLayout, scale: np.ndarray | None
) -> tuple[IgpcWeights, None]:
    """Zeros, for a plan that is only counted."""

    def zeros(stage: GroupedStage) -> tuple[np.ndarray, ...]:
        return tuple(np.zeros(path.weight_shape, dtype=site.dtype) for path in stage.paths)

    return IgpcWeights(zeros(layout.k), zeros(layout.l) if layout.l else ()), None
