"""Weights of single sites that need no data: fitted to the dense weight alone, random, or none."""

from __future__ import annotations

import numpy as np

from onnx_igpc.fitting.fit import fit_layout, random_weights
from onnx_igpc.fitting.weights import IgpcWeights, plain_error
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.sites.find import Rewritable


class _OwnBias:
    """Sites keep the bias that they have."""

    def rebias(self, site: Rewritable, layout: GroupLayout, weights: IgpcWeights) -> None:
        """``None``: the site's own."""
        return


class DataFreeFitter(_OwnBias):
    """Fits to the dense weight alone; the error is that of white inputs."""

    def weigh(
        self, site: Rewritable, layout: GroupLayout, scale: np.ndarray | None
    ) -> tuple[IgpcWeights, float]:
        """The fit, and its relative error."""
        weight = site.weight_matrix()
        weights = fit_layout(layout, weight, filter_scale=scale)
        return weights, plain_error(layout, weights, weight)


class RandomFitter(_OwnBias):
    """Random weights, equal for equal seeds and names of sites.

    Args:
        seed: of the random numbers.
        paper: whether an activation follows K as well, as in the paper's form.
    """

    def __init__(self, seed: int = 0, paper: bool = False) -> None:
        self._seed = seed
        self._paper = paper

    def weigh(
        self, site: Rewritable, layout: GroupLayout, scale: np.ndarray | None
    ) -> tuple[IgpcWeights, None]:
        """Random weights, and no error."""
        return random_weights(layout, self._seed, site.name, self._paper), None


class ZeroFitter(_OwnBias):
    """Zeros, for a plan that is only counted."""

    def weigh(
        self, site: Rewritable, layout: GroupLayout, scale: np.ndarray | None
    ) -> tuple[IgpcWeights, None]:
        """Zeros, and no error."""

        def zeros(stage: GroupedStage) -> tuple[np.ndarray, ...]:
            return tuple(np.zeros(path.weight_shape, dtype=site.dtype) for path in stage.paths)

        return IgpcWeights(zeros(layout.k), zeros(layout.l) if layout.l else ()), None
