"""How much the network's answer changes when one site alone is rewritten, measured on data.

The original is run with the weight and bias of every site as inputs, so that one session serves all
sites and all layouts: a rewritten site is, for this purpose, its dense layer with the matrix M in the
place of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_igpc.calibration.collect import no_samples
from onnx_igpc.data.batches import Data
from onnx_igpc.evaluation.differences import class_scores
from onnx_igpc.evaluation.output_kinds import output_kinds
from onnx_igpc.graph.edit import Names
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.runtime.session import make_session, other_outputs, run_session, session_outputs
from onnx_igpc.sites.find import Rewritable

DEFAULT_SAMPLES = 64
_TINY = 1e-12
# The damage of a rewrite after which values are no longer finite: more than any that is measured.
_BROKEN = 1e6


class DamageProbe:
    """Measures the change of the outputs that a change of one site's matrix and bias makes.

    The damage is the mean Kullback-Leibler divergence KL(original || changed) of the class
    probabilities in nats where the model has class scores, and otherwise E|a - b|^2 / E|b|^2 averaged
    over the outputs, b being the original's, or over the outputs of the sites where no output of the
    model can be compared. Samples are held in memory; use few.

    Args:
        model: the model; it is not changed.
        sites: sites of the main graph with constant weights.
        data: batches of all inputs of the model.
        samples: at most so many.
        threads: of onnxruntime, its own choice if ``None``.

    Raises:
        DataError: the data holds no sample that can be read.
    """

    def __init__(
        self,
        model: OpenModel,
        sites: Sequence[Rewritable],
        data: Data,
        samples: int = DEFAULT_SAMPLES,
        threads: int | None = None,
    ) -> None:
        self._names: dict[str, tuple[str, str]] = {}
        self._dense: dict[str, np.ndarray] = {}
        tensors = [site.ref.proto.output[0] for site in sites]
        prepared = self._with_weights_as_inputs(model, sites)
        self._session = make_session(prepared, threads=threads)
        self._outputs: list[str] | None = None
        self._batches: list[tuple[Mapping[str, np.ndarray], int]] = []
        left = samples
        for batch in data:
            if left <= 0:
                break
            self._batches.append((batch.feeds, min(batch.count, left)))
            left -= batch.count
        if not self._batches:
            raise no_samples(data)
        kinds = output_kinds(
            model.proto, session_outputs(self._session), other_outputs(self._session)
        )
        self._outputs = [e.name for e in kinds.outputs if not e.may_vary and not e.classes]
        if not self._outputs:
            # Nothing behind the sites can be compared: what each does to the sites after it can.
            made = {output.name for output in model.proto.graph.output}
            inner = [name for name in dict.fromkeys(tensors) if name not in made]
            self._session = make_session(prepared, threads=threads, extra_outputs=inner)
            self._outputs = list(dict.fromkeys(tensors))
        self._reference = [self._run(feeds, {}) for feeds, _ in self._batches]
        self._scores = self._class_output()

    @property
    def samples(self) -> int:
        """Samples that every measurement runs on."""
        return sum(count for _, count in self._batches)

    @property
    def measure(self) -> str:
        """What a damage is, in words."""
        return "KL divergence, nats" if self._scores else "relative squared error"

    def damage(self, site: Rewritable, matrix: np.ndarray, bias: np.ndarray | None) -> float:
        """The damage of ``site`` computing ``matrix @ x + bias``; shapes (F, C) and (F,)."""
        weight_name, bias_name = self._names[site.name]
        dense = self._dense[weight_name]
        changed = {weight_name: matrix.reshape(dense.shape).astype(dense.dtype)}
        if bias is not None:
            changed[bias_name] = bias.astype(dense.dtype)
        total, weight = 0.0, 0
        for (feeds, count), reference in zip(self._batches, self._reference, strict=True):
            outputs = self._run(feeds, changed)
            total += count * self._difference(reference, outputs, count)
            weight += count
        return total / weight

    def _with_weights_as_inputs(self, model: OpenModel, sites: Sequence[Rewritable]) -> OpenModel:
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        unique = Names(proto).unique
        for number, site in enumerate(sites):
            node = proto.graph.node[site.ref.index]
            weight = site.weight.values()
            bias = np.zeros(len(weight), weight.dtype) if site.bias is None else site.bias.values()
            names = (unique(f"probe_{number}_weight"), unique(f"probe_{number}_bias"))
            del node.input[1:]
            node.input.extend(names)
            for name, values in zip(names, (weight, bias), strict=True):
                kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
                proto.graph.input.append(
                    onnx.helper.make_tensor_value_info(name, kind, values.shape)
                )
                self._dense[name] = values
            self._names[site.name] = names
        return OpenModel(proto, model.data, model.path)

    def _run(
        self, feeds: Mapping[str, np.ndarray], changed: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        return run_session(self._session, {**feeds, **self._dense, **changed}, self._outputs)

    def _class_output(self) -> str | None:
        """The only output that holds class scores."""
        outputs = self._reference[0]
        found = [
            name
            for name, value in outputs.items()
            if class_scores(value) is not None and len(value) == len(self._first_input())
        ]
        return found[0] if len(found) == 1 else None

    def _first_input(self) -> Any:
        return next(iter(self._batches[0][0].values()))

    def _difference(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], count: int
    ) -> float:
        if self._scores is not None:
            before, after = (
                class_scores(reference[self._scores]),
                class_scores(outputs[self._scores]),
            )
            assert before is not None
            assert after is not None
            before, after = before[:count], after[:count]
            known = np.isfinite(before).all(axis=1)
            if not np.isfinite(after[known]).all():
                return _BROKEN
            return kl_divergence(before[known], after[known]) if known.any() else 0.0
        errors = []
        for name, b in reference.items():
            if b.dtype.kind != "f":
                continue
            known = np.isfinite(b)
            a, wanted = outputs[name].astype(np.float64)[known], b.astype(np.float64)[known]
            if not np.isfinite(a).all():
                return _BROKEN
            power = float(np.sum(wanted**2))
            errors.append(float(np.sum((a - wanted) ** 2)) / max(power, _TINY))
        return float(np.mean(errors)) if errors else 0.0


def kl_divergence(before: np.ndarray, after: np.ndarray) -> float:
    """Mean KL(before || after) over rows, in nats; scores of shape (N, classes).

    Rows that are probabilities already are taken as they are, others through a softmax.
    """
    p, log_p = _distribution(before)
    _, log_q = _distribution(after)
    return max(float(np.mean(np.sum(p * (log_p - log_q), axis=1))), 0.0)


def _distribution(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and their logarithms."""
    values = scores.astype(np.float64)
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1.0, atol=1e-3):
        clipped = np.clip(values, _TINY, None)
        return values, np.log(clipped)
    shifted = values - values.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(log_p), log_p
