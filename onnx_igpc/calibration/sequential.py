"""Statistics of each site in graph order, what comes before it being rewritten already.

The data goes through the graph once, in step with the fits: activations stand at a cut through the
graph, in the original's version and, where a rewritten site lies before, in the rewrite's; for the
next site both move on to the cut before it. So a model with any number of sites costs one forward
pass of the original and at most one of the rewrite. A rewritten site is run as the dense convolution
with the matrix M = (I + L P) K, which is the same map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_igpc.calibration.activation_store import MEMORY_BYTES, ActivationStore
from onnx_igpc.calibration.collect import feed_rows, no_samples, untapped_reason
from onnx_igpc.calibration.graph_cuts import DenseWeight, GraphCuts, TensorType, input_types
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.data.batches import Data
from onnx_igpc.errors import DataError, ModelError
from onnx_igpc.fitting.moments import (
    Moments,
    MomentsAccumulator,
    PairAccumulator,
    SiteStatistics,
)
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.runtime.session import Session, make_session, run_session
from onnx_igpc.sites.find import Rewritable

Versions = dict[str, TensorType]
_ORIGINAL, _REWRITTEN = "original", "rewritten"


class SequentialCalibration:
    """Hands out :class:`SiteStatistics` site by site; a context manager.

    For the sites in graph order, leaving out any: :meth:`statistics`, then :meth:`advance` with what
    was fitted. A site for which ``advance`` is not called stays as it is.

    Memory: the activations of all samples that cross the cut, in two versions, are held in memory up
    to ``memory_bytes`` and in temporary files beyond it; for a convolution's input of C channels and
    P positions that is 2 x 4 x C x P bytes a sample, and as much again for a residual connection that
    runs beside it. ``peak_bytes`` and ``peak_spilled_bytes`` say what it came to.

    Args:
        model: the model, which is not changed and must not be while this is in use.
        sites: every site that may be asked for.
        data: batches of all inputs of the model; iterated over once.
        memory_bytes: activations kept in memory.
        threads: of onnxruntime, its own choice if ``None``.
        folds: parts of the data of which :meth:`statistics_by_fold` tells, at most one a batch.
        positions: of each sample at most so many count, drawn at random; neighbours say much the same.
    """

    def __init__(
        self,
        model: OpenModel,
        sites: Sequence[Rewritable],
        data: Data,
        *,
        memory_bytes: int = MEMORY_BYTES,
        threads: int | None = None,
        folds: int = 1,
        positions: int | None = None,
    ) -> None:
        tapped = [site for site in sites if untapped_reason(site) is None]
        self._taps = {site.ref.index: Tap.of(site) for site in tapped}
        self._cuts = GraphCuts(model, self._taps)
        self._data = data
        self._threads = threads
        self._store = ActivationStore(memory_bytes)
        self._position = -1
        self._live: dict[str, Versions] = {_ORIGINAL: {}, _REWRITTEN: {}}
        self._batches: list[tuple[int, int]] = []
        self._replaced: dict[int, DenseWeight] = {}
        self._folds, self._positions = folds, positions
        self._known: dict[Tap, list[SiteStatistics]] = {}

    def __enter__(self) -> SequentialCalibration:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all activations."""
        self._store.close()

    @property
    def samples(self) -> int:
        """Samples that were read so far."""
        return sum(count for _, count in self._batches)

    @property
    def peak_bytes(self) -> int:
        """The most bytes of activations that were held at once."""
        return self._store.peak_bytes

    @property
    def peak_spilled_bytes(self) -> int:
        """The most bytes that lay in temporary files at once."""
        return self._store.peak_spilled_bytes

    def statistics(self, site: Rewritable) -> SiteStatistics | None:
        """Of the input of ``site`` in the original and in the rewrite so far.

        ``None`` where its input cannot be tapped, or holds nothing on any batch.

        Raises:
            DataError: no sample could be read, or the input is NaN or infinite somewhere.
            ModelError: the model cannot run on the data.
            ValueError: the site lies before one that was asked for, or was not announced.
        """
        found = self.statistics_by_fold(site)
        return SiteStatistics.joined(found) if found else None

    def statistics_by_fold(self, site: Rewritable) -> list[SiteStatistics]:
        """Those of each part of the data that holds anything, as :meth:`statistics` has them of all."""
        if untapped_reason(site) is not None:
            return []
        position = site.ref.index
        if position < self._position or position not in self._taps:
            raise ValueError(f"{site.name} is out of order or was not announced")
        tap = self._taps[position]
        if not self._cuts.can_cross(tap.tensor):
            return []
        if position > self._position:
            self._move_to(position)
        if tap not in self._known:
            self._known[tap] = self._measure(tap)
        return self._known[tap]

    def advance(self, site: Rewritable, matrix: np.ndarray, bias: np.ndarray | None) -> None:
        """From now on ``site`` computes x -> M x + b in the rewrite, M being (F, C) and b (F,)."""
        if site.ref.index in self._taps:
            self._replaced[site.ref.index] = DenseWeight(
                matrix.astype(site.dtype),
                None if bias is None else bias.astype(site.dtype),
                site.spatial_rank,
            )

    def _measure(self, tap: Tap) -> list[SiteStatistics]:
        changed = tap.tensor in self._live[_REWRITTEN]
        sums: dict[int, PairAccumulator | MomentsAccumulator] = {}
        for number, (rows, count) in enumerate(self._batches):
            x = tap.read(self._store.get((_ORIGINAL, tap.tensor, number)), rows, count)
            some = self._drawn(x.shape[1], count)
            x, fold = x[:, some], number % self._folds
            if fold not in sums:
                sums[fold] = PairAccumulator(len(x)) if changed else MomentsAccumulator(len(x))
            own = sums[fold]
            if isinstance(own, MomentsAccumulator):
                own.add(x)
                continue
            values = self._store.get((_REWRITTEN, tap.tensor, number))
            try:
                own.add(x, tap.read(values, rows, count)[:, some])
            except DataError as error:
                raise DataError(f"in the rewritten model, {error}") from error
        found = [each.result() for each in sums.values()]
        return [
            SiteStatistics.unchanged(each) if isinstance(each, Moments) else each
            for each in found
            if each is not None
        ]

    def _drawn(self, positions: int, samples: int) -> np.ndarray | slice:
        """The positions of a batch that count, in order."""
        most = None if self._positions is None else self._positions * samples
        if most is None or positions <= most:
            return slice(None)
        return np.sort(np.random.default_rng(0).permutation(positions)[:most])

    def _move_to(self, position: int) -> None:
        """Bring the activations of every batch to the cut before the node at ``position``."""
        held = (
            self._live
            if self._batches
            else {_ORIGINAL: input_types(self._cuts.model), _REWRITTEN: {}}
        )
        live = self._cuts.live(position)
        wanted = {_ORIGINAL: live, _REWRITTEN: live & self._cuts.changed_by(self._replaced)}
        steps = [
            self._step(_ORIGINAL, wanted, held, {}),
            self._step(_REWRITTEN, wanted, held, self._replaced),
        ]
        self._live = {
            version: {name: held[version][name] for name in wanted[version] & held[version].keys()}
            for version in held
        }
        dead = [(v, name) for v in held for name in held[v].keys() - wanted[v]]
        for number in self._numbers():
            for step in steps:
                if step is not None:
                    self._run(step, held, number)
            for version, name in dead:
                self._store.drop((version, name, number))
        self._position = position
        waiting = {tap for index, tap in self._taps.items() if index >= position}
        self._known = {tap: each for tap, each in self._known.items() if tap in waiting}

    def _numbers(self) -> Iterator[int]:
        """The number of each batch; the first time, with its feeds put into the store before."""
        if self._batches:
            yield from range(len(self._batches))
            return
        batches: list[tuple[int, int]] = []
        for number, batch in enumerate(self._data):
            for name, values in batch.feeds.items():
                self._store.put((_ORIGINAL, name, number), values)
            batches.append((feed_rows(batch), batch.count))
            yield number
        if not batches:
            raise no_samples(self._data)
        self._batches = batches

    def _step(
        self,
        version: str,
        wanted: Mapping[str, set[str]],
        held: Mapping[str, Versions],
        replaced: Mapping[int, DenseWeight],
    ) -> _Step | None:
        """How to make what one version needs at the next cut; ``None`` where it has everything."""
        outputs = sorted(wanted[version] - held[version].keys())
        if not outputs:
            return None
        part, reads = self._cuts.extract(outputs, held[_ORIGINAL] | held[version], replaced)
        return _Step(version, make_session(part, threads=self._threads), reads, outputs)

    def _run(self, step: _Step, held: Mapping[str, Versions], number: int) -> None:
        """Make the tensors of a step for one batch and keep them."""
        feeds = {}
        for name in step.reads:
            version = step.version if name in held[step.version] else _ORIGINAL
            feeds[name] = self._store.get((version, name, number))
        types = self._live[step.version]
        for name, values in run_session(step.session, feeds, step.outputs).items():
            if not isinstance(values, np.ndarray):
                raise ModelError(
                    f"value {name!r} is no tensor, so that sites cannot be fitted one after another: "
                    "use `sequential=False`"
                )
            self._store.put((step.version, name, number), values)
            kind = TensorType(values.dtype, values.shape)
            types[name] = kind.merged(types[name]) if name in types else kind


@dataclass(frozen=True, eq=False)
class _Step:
    """A part of the graph that is run on every batch: from the tensors it reads to its outputs."""

    version: str
    session: Session
    reads: list[str]
    outputs: list[str]
