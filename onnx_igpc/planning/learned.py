"""Learned groups for the published layouts of a whole model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnx_igpc.calibration.collect import collect_moments, untapped_reason
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.layout.group_layout import GroupLayout
from onnx_igpc.planning.grouping import better_grouping, learned_published
from onnx_igpc.planning.search import owners_of
from onnx_igpc.planning.trials import Trials
from onnx_igpc.sites.batch_norm import following_batch_norm


def learned_layouts(trials: Trials, layouts: Mapping[str, GroupLayout]) -> dict[str, GroupLayout]:
    """The planned layouts by site, their groups made of channels that belong together where that fits
    better; as planned where the site cannot be observed.

    Raises:
        DataError: data that cannot be used.
    """
    layouts, found = dict(layouts), trials.found
    seen = [
        site
        for site in found.rewritable
        if untapped_reason(site) is None and layouts[site.name].kept_reason is None
    ]
    owners = owners_of(seen)
    first = [site for site in seen if owners[site.name] == site.name]
    moments = collect_moments(trials.model, [Tap.of(site) for site in first], trials.part)
    for site in first:
        planned = layouts[site.name]
        norm = following_batch_norm(found.view, site.ref)
        scale = norm.factor if norm is not None else None
        weight = site.weight_matrix().astype(np.float64)
        second = moments[Tap.of(site)].second
        learned = learned_published(planned, weight, second, scale)
        layouts[site.name], _, _ = better_grouping([planned, learned], weight, second, scale)
    for site in seen:
        layouts[site.name] = layouts[owners[site.name]]
    return layouts
