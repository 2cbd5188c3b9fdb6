"""Where a model will be quantized, read off the model that a quantizer made of it.

The quantizer folds BatchNormalization first. Behind a convolution that changes every filter by a factor of its
own, which a scale for each filter takes up: the integers are the same. Inside of a rewritten site it changes
tensors between its convolutions, too, channel by channel; by which factors is found by running both models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnx_igpc.torch_bridge.convert import convert
from onnx_igpc.torch_bridge.running import as_list
from onnx_igpc.torch_bridge.training.comparable import Survey
from onnx_igpc.torch_bridge.training.pairing import with_outputs

_SCALE, _QUANTIZED, _INPUT = "_scale", "_quantized", "_QuantizeLinear_Input"
# What a quantizer folds into the layer that it follows, or lets its rounding do.
_FOLDED = ("BatchNormalization", "Clip", "Relu", "Identity")
_MOST_FOLDED = 4
# Seven-bit weights reach this far, eight-bit ones to 127.
_REDUCED = 64
# Two computations of the same tensor differ by less, and so do weights before and after a fold.
_SAME = 1e-3


@dataclass(frozen=True)
class Int8Model:
    """A model on its way to int8: ``prepared`` in float, as it is quantized, and ``quantized`` (QDQ)."""

    prepared: ModelProto
    quantized: ModelProto


Quantizer = Callable[[ModelProto], Int8Model]
"""Quantizes a float model. Where, and to which integers, counts; ranges do not."""


@dataclass(frozen=True)
class Levels:
    """Integers from ``lowest`` to ``highest``; ``symmetric``: 0 stands for 0."""

    lowest: int
    highest: int
    symmetric: bool


@dataclass(frozen=True)
class Fold:
    """A tensor becomes itself times ``factor`` plus ``shift``, which it takes in the shapes that they have.

    A factor of 0 leaves nothing of it, which cannot be undone.
    """

    factor: torch.Tensor
    shift: torch.Tensor

    def done(self, value: torch.Tensor) -> torch.Tensor:
        return value * self.factor.to(value.device) + self.shift.to(value.device)

    def undone(self, value: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """``before`` with what became of it since; itself where nothing is left."""
        factor = self.factor.to(value.device)
        some = factor != 0
        own = (value - self.shift.to(value.device)) / factor.where(some, torch.ones_like(factor))
        return own.where(some, before)


@dataclass(frozen=True)
class Activation:
    """A tensor that is rounded; ``like``: the one whose range it has. ``fold``: what becomes of it before that."""

    like: str
    levels: Levels
    fold: Fold | None = None


@dataclass(frozen=True)
class Weight:
    """A weight that is rounded, with a scale for each index on ``axis``, ``None``: one scale. ``factor``: what
    the fold divides it by, besides its filters, in a shape that it takes."""

    axis: int | None
    levels: Levels
    factor: torch.Tensor | None = None


@dataclass(frozen=True)
class Places:
    """Tensors and weights that are rounded, by name. ``unknown``: those of the quantized model alone."""

    activations: dict[str, Activation] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def find_places(model: ModelProto, int8: Int8Model, inputs: Mapping[str, torch.Tensor]) -> Places:
    """The places of ``int8`` in the model that it was made of.

    inputs: some samples, which show what was folded into which tensor.
    """
    search = _Search(model, int8)
    places = Places()
    for name, place in search.activations():
        places.activations[name] = place
    folds = _folds(model, int8.prepared, list(places.activations), inputs)
    for name, fold in folds.items():
        if isinstance(fold, Fold):
            places.activations[name] = replace(places.activations[name], fold=fold)
        elif fold:
            places.unknown.append(name)
            del places.activations[name]
    for name, weight in search.weights({k: v for k, v in folds.items() if isinstance(v, Fold)}):
        if weight is None:
            places.unknown.append(name)
        else:
            places.weights[name] = weight
    places.unknown.extend(search.strange)
    return places


class _Search:
    def __init__(self, model: ModelProto, int8: Int8Model) -> None:
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.known = set(self.makers) | {value.name for value in model.graph.input}
        self.stored = _constants(model)
        self.prepared = _constants(int8.prepared)
        self.graph = int8.quantized.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.sources = {
            node.output[0]: node for node in self.graph.node if node.op_type == "DequantizeLinear"
        }
        self.strange: list[str] = []

    def activations(self) -> Iterator[tuple[str, Activation]]:
        """Every tensor that a QuantizeLinear rounds."""
        first: dict[str, str] = {}
        for node in self.graph.node:
            if node.op_type != "QuantizeLinear":
                continue
            name = node.input[0].removesuffix(_INPUT)
            if name not in self.known:
                self.strange.append(name)
                continue
            # Operators that only move values give out what they get in the same integers.
            like = first.setdefault(node.input[1], name)
            zero = numpy_helper.to_array(self.constants[node.input[2]])
            yield name, Activation(like, _levels(zero))

    def weights(self, folds: Mapping[str, Fold]) -> Iterator[tuple[str, Weight | None]]:
        """Every stored weight that a DequantizeLinear reads, but biases."""
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                source = self.sources.get(name)
                if source is None or source.input[0] not in self.constants:
                    continue
                integers = self.constants[source.input[0]]
                if integers.data_type == TensorProto.INT32:
                    continue
                base = source.input[0].removesuffix(_QUANTIZED)
                own = base if base in self.stored else self._unfolded(node, index)
                if own is None:
                    yield base, None
                    continue
                factor = self._columns(node, own, folds)
                if base != own and not self._same(own, base, factor):
                    yield own, None
                    continue
                yield own, self._weight(source, integers, factor)

    def _unfolded(self, node: NodeProto, index: int) -> str | None:
        """The weight in the model that the quantizer began with, of a node into which others were folded."""
        name = node.output[0].removesuffix(_INPUT)
        for _ in range(_MOST_FOLDED):
            maker = self.makers.get(name)
            if maker is None:
                return None
            if maker.op_type == node.op_type:
                return self._stored(maker.input[index])
            if maker.op_type not in _FOLDED:
                return None
            name = maker.input[0]
        return None

    def _stored(self, name: str) -> str | None:
        while name not in self.stored and name in self.makers:
            if self.makers[name].op_type != "Identity":
                return None
            name = self.makers[name].input[0]
        return name if name in self.stored else None

    def _columns(self, node: NodeProto, own: str, folds: Mapping[str, Fold]) -> torch.Tensor | None:
        """What the channels that a convolution reads are multiplied by, in the shape of its weight."""
        source = self.sources.get(node.input[0])
        read = source.input[0] if source is not None else node.input[0]
        maker = next((each for each in self.graph.node if read in each.output), None)
        name = maker.input[0] if maker is not None and maker.op_type == "QuantizeLinear" else read
        fold = folds.get(name.removesuffix(_INPUT))
        if fold is None or node.op_type != "Conv":
            return None
        factor = fold.factor.where(fold.factor != 0, torch.ones_like(fold.factor))
        filters, width, *window = self.stored[own].shape
        groups = factor.numel() // width
        columns = factor.reshape(groups, 1, width).expand(groups, filters // groups, width)
        return columns.reshape(filters, width, *[1] * len(window))

    def _same(self, own: str, base: str, factor: torch.Tensor | None) -> bool:
        """Whether the fold did to a weight what is known of it: a factor for each filter, and ``factor``."""
        before, after = self.stored[own], self.prepared.get(base)
        if after is None or after.shape != before.shape:
            return False
        undone = after if factor is None else after * factor.numpy()
        one, other = before.reshape(len(before), -1), undone.reshape(len(before), -1)
        norms = (one**2).sum(1)
        ratio = (one * other).sum(1) / np.where(norms == 0, 1, norms)
        left = np.abs(other - ratio[:, None] * one).max(1, initial=0.0)
        return bool((left <= _SAME * np.abs(other).max(1, initial=0.0) + 1e-30).all())

    def _weight(
        self, source: NodeProto, integers: TensorProto, factor: torch.Tensor | None
    ) -> Weight:
        axis = next((each.i for each in source.attribute if each.name == "axis"), 1)
        several = bool(self.constants[source.input[1]].dims)
        zero = numpy_helper.to_array(self.constants[source.input[2]])
        levels = _levels(zero, symmetric=zero.dtype == np.int8)
        reach = int(np.abs(numpy_helper.to_array(integers).astype(np.int64)).max(initial=0))
        if levels.symmetric and 0 < reach <= _REDUCED:
            levels = Levels(-_REDUCED, _REDUCED, True)
        return Weight(axis if several else None, levels, factor)


def _levels(zero: np.ndarray, symmetric: bool | None = None) -> Levels:
    """The integers of a zero point's type; symmetric ones leave the lowest out."""
    kind = np.iinfo(zero.dtype)
    if symmetric is None:
        symmetric = kind.min < 0 and not zero.any()
    return Levels(int(kind.min) + symmetric, int(kind.max), symmetric)


def _constants(model: ModelProto) -> dict[str, np.ndarray]:
    """The stored tensors of floats, in float64."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values = [each.t for each in node.attribute if each.name == "value"]
            found |= dict(zip(node.output, values, strict=False))
    return {
        name: numpy_helper.to_array(each).astype(np.float64)
        for name, each in found.items()
        if each.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE)
    }


def _folds(
    model: ModelProto,
    prepared: ModelProto,
    names: Sequence[str],
    inputs: Mapping[str, torch.Tensor],
) -> dict[str, Fold | bool]:
    """What the preparation made of each tensor; where that is no fold: whether it is another tensor at all.

    Tensors that training cannot compare are left out.
    """
    surveys = Survey(model), Survey(prepared)
    names = [
        name
        for name in names
        if all(name in each.computed and name not in each.inner for each in surveys)
    ]
    if not names:
        return {}
    before, after = (_tensors(each, names, inputs) for each in (model, prepared))
    return {
        name: _fold(one.double(), other.double())
        for name, one, other in zip(names, before, after, strict=True)
        if one.is_floating_point()
    }


def _fold(before: torch.Tensor, after: torch.Tensor) -> Fold | bool:
    """The straight line through the values of each channel, if they lie on one."""
    if before.shape != after.shape:
        return True
    least = _SAME * float(after.abs().max()) + 1e-30
    if float((after - before).abs().max()) <= least:
        return False
    if before.dim() < 2:
        return True
    axes = [0, *range(max(before.dim() - 2, 2), before.dim())]
    means = before.mean(axes, keepdim=True), after.mean(axes, keepdim=True)
    spread = before - means[0]
    norms = spread.square().sum(axes, keepdim=True)
    factor = (spread * (after - means[1])).sum(axes, keepdim=True)
    factor = factor / norms.where(norms > 0, torch.ones_like(norms))
    shift = means[1] - factor * means[0]
    if float((after - factor * before - shift).abs().max()) > least:
        return True
    return Fold(factor[0].float(), shift[0].float())


def _tensors(
    model: ModelProto, names: Sequence[str], inputs: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """What the model's tensors of these names hold."""
    module = convert(with_outputs(model, [], names)).eval()
    with torch.no_grad():
        return as_list(module(*(inputs[name] for name in module.input_names)))
