"""How much the network's answer changes when some sites are rewritten, measured on data.

The original is run with the weights and biases of these sites as inputs, so that one session serves all
their layouts: a rewritten site is, for this purpose, its dense layer with the matrix M in the place of the
weight. All other weights stay constants: onnxruntime runs a network whose weights are all inputs 1.7 times as long,
since it can neither fold BatchNormalization nor lay them out beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx

from onnx_igpc.calibration.collect import no_samples
from onnx_igpc.calibration.graph_cuts import DenseWeight
from onnx_igpc.data.batches import Data
from onnx_igpc.evaluation.differences import class_scores, kl_divergence
from onnx_igpc.evaluation.output_kinds import output_kinds
from onnx_igpc.graph.edit import Names
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.runtime.at_once import at_once, threads_of_each
from onnx_igpc.runtime.session import (
    Session,
    make_session,
    other_outputs,
    run_session,
    session_outputs,
)
from onnx_igpc.sites.find import Rewritable

_TINY = 1e-12
# The damage of a rewrite after which values are no longer finite: more than any that is measured.
_BROKEN = 1e6

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]
"""A changed model: from a batch to its outputs by name."""
Changes = Mapping[str, DenseWeight]
"""What sites compute in the place of their own weight and bias, by name."""


@dataclass(frozen=True)
class Damage:
    """The mean of a damage over ``samples``; ``agreeing``: those whose highest score is still of the same
    class, ``None`` for a model without class scores."""

    value: float
    samples: int
    agreeing: int | None = None

    @classmethod
    def joined(cls, parts: Sequence[Damage]) -> Damage:
        """Over all samples of several parts of the data."""
        samples = sum(part.samples for part in parts)
        agreeing = [part.agreeing for part in parts if part.agreeing is not None]
        value = sum(part.samples * part.value for part in parts) / max(samples, 1)
        return cls(value, samples, sum(agreeing) if len(agreeing) == len(parts) else None)


class DamageProbe:
    """Measures the change of the outputs that a change of sites' matrices and biases makes.

    The damage is the mean Kullback-Leibler divergence KL(original || changed) of the class
    probabilities in nats where the model has class scores, and otherwise E|a - b|^2 / E|b|^2 averaged
    over the outputs, b being the original's, or over the outputs of the sites where no output of the
    model can be compared. Samples are held in memory.

    Args:
        model: the model; it is not changed.
        sites: sites of the main graph with constant weights.
        parts: of the data, each batches of all inputs of the model.
        samples: at most so many of each part; all if ``None``.

    Raises:
        DataError: a part holds no sample that can be read.
    """

    def __init__(
        self,
        model: OpenModel,
        sites: Sequence[Rewritable],
        parts: Sequence[Data],
        samples: int | None = None,
    ) -> None:
        self._model = model
        self._sites = {site.name: site for site in sites}
        self._extra: list[str] = []
        session = self._session(model)
        self._parts = [_batches(part, samples) for part in parts]
        kinds = output_kinds(model.proto, session_outputs(session), other_outputs(session))
        self._outputs = [e.name for e in kinds.outputs if not e.may_vary and not e.classes]
        if not self._outputs:
            # Nothing behind the sites can be compared: what each does to the sites after it can.
            made = {output.name for output in model.proto.graph.output}
            self._outputs = list(dict.fromkeys(site.ref.proto.output[0] for site in sites))
            self._extra = [name for name in self._outputs if name not in made]
            session = self._session(model)
        sizes = [len(part) for part in self._parts]
        feeds = [fed for part in self._parts for fed, _ in part]
        outputs = at_once(lambda fed: run_session(session, fed, self._outputs), feeds)
        self._reference = [list(islice(outputs, size)) for size in sizes]
        self._scores = self._class_output()

    @property
    def samples(self) -> int:
        """Samples of all parts together."""
        return sum(count for part in self._parts for _, count in part)

    @property
    def measure(self) -> str:
        """What a damage is, in words."""
        return "KL divergence, nats" if self._scores else "relative squared error"

    def changing(self, names: Iterable[str]) -> ChangingSites:
        """What measures changes of the sites of these names, and of no others."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._model.proto)
        unique = Names(proto).unique
        inputs, dense = {}, {}
        for number, name in enumerate(sorted(names)):
            site = self._sites[name]
            node = proto.graph.node[site.ref.index]
            weight = site.weight.values()
            bias = np.zeros(len(weight), weight.dtype) if site.bias is None else site.bias.values()
            inputs[name] = (unique(f"probe_{number}_weight"), unique(f"probe_{number}_bias"))
            del node.input[1:]
            node.input.extend(inputs[name])
            for made, values in zip(inputs[name], (weight, bias), strict=True):
                kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
                proto.graph.input.append(
                    onnx.helper.make_tensor_value_info(made, kind, values.shape)
                )
                dense[made] = values
        session = self._session(OpenModel(proto, self._model.data, self._model.path))
        return ChangingSites(self, session, inputs, dense)

    def compared(self, runs: Sequence[Run], enough: int | None = None) -> Damage:
        """The damage to what each of ``runs`` makes of the samples of its part, see :meth:`ChangingSites.damage`."""

        def difference(work: tuple[Run, Feeds, Mapping[str, np.ndarray], int]) -> Damage:
            run, feeds, reference, count = work
            return self._difference(reference, run(feeds), count)

        work = [
            (run, feeds, reference, count)
            for run, part, references in zip(runs, self._parts, self._reference, strict=True)
            for (feeds, count), reference in zip(_first(part, enough), references, strict=False)
        ]
        return Damage.joined(list(at_once(difference, work)))

    @property
    def outputs(self) -> list[str]:
        """The outputs that are compared."""
        return self._outputs

    def _session(self, model: OpenModel) -> Session:
        return self.session(model, self._extra)

    def session(self, model: OpenModel, extra_outputs: Sequence[str] = ()) -> Session:
        """A session for a model that :meth:`compared` runs."""
        return make_session(model, threads=threads_of_each(), extra_outputs=extra_outputs)

    def _class_output(self) -> str | None:
        """The only output that holds class scores."""
        outputs = self._reference[0][0]
        found = [
            name
            for name, value in outputs.items()
            if class_scores(value) is not None and len(value) == len(self._first_input())
        ]
        return found[0] if len(found) == 1 else None

    def _first_input(self) -> Any:
        return next(iter(self._parts[0][0][0].values()))

    def _difference(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], count: int
    ) -> Damage:
        if self._scores is not None:
            before = class_scores(reference[self._scores])
            after = class_scores(outputs[self._scores])
            assert before is not None
            assert after is not None
            return _of_scores(before[:count], after[:count])
        errors = []
        for name, b in reference.items():
            if b.dtype.kind != "f":
                continue
            known = np.isfinite(b)
            a, wanted = outputs[name].astype(np.float64)[known], b.astype(np.float64)[known]
            if not np.isfinite(a).all():
                return Damage(_BROKEN, count)
            power = float(np.sum(wanted**2))
            errors.append(float(np.sum((a - wanted) ** 2)) / max(power, _TINY))
        return Damage(float(np.mean(errors)) if errors else 0.0, count)


@dataclass(frozen=True)
class ChangingSites:
    """Some sites of a model whose weights and biases are inputs: ``inputs`` by site, ``dense`` as they are."""

    probe: DamageProbe
    session: Session
    inputs: Mapping[str, tuple[str, str]]
    dense: Mapping[str, np.ndarray]

    def damage(self, changes: Sequence[Changes], enough: int | None = None) -> Damage:
        """The damage of the sites computing what each of ``changes`` says, on the samples of its part.

        enough: of each part no further batch is run once so many samples were.
        """
        return self.probe.compared([self._run(each) for each in changes], enough)

    def _run(self, changes: Changes) -> Run:
        fed = dict(self.dense)
        for name, each in changes.items():
            for given, values in zip(self.inputs[name], (each.matrix, each.bias), strict=True):
                if values is not None:
                    dense = self.dense[given]
                    fed[given] = values.reshape(dense.shape).astype(dense.dtype)

        def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
            return run_session(self.session, {**feeds, **fed}, self.probe.outputs)

        return run


def _first(part: Sequence[tuple[Feeds, int]], enough: int | None) -> Iterator[tuple[Feeds, int]]:
    """The first batches of a part, with enough samples."""
    samples = 0
    for feeds, count in part:
        yield feeds, count
        samples += count
        if enough is not None and samples >= enough:
            return


def _batches(data: Data, samples: int | None) -> list[tuple[Mapping[str, np.ndarray], int]]:
    """The feeds of every batch and how many of its samples count."""
    found: list[tuple[Mapping[str, np.ndarray], int]] = []
    left = data.size if samples is None else samples
    for batch in data:
        if left <= 0:
            break
        found.append((batch.feeds, min(batch.count, left)))
        left -= batch.count
    if not found:
        raise no_samples(data)
    return found


def _of_scores(before: np.ndarray, after: np.ndarray) -> Damage:
    """The damage to class scores of shape (N, classes); samples with NaN in the original are nothing."""
    known = np.isfinite(before).all(axis=1)
    same = int(np.count_nonzero(known & (before.argmax(axis=1) == after.argmax(axis=1))))
    if not np.isfinite(after[known]).all():
        return Damage(_BROKEN, len(before), same)
    value = kl_divergence(before[known], after[known]) if known.any() else 0.0
    return Damage(value, len(before), same)
