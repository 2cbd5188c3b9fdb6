"""The Fisher information of sites' outputs, where torch is installed and can run the model."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import numpy as np

from onnx_igpc.calibration.collect import untapped_reason
from onnx_igpc.calibration.held_samples import Part
from onnx_igpc.errors import IgpcError, first_line
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.sites.find import FoundSites

NO_TORCH = (
    "errors of filters were weighed by BatchNorm's scale: with torch (pip install 'onnx-igpc[torch]') by "
    "how much the model's answer depends on them, where that is better"
)


def known_fisher(
    model: OpenModel, found: FoundSites, part: Part
) -> tuple[Mapping[str, np.ndarray], list[str]]:
    """The information by site, and notes where there is none.

    Raises:
        DataError: data that cannot be used.
    """
    sites = [site for site in found.rewritable if untapped_reason(site) is None]
    if not sites:
        return {}, []
    if importlib.util.find_spec("torch") is None:
        return {}, [NO_TORCH]
    from onnx_igpc.torch_bridge.fisher import site_fisher

    try:
        return site_fisher(model, sites, part), []
    except (IgpcError, MemoryError, RuntimeError) as error:
        # Of torch's own errors only that memory ran out is expected: the rest of the work takes less of it.
        if not isinstance(error, IgpcError) and "allocate memory" not in str(error):
            raise
        return {}, [f"errors of filters were weighed by BatchNorm's scale: {first_line(error)}"]
