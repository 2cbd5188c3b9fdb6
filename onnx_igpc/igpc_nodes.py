"""Writing the nodes of one interleaved grouped pointwise convolution.

The literal form, one node for each part of the layout: grouped Conv (two and a Concat where groups
have different numbers of filters), Gather for replicated channels and for the interleave (one Gather
where both meet), grouped Conv, Add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_igpc.edit import GraphEdit, SubgraphBuilder
from onnx_igpc.fitting import IgpcWeights
from onnx_igpc.graph_walk import NodeHolder
from onnx_igpc.layout import GroupedStage, GroupLayout, compose_gathers, invert_permutation

# What follows a stage in the paper's form: given a tensor, a label and a name for what it makes
# (any, if None), appends its nodes and returns that name.
Unit = Callable[[str, str, str | None], str]


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
        if layout.l is None:
            order = layout.output_interleave
            k_bias = self._biases(layout.k, bias, bias_values, "K", order)
            k = self._stage(layout.k, "K", x, k_bias, output if order is None else None)
            return k if order is None else self._gather(k, order, "interleave", output)
        k_bias = self._biases(layout.k, bias if self.own_biases else None, bias_values, "K", None)
        k = self._stage(layout.k, "K", x, k_bias, None)
        l_bias = self._biases(layout.l, bias, bias_values, "L", None)
        l_out = self._stage(layout.l, "L", k, l_bias, None)
        return self.builder.add("Add", [l_out, k], output, self._name("add"))

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
        for index, path in enumerate(stage.paths):
            part = label if len(stage.paths) == 1 else f"{label}{index + 1}"
            order = path.inputs
            if interleave is not None:
                order = compose_gathers(interleave, order)
            source = x
            if order != tuple(range(stage.in_channels)):
                what = "interleave" if label == "L" else "replicate"
                suffix = "" if index == 0 else str(index + 1)
                source = self._gather(x, order, f"{what}{suffix}", None)
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
