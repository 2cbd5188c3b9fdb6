"""How much an error in each filter of a site, and in each pair of filters, matters to the network's answer.

For a small change d of a site's output, KL(original || changed) is to second order half of d^T G d, where
G is the Fisher information matrix of that output: the mean of g g^T, g being the gradient of log p(y) and y
drawn from the model's own distribution p, not from labels (Amari, "Natural Gradient Works Efficiently
in Learning", Neural Computation 10, 1998). Positions are taken as independent of one another and of the
input: g g^T is summed over the positions of a sample, and where the site's matrix changes from W to M the
damage would be half of tr(G (W - M) S (W - M)^T), S being E[x x^T] over the positions of the site's input x.
In networks that pool, errors at the positions of one image add up, and the damage is two to thirty times
that, the most at the last sites: what is predicted so ranks changes, and is no measure of the damage.

Where a model has no class scores, its outputs b count by their relative squared error, E|a - b|^2 / E|b|^2
averaged over the outputs: G is such that it takes the place of KL in the above.

Neither is a class drawn nor every output's gradient computed: products of Jacobians are estimated with random
signs (Hutchinson, "A stochastic estimator of the trace of the influence matrix", Communications in
Statistics 19, 1990), one backward pass a sample.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
import torch
from threadpoolctl import threadpool_limits

from onnx_igpc.calibration.collect import feed_rows, no_samples, untapped_reason
from onnx_igpc.data.batches import Batch, Data
from onnx_igpc.errors import ModelError
from onnx_igpc.evaluation.differences import class_scores
from onnx_igpc.evaluation.output_kinds import output_kinds
from onnx_igpc.fitting.moments import add_products
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.runtime.at_once import at_once, pieces_at_once, threads_of_each
from onnx_igpc.runtime.session import make_session, other_outputs, session_outputs
from onnx_igpc.sites.find import Rewritable
from onnx_igpc.torch_bridge.convert import Hook, convert
from onnx_igpc.torch_bridge.running import as_list, in_words, placed, put_channels_innermost
from onnx_igpc.torch_bridge.tensors import compute_type, from_array
from onnx_igpc.torch_bridge.training.pairing import with_outputs

DEFAULT_SAMPLES = 128

# Samples that run at once, in all threads, if the model lets us choose: all that they compute is held for the way back.
_ROWS = 8
_CPU = torch.device("cpu")


def site_fisher(
    model: OpenModel,
    sites: Sequence[Rewritable],
    data: Data,
    *,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The Fisher information matrix of every site's output, by the site's name: shape (F, F), float64.

    The mean over samples of the sum over positions of g g^T, from one draw of signs a sample; symmetric and
    positive semi-definite. A site that no output depends on in a differentiable way has zeros.

    Args:
        model: the model; it is not changed. It runs as in inference.
        sites: of these, those in functions and sub-graphs, and those of a constant input, are left out.
        data: batches of all inputs of the model.
        samples: at most so many are read.
        seed: of the draws. The same seed and data give the same draws, however the data are batched.

    Raises:
        ModelError: the bridge does not know an operator, the model cannot run on the data in PyTorch, or
            the gradients of a site are finite for no batch.
        DataError: the data holds no sample that can be read.
    """
    seen = [site for site in sites if untapped_reason(site) is None]
    if not seen:
        return {}
    network = _Network(model, seen)
    parts = _Parts(model, data, samples)
    with _few_threads():
        objective = _objective(network, parts, seed)
    sums = {site.name: _Sum(site.out_channels) for site in seen}
    done = 0

    def products(part: _Part) -> tuple[dict[str, np.ndarray], int, int]:
        total, count = objective(network.run(part), part)
        gradients = network.gradients(total)
        made = {each.name: _products(gradients[_output(each)], each.out_channels) for each in seen}
        return made, count, part.count

    with _few_threads():
        for found, count, read in at_once(products, parts, _take_few_threads):
            for name, product in found.items():
                sums[name].add(product, count)
            done += read
    if not done:
        raise no_samples(data)
    return {site.name: sums[site.name].mean(site.name) for site in seen}


def _take_few_threads() -> None:
    torch.set_num_threads(threads_of_each())


@contextlib.contextmanager
def _few_threads() -> Iterator[None]:
    """Where several threads compute, each has few of its own; afterwards torch has as many as before."""
    threads = torch.get_num_threads()
    _take_few_threads()
    try:
        with threadpool_limits(threads_of_each(), "blas"):
            yield
    finally:
        torch.set_num_threads(threads)


class _Latest(threading.local):
    """What a thread's latest run was fed, and made at the sites."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []
        self.made: dict[str, torch.Tensor] = {}


class _Network:
    """The model in PyTorch, with the outputs to compare, and gradients from the first site on."""

    def __init__(self, model: OpenModel, sites: Sequence[Rewritable]) -> None:
        self._tensors = [_output(site) for site in sites]
        self._latest = _Latest()
        names = _compared(model) or list(dict.fromkeys(self._tensors))
        wanted = with_outputs(model.materialized(), [], names)
        self._module = convert(wanted, {name: self._watch(name) for name in self._tensors})
        self._module.eval().requires_grad_(False)
        put_channels_innermost(self._module)

    def _watch(self, name: str) -> Hook:
        def watch(value: torch.Tensor) -> torch.Tensor:
            # What comes before every site needs no way back.
            made = value if value.requires_grad else value.detach().requires_grad_()
            self._latest.made[name] = made
            return made

        return watch

    def run(self, part: Batch) -> list[torch.Tensor]:
        """The outputs for the feeds of a batch."""
        self._latest.made = {}
        inputs = self._latest.inputs = [
            _tensor(part.feeds[name]) for name in self._module.input_names
        ]
        with in_words(inputs):
            return as_list(self._module(*inputs))

    def gradients(self, total: torch.Tensor) -> Mapping[str, torch.Tensor | None]:
        """Of ``total``, a scalar, with respect to every site's output in this thread's latest run, by tensor."""
        found: dict[str, torch.Tensor | None] = dict.fromkeys(self._tensors)
        made, self._latest.made = self._latest.made, {}
        if total.requires_grad:
            with in_words(self._latest.inputs):
                values = torch.autograd.grad(total, list(made.values()), allow_unused=True)
            found |= dict(zip(made, values, strict=True))
        return found


def _output(site: Rewritable) -> str:
    return str(site.ref.proto.output[0])


def _tensor(feed: np.ndarray) -> torch.Tensor:
    kind = onnx.helper.np_dtype_to_tensor_dtype(feed.dtype)
    return placed(from_array(feed, compute_type(kind, "an input")), _CPU)


def _compared(model: OpenModel) -> list[str]:
    """The names of the outputs that can be compared by value."""
    session = make_session(model, threads=1, optimization="none")
    kinds = output_kinds(model.proto, session_outputs(session), other_outputs(session))
    return [each.name for each in kinds.outputs if not each.may_vary and not each.classes]


@dataclass(frozen=True)
class _Part(Batch):
    """first: which sample of the data its first one is."""

    first: int


@dataclass(frozen=True)
class _Parts:
    """Up to ``samples`` samples of the data, in batches that are small if the model lets them be."""

    model: OpenModel
    data: Data
    samples: int

    def __iter__(self) -> Iterator[_Part]:
        free = all(spec.fixed_batch is None for spec in model_inputs(self.model.proto))
        left = self.samples
        for batch in self.data:
            if left <= 0:
                return
            count, first = min(batch.count, left), self.samples - left
            left -= count
            if free and all(
                values.ndim and len(values) == batch.count for values in batch.feeds.values()
            ):
                each = max(_ROWS // pieces_at_once(), 1)
                for start in range(0, count, each):
                    rows = slice(start, min(start + each, count))
                    feeds = {name: values[rows] for name, values in batch.feeds.items()}
                    yield _Part(feeds, None, rows.stop - rows.start, first + start)
            else:
                yield _Part(batch.feeds, None, count, first)


class _Objective(Protocol):
    """What gradients are taken of: a sum over samples, and how many those are."""

    def __call__(
        self, outputs: Sequence[torch.Tensor], part: _Part
    ) -> tuple[torch.Tensor, int]: ...


def _objective(network: _Network, parts: _Parts, seed: int) -> _Objective:
    """The classes' probabilities where a single output has class scores, all outputs' values otherwise."""
    squares: list[float] = []
    done = 0
    with torch.no_grad():
        for part in parts:
            outputs = network.run(part)
            if not squares:
                rows = feed_rows(part)
                scores = [index for index, b in enumerate(outputs) if _holds_scores(b, rows)]
                if len(scores) == 1:
                    return _ClassSigns(scores[0], seed)
                squares = [0.0] * len(outputs)
            for index, value in enumerate(outputs):
                known = torch.nan_to_num(_counted(value, part).double(), 0.0, 0.0, 0.0)
                squares[index] += float(known.square().sum())
            done += part.count
    return _ValueSigns([square / done for square in squares], seed)


def _holds_scores(output: torch.Tensor, rows: int) -> bool:
    scores = class_scores(output.numpy())
    return output.is_floating_point() and scores is not None and len(scores) == rows


def _counted(value: torch.Tensor, part: Batch) -> torch.Tensor:
    """Without what belongs to samples that only fill up a fixed batch."""
    rows = feed_rows(part)
    if part.count < rows and value.dim() and len(value) % rows == 0:
        return value[: len(value) // rows * part.count]
    return value


@dataclass(frozen=True)
class _ClassSigns:
    """The logarithms of the classes' probabilities, each with a random sign and the root of its probability.

    Over the signs, g g^T of its gradient g has the same mean as over a class drawn by the probabilities, and
    spreads much less: where the model is sure, a class that it is not sure of is drawn seldom, and
    counts for much then.
    """

    index: int
    seed: int

    def __call__(self, outputs: Sequence[torch.Tensor], part: _Part) -> tuple[torch.Tensor, int]:
        scores = outputs[self.index][: part.count].flatten(1)
        signs = _signs((self.seed,), part, scores)
        known = scores.detach().isfinite().all(dim=1)
        logarithms = _logarithms(scores[known])
        factors = (logarithms.detach() / 2).exp() * signs[known]
        return (factors * logarithms).sum(), len(logarithms)


def _signs(seed: tuple[int, ...], part: _Part, like: torch.Tensor) -> torch.Tensor:
    """1 or -1 for every value, the same for a sample in whichever batch it comes."""
    alone = like.dim() and len(like) % part.count == 0
    each = (len(like) // part.count, *like.shape[1:]) if alone else tuple(like.shape)
    draws = [
        np.random.default_rng((*seed, part.first + sample)).random(each, np.float32) < 0.5
        for sample in range(part.count if alone else 1)
    ]
    positive = np.stack(draws).reshape(like.shape)
    return torch.from_numpy(positive).to(like.dtype) * 2 - 1


def _logarithms(scores: torch.Tensor) -> torch.Tensor:
    """Of the probabilities, shape [samples, classes]; rows that are probabilities stay what they are."""
    values = scores.detach()
    if (values >= 0).all() and torch.allclose(values.sum(dim=1), values.new_ones(()), atol=1e-3):
        return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
    return scores.log_softmax(dim=1)


@dataclass(frozen=True)
class _ValueSigns:
    """All values of the outputs with random signs, each output in the unit of its norm.

    squares: the mean over samples of the squared norm of each output.
    """

    squares: Sequence[float]
    seed: int

    def __call__(self, outputs: Sequence[torch.Tensor], part: _Part) -> tuple[torch.Tensor, int]:
        total = torch.zeros(())
        count = sum(output.is_floating_point() for output in outputs)
        for place, (square, output) in enumerate(zip(self.squares, outputs, strict=True)):
            if output.requires_grad and square > 0:
                value = _counted(output, part)
                weighted = _signs((self.seed, place), part, value) * value
                finite = weighted[value.detach().isfinite()].sum()
                total = total + finite * (2.0 / (square * count)) ** 0.5
        return total, part.count


def _products(gradient: torch.Tensor | None, filters: int) -> np.ndarray:
    """The sum of g g^T over the samples and positions of a gradient, shape (N, F, ...)."""
    product = np.zeros((filters, filters))
    if gradient is not None:
        columns = gradient.movedim(1, -1).reshape(-1, filters).numpy().T
        add_products(product, columns, columns)
    return product


class _Sum:
    """Adds up g g^T over positions and samples."""

    def __init__(self, filters: int) -> None:
        self._total = np.zeros((filters, filters))
        self._samples = 0

    def add(self, product: np.ndarray, samples: int) -> None:
        """Add the products of so many samples; nothing where they are not finite."""
        if np.isfinite(product).all():
            self._total += product
            self._samples += samples

    def mean(self, name: str) -> np.ndarray:
        """Over the samples; ModelError, which names the site, where there are none."""
        if not self._samples:
            raise ModelError(
                f"the gradients at {name!r} hold NaN or infinite values on all of the data"
            )
        return self._total / self._samples
