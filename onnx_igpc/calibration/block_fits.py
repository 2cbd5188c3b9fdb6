"""The pointwise convolutions that stand for residual blocks, fitted to data in closed form.

Of a block y = x + f(x), the best M and b in y = M x + b follow from the means and second moments of x and y
over all positions: M = I + cov(y - x, x) cov(x, x)^-1, drawn a little towards I.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnx_igpc.calibration.collect import feed_rows, no_samples
from onnx_igpc.calibration.graph_cuts import GraphCuts, input_types
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.data.batches import Batch, Data
from onnx_igpc.fitting.moments import Moments, MomentsAccumulator
from onnx_igpc.graph.model import OpenModel, snapshot
from onnx_igpc.graph.view import GraphView
from onnx_igpc.passes.collapse_blocks import BlockWeights, CollapseBlocks
from onnx_igpc.runtime.session import make_session, run_session
from onnx_igpc.sites.find import SiteFilter, find_sites
from onnx_igpc.sites.residual_blocks import ResidualBlock

# Added to the variance of every channel, as a part of their mean: channels that always go together
# would otherwise be told apart by noise.
_RIDGE = 1e-3
MOST_SAMPLES = 400
"""Samples that are enough to fit blocks behind others to: a weight for each pair of channels, and each sample has many positions."""


def block_moments(
    model: OpenModel,
    blocks: Sequence[ResidualBlock],
    data: Data,
    rewritten: OpenModel | None = None,
) -> dict[str, Moments]:
    """By block, the moments of x and y one above the other, (2C,) and (2C, 2C).

    Args:
        model: the model as it is.
        blocks: of the model.
        data: batches of all inputs of the model.
        rewritten: where x is taken from, another version of the model; y is the model's own.

    Raises:
        DataError: no sample could be read, or a tensor is NaN or infinite somewhere.
        ModelError: the model cannot run on the data.
    """
    inputs, outputs = [each.input for each in blocks], [each.output for each in blocks]
    if rewritten is None:
        before = after = _Making(model, [*inputs, *outputs])
    else:
        before, after = _Making(rewritten, inputs), _Making(model, outputs)
    sums = {block.name: MomentsAccumulator(2 * block.channels) for block in blocks}
    empty = True
    for batch in data:
        empty = False
        x = before.values(batch)
        y = x if after is before else after.values(batch)
        for block in blocks:
            pair = [(block.input, x), (block.output, y)]
            columns = [
                Tap(name, channels=block.channels).read(values[name], feed_rows(batch), batch.count)
                for name, values in pair
            ]
            sums[block.name].add(np.concatenate(columns))
    if empty:
        raise no_samples(data)
    found = {name: each.result() for name, each in sums.items()}
    return {name: each for name, each in found.items() if each is not None}


def fitted(moments: Moments) -> BlockWeights:
    """The weights that stand for a block whose moments are those of x and y one above the other."""
    C = len(moments.mean) // 2
    mean_x, mean_y = moments.mean[:C], moments.mean[C:]
    xx, yx, yy = moments.second[:C, :C], moments.second[C:, :C], moments.second[C:, C:]
    added = yx - xx
    ridge = _RIDGE * np.trace(xx) / C
    change = np.linalg.solve(xx + max(ridge, 1e-30) * np.eye(C), added.T).T
    matrix = np.eye(C) + change
    variance = np.trace(yy - yx - yx.T + xx)
    missed = variance - 2 * np.sum(change * added) + np.sum((change @ xx) * change)
    error = float(max(missed, 0.0) / variance) if variance > 0 else 0.0
    return BlockWeights(matrix, mean_y - matrix @ mean_x, error)


def fit_blocks(
    model: OpenModel, blocks: Sequence[ResidualBlock], data: Data
) -> dict[str, BlockWeights]:
    """The weights of each block, fitted behind those that are collapsed already.

    Args:
        model: the model, which is not changed.
        blocks: of the model, in the order of the graph.
        data: what to fit to.

    Raises as :func:`block_moments`.
    """
    weights: dict[str, BlockWeights] = {}
    for block in blocks:
        rewritten = collapsed(model, weights) if weights else None
        moments = block_moments(model, [block], data, rewritten)
        weights[block.name] = fitted(moments[block.name])
    return weights


def collapsed(model: OpenModel, weights: Mapping[str, BlockWeights]) -> OpenModel:
    """A copy of the model with these blocks collapsed."""
    copy = snapshot(model)
    every = SiteFilter(include_heads=True)
    CollapseBlocks(weights, find_sites(GraphView(copy), every)).run(copy)
    return copy


class _Making:
    """The part of a model that makes some of its tensors."""

    def __init__(self, model: OpenModel, names: Sequence[str]) -> None:
        given = input_types(model)
        self._made = [name for name in dict.fromkeys(names) if name not in given]
        part, self._reads = GraphCuts(model, []).extract(self._made, given)
        self._session = make_session(part) if self._made else None

    def values(self, batch: Batch) -> Mapping[str, np.ndarray]:
        """The tensors for a batch, with the inputs of the model."""
        if self._session is None:
            return batch.feeds
        read = {name: batch.feeds[name] for name in self._reads}
        return batch.feeds | run_session(self._session, read, self._made)
