"""The part of a model behind a cut, with the data as it arrives there.

What lies before the first site that is rewritten is the same in every trial: it runs once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_igpc.calibration.collect import feed_rows
from onnx_igpc.calibration.graph_cuts import GraphCuts, TensorType, input_types
from onnx_igpc.calibration.held_samples import HeldSamples, Part
from onnx_igpc.data.batches import Batch, SourceDescription
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.runtime.session import make_session, run_session
from onnx_igpc.sites.find import FoundSites, SiteFilter, find_sites

# A sample that takes more bytes at a cut is run from the start again rather than kept.
_MOST_BYTES = 4 << 20


@dataclass
class Tail:
    """The rest of a model: its sites by the names that they have in the whole, and the samples."""

    model: OpenModel
    found: FoundSites
    held: HeldSamples

    def part(self, whole: Part, some: Part) -> Part:
        """The samples of ``some``, which are among those of ``whole`` that came this far."""
        place = {number: index for index, number in enumerate(whole.numbers)}
        return Part(self.held, [place[number] for number in some.numbers])


def tail_from(model: OpenModel, found: FoundSites, part: Part, position: int) -> Tail | None:
    """What comes from the node at ``position`` of the main graph on.

    ``None`` where it cannot stand alone: an output is made before, samples do not stay apart, or they would
    take too much room.

    Raises:
        ModelError: the model cannot run on the data.
    """
    if not part.held.divisible:
        return None
    outputs = [output.name for output in model.proto.graph.output]
    making = [
        index
        for index, node in enumerate(model.proto.graph.node)
        if not set(outputs).isdisjoint(node.output)
    ]
    cuts = GraphCuts(model, making)
    behind = {name for node in cuts.nodes[position:] for name in node.output}
    if not behind.issuperset(outputs):
        return None
    arriving = _Arriving(model, cuts, sorted(cuts.live(position)), part)
    if not arriving.kept_apart():
        return None
    held = HeldSamples(arriving, [])
    rest, _ = cuts.extract(outputs, arriving.types)
    held.fixed, held.batch_size = part.held.fixed, part.held.batch_size
    return Tail(rest, _sites(rest, found), held)


def _sites(rest: OpenModel, found: FoundSites) -> FoundSites:
    """The sites of the rest under the names of the whole."""
    names = {
        site.ref.proto.output[0]: site.name for site in found.rewritable if site.ref.scope.is_main
    }
    view = GraphView(rest)
    kept = [
        replace(site, name=names[site.ref.proto.output[0]])
        for site in find_sites(view, SiteFilter(include_heads=True)).rewritable
        if site.ref.scope.is_main and site.ref.proto.output[0] in names
    ]
    return FoundSites(view, tuple(kept))


class _Arriving:
    """The tensors at a cut, sample by sample, as :class:`~onnx_igpc.data.batches.Data`."""

    def __init__(self, model: OpenModel, cuts: GraphCuts, names: Sequence[str], part: Part) -> None:
        self._part = part
        self._names = list(names)
        given = input_types(model)
        self._made = [name for name in names if name not in given]
        before, self._reads = cuts.extract(self._made, given)
        self._session = make_session(before) if self._made else None
        self.types: dict[str, TensorType] = {}
        self.size = part.size
        self.labelled = False
        self.classes: tuple[str, ...] | None = None
        self.preprocessing = part.preprocessing
        self.skipped: list[str] = []

    def kept_apart(self) -> bool:
        """Whether all tensors have the samples as their first dimension and are small enough."""
        fed, first = next(iter(self._part), None), next(iter(self), None)
        if fed is None or first is None or not self._names:
            return False
        rows = feed_rows(fed)
        apart = all(values.ndim and len(values) == rows for values in first.feeds.values())
        size = sum(values.nbytes for values in first.feeds.values()) / max(rows, 1)
        return apart and size <= _MOST_BYTES

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._part:
            feeds = {name: batch.feeds[name] for name in self._names if name not in self._made}
            if self._session is not None:
                read = {name: batch.feeds[name] for name in self._reads}
                made = run_session(self._session, read, self._made)
                feeds |= {name: np.asarray(values) for name, values in made.items()}
            for name, values in feeds.items():
                self._add_type(name, values)
            yield Batch(feeds, None, batch.count)

    def _add_type(self, name: str, values: np.ndarray) -> None:
        fixed = self._part.held.fixed
        kind = TensorType(values.dtype, (fixed, *values.shape[1:]))
        self.types[name] = kind.merged(self.types[name]) if name in self.types else kind

    def describe(self) -> SourceDescription:
        """As the part of the data itself."""
        return self._part.describe()
