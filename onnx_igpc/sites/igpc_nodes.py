"""Writing the nodes of one interleaved grouped pointwise convolution.

The literal form, one node for each part of the layout: grouped Conv (two and a Concat where groups
have different numbers of filters), Gather for replicated channels and for the interleave (one Gather
where both meet), grouped Conv, Add.

Beyond the published layouts: no Add without the sum, and where several paths share out the channels
between them, one Gather (none, if they lie in order) and one Split in the place of a Gather each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.graph.edit import GraphEdit, SubgraphBuilder
from onnx_igpc.graph.traversal import NodeHolder
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.layout.path_sources import PathSources, path_sources
from onnx_igpc.layout.permutations import invert_permutation

# What follows a stage in the paper's form: given a tensor, a label and a name for what it makes
# (any, if None), appends its nodes and returns that name.
Unit = Callable[[str, str, str | None], str]

# From this opset on, Split takes its sizes as an input.
_OPSET_SPLIT_INPUT = 13


@dataclass
class SiteTensors:
    """Names of the constants of one rewritten weight, shared by all sites that share the weight."""

    holder: NodeHolder
    k: list[str] = field(default_factory=list)
    l: list[str] = field(default_factory=list)  # noqa: E741 - the paper's name
    indices: dict[tuple[int, ...], str] = field(default_factory=dict)


@dataclass(frozen=True)
class StageIo:
    """What a stage reads and makes: tensor names, for checking the written graph."""

    input: str
    output: str


@dataclass
class IgpcNodes:
    """Writes one site: ``write`` returns the name of the tensor that the site makes.

    ``base`` is what new names are derived from, ``conv_attributes`` are those of the dense Conv.
    In the paper's form K and L have biases of their own, starting at zero, and ``unit`` follows both.
    """

    edit: GraphEdit
    builder: SubgraphBuilder
    layout: GroupLayout
    tensors: SiteTensors
    base: str
    conv_attributes: Sequence[onnx.AttributeProto]
    spatial_rank: int
    own_biases: bool = False
    unit: Unit | None = None
    opset: int = 17
    stages: dict[str, StageIo] = field(default_factory=dict)
    convolutions: list[str] = field(default_factory=list)

    def write(self, x: str, bias: str | None, bias_values: np.ndarray | None, output: str) -> str:
        """Write all nodes; returns ``output``.

        ``bias`` names the tensor that holds ``bias_values``, which is used as it is where one
        convolution makes all filters; it is empty where no tensor holds them yet, and ``None``
        where nothing is added.
        """
        layout = self.layout
        if self.own_biases and bias_values is not None:
            bias_values = np.zeros_like(bias_values)
        order = layout.output_interleave
        stage_output = output if order is None else None
        if layout.l is None:
            k_bias = self._biases(layout.k, bias, bias_values, "K", order)
            y = self._stage(layout.k, "K", x, k_bias, stage_output)
        else:
            own_bias = bias if self.own_biases else None
            k_bias = self._biases(layout.k, own_bias, bias_values, "K", order)
            k = self._stage(layout.k, "K", x, k_bias, None)
            l_bias = self._biases(layout.l, bias, bias_values, "L", order)
            y = self._stage(layout.l, "L", k, l_bias, None if layout.has_sum else stage_output)
            if layout.has_sum:
                total = stage_output or self._value("add")
                y = self.builder.add("Add", [y, k], total, self._name("add"))
        return y if order is None else self._gather(y, order, "interleave", output)

    def _stage(
        self,
        stage: GroupedStage,
        label: str,
        x: str,
        biases: Sequence[str | None],
        output: str | None,
    ) -> str:
        """K or L with everything that belongs to it; returns the tensor it makes."""
        interleave = self.layout.interleave if label == "L" else None
        final = (output if self.unit is None else None) or self._value(label)
        made = []
        weights = self.tensors.k if label == "K" else self.tensors.l
        sources = path_sources(stage, interleave)
        shared = self._shared(sources, label, x)
        for index, path in enumerate(stage.paths):
            part = label if len(stage.paths) == 1 else f"{label}{index + 1}"
            source = shared[index]
            order = sources.gathers[index]
            if order is not None:
                suffix = "" if index == 0 else str(index + 1)
                source = self._gather(x, order, f"{_gather_label(stage, label)}{suffix}", None)
            inputs = [source, weights[index]]
            bias = biases[index]
            if bias is not None:
                inputs.append(bias)
            single = len(stage.paths) == 1
            made.append(
                self.builder.add(
                    "Conv",
                    inputs,
                    final if single else self._value(part),
                    self._name(part),
                    self._attributes(label),
                    group=path.groups,
                    kernel_shape=[1] * self.spatial_rank,
                )
            )
            self.convolutions.append(made[-1])
        if len(made) > 1:
            self.builder.add("Concat", made, final, self._name(f"{label}/concat"), axis=1)
        self.stages[label] = StageIo(x, final)
        if self.unit is None:
            return final
        return self.unit(final, label, output)

    def _shared(self, sources: PathSources, label: str, x: str) -> list[str]:
        """What each path reads of ``x`` before a Gather of its own: all of it, or its part."""
        if sources.order is not None:
            x = self._gather(x, sources.order, "interleave" if label == "L" else "order", None)
        read = [x] * len(sources.gathers)
        if sources.parts:
            names = [self._value(f"{label}{index + 1}_input") for index in sources.parts]
            sizes = list(sources.parts.values())
            self._split(x, sizes, names, label)
            for index, name in zip(sources.parts, names, strict=True):
                read[index] = name
        return read

    def _split(self, x: str, sizes: list[int], names: list[str], label: str) -> None:
        """Consecutive channels of ``x``; the sizes are an attribute up to opset 12."""
        name = self._name(f"{label}/split")
        if self.opset < _OPSET_SPLIT_INPUT:
            self.builder.add_with_outputs("Split", [x], names, name, axis=1, split=sizes)
            return
        wanted = f"{self.base}/igpc/{label}.split"
        values = np.asarray(sizes, dtype=np.int64)
        constant = self.edit.constant(self.tensors.holder, wanted, values)
        self.builder.add_with_outputs("Split", [x, constant], names, name, axis=1)

    def _attributes(self, label: str) -> list[onnx.AttributeProto]:
        """Strides, padding and whatever else the dense Conv has go to K; L moves nothing."""
        if label == "L":
            return []
        own = ("group", "kernel_shape")
        return [entry for entry in self.conv_attributes if entry.name not in own]

    def _biases(
        self,
        stage: GroupedStage,
        bias: str | None,
        values: np.ndarray | None,
        label: str,
        interleave: tuple[int, ...] | None,
    ) -> list[str | None]:
        if bias is None:
            return [None] * len(stage.paths)
        if bias and len(stage.paths) == 1 and interleave is None and not self.own_biases:
            return [bias]
        assert values is not None
        ordered = values if interleave is None else values[list(invert_permutation(interleave))]
        names: list[str | None] = []
        first = 0
        for index, path in enumerate(stage.paths):
            part = ordered[first : first + path.filters]
            first += path.filters
            suffix = str(index + 1) if len(stage.paths) > 1 else ""
            wanted = f"{self.base}/igpc/{label}{suffix}.bias"
            names.append(self.edit.constant(self.tensors.holder, wanted, part))
        return names

    def _gather(self, x: str, order: tuple[int, ...], label: str, output: str | None) -> str:
        if order not in self.tensors.indices:
            self.tensors.indices[order] = self.edit.constant(
                self.tensors.holder,
                f"{self.base}/igpc/{label}.indices",
                np.asarray(order, dtype=np.int64),
            )
        inputs = [x, self.tensors.indices[order]]
        target = output or self._value(label)
        return self.builder.add("Gather", inputs, target, self._name(label), axis=1)

    def _name(self, label: str) -> str:
        return self.builder.fresh(f"{self.base}/igpc/{label}")

    def _value(self, label: str) -> str:
        return self.builder.fresh(f"{self.base}/igpc/{label}_output")


def _gather_label(stage: GroupedStage, label: str) -> str:
    if label == "L":
        return "interleave"
    in_order = stage.input_order == tuple(range(stage.in_channels))
    return "replicate" if in_order else "order"


def add_weights(
    edit: GraphEdit,
    tensors: SiteTensors,
    base: str,
    weights: IgpcWeights,
    dtype: np.dtype,
    rank: int,
) -> None:
    """Add the kernels of K and L, shape (filters, channels per group, 1, ...), in ``dtype``."""
    for label, stage, names in (("K", weights.k, tensors.k), ("L", weights.l or (), tensors.l)):
        for index, values in enumerate(stage):
            suffix = str(index + 1) if len(stage) > 1 else ""
            kernel = values.astype(dtype).reshape(*values.shape, *[1] * rank)
            wanted = f"{base}/igpc/{label}{suffix}.weight"
            names.append(edit.constant(tensors.holder, wanted, kernel))
