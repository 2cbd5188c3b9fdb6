"""Writing the nodes of one interleaved grouped pointwise convolution.

The literal form, one node for each part of the layout: grouped Conv (two and a Concat where groups
have different numbers of filters), Gather for replicated channels and for the interleave (one Gather
where both meet), grouped Conv, Add.

Beyond the published layouts: no Add without the sum, and where several paths share out the channels
between them, one Gather (none, if they lie in order) and one Split in the place of a Gather each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_igpc.fitting.weights import IgpcWeights
from onnx_igpc.graph.edit import GraphEdit, SubgraphBuilder
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.layout.permutations import invert_permutation
from onnx_igpc.sites.find import Rewritable
from onnx_igpc.sites.rewrite import SiteTensors, StageIo
from onnx_igpc.sites.stages import write_paths
from onnx_igpc.sites.writer import NodeWriter

# What follows a stage in the paper's form: given a tensor, a label and a name for what it makes
# (any, if None), appends its nodes and returns that name.
Unit = Callable[[str, str, str | None], str]


@dataclass(frozen=True)
class Bias:
    """What is added once: one value for each filter, and the tensor that holds them, if any does."""

    values: np.ndarray
    stored: str = ""


class IgpcNodes(NodeWriter):
    """Writes one site: ``write`` returns the name of the tensor that the site makes.

    In the paper's form K and L have biases of their own (``own_biases``), starting at zero, and
    ``unit`` follows both.
    """

    part = "{label}{path}_input"
    sizes = "{label}.split"

    def __init__(
        self,
        edit: GraphEdit,
        site: Rewritable,
        layout: GroupLayout,
        tensors: SiteTensors,
        opset: int,
    ) -> None:
        origin = site.ref.proto
        attributes = [e for e in origin.attribute if e.name not in ("group", "kernel_shape")]
        builder = SubgraphBuilder(edit.names, origin)
        super().__init__(builder, f"{base_name(site)}/igpc", attributes, site.spatial_rank, opset)
        self.edit = edit
        self.layout = layout
        self.tensors = tensors
        self.own_biases = False
        self.unit: Unit | None = None
        self.stages: dict[str, StageIo] = {}
        self.convolutions: list[str] = []

    def write(self, x: str, bias: Bias | None, output: str) -> str:
        """Write all nodes; returns ``output``.

        A stored bias is used as it is where one convolution makes all filters.
        """
        layout = self.layout
        if self.own_biases and bias is not None:
            bias = Bias(np.zeros_like(bias.values))
        order = layout.output_interleave
        stage_output = output if order is None else None
        if layout.l is None:
            k_bias = self._biases(layout.k, bias, "K", order)
            y = self._stage(layout.k, "K", x, k_bias, stage_output)
        else:
            own_bias = bias if self.own_biases else None
            k_bias = self._biases(layout.k, own_bias, "K", order)
            k = self._stage(layout.k, "K", x, k_bias, None)
            l_bias = self._biases(layout.l, bias, "L", order)
            y = self._stage(layout.l, "L", k, l_bias, None if layout.has_sum else stage_output)
            if layout.has_sum:
                y = self.add(y, k, output=stage_output)
        return y if order is None else self.gather(y, "interleave", order, output)

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
        final = (output if self.unit is None else None) or self.value(label)
        weights = self.tensors.k if label == "K" else self.tensors.l

        def order(x: str, index: int | None, channels: tuple[int, ...]) -> str:
            return self.gather(
                x, _gather_label(stage, label) + str(index + 1 if index else ""), channels
            )

        def convolve(x: str, name: str, index: int, output: str | None) -> str:
            bias = biases[index]
            tensors = [weights[index]] if bias is None else [weights[index], bias]
            groups = stage.paths[index].groups
            made = self.convolution(x, name, tensors, groups, label == "K", output)
            self.convolutions.append(made)
            return made

        write_paths(self, x, label, stage, interleave, order, convolve, final)
        self.stages[label] = StageIo(x, final)
        if self.unit is None:
            return final
        return self.unit(final, label, output)

    def _biases(
        self,
        stage: GroupedStage,
        bias: Bias | None,
        label: str,
        interleave: tuple[int, ...] | None,
    ) -> list[str | None]:
        if bias is None:
            return [None] * len(stage.paths)
        if bias.stored and len(stage.paths) == 1 and interleave is None:
            return [bias.stored]
        values = bias.values
        ordered = values if interleave is None else values[list(invert_permutation(interleave))]
        names: list[str | None] = []
        first = 0
        for index, path in enumerate(stage.paths):
            part = ordered[first : first + path.filters]
            first += path.filters
            suffix = str(index + 1) if len(stage.paths) > 1 else ""
            names.append(self.constant(f"{label}{suffix}.bias", part))
        return names

    def gather(self, x: str, label: str, channels: Sequence[int], output: str | None = None) -> str:
        """Channels of ``x``; sites that share weights share the indices."""
        order = tuple(channels)
        if order not in self.tensors.indices:
            self.tensors.indices[order] = self.integers(f"{label}.indices", order)
        return self.node("Gather", [x, self.tensors.indices[order]], label, output, axis=1)

    def integers(self, label: str, values: Sequence[int]) -> str:
        return self.constant(label, np.asarray(values, dtype=np.int64))

    def constant(self, label: str, values: np.ndarray) -> str:
        """A constant of its own, shared with no other site."""
        return self.edit.constant(self.tensors.holder, self._wanted(label), values)


def _gather_label(stage: GroupedStage, label: str) -> str:
    if label == "L":
        return "interleave"
    in_order = stage.input_order == tuple(range(stage.in_channels))
    return "replicate" if in_order else "order"


def base_name(site: Rewritable) -> str:
    """What the names of all that is written for a site begin with."""
    return str(site.ref.name)


def add_weights(
    edit: GraphEdit, tensors: SiteTensors, site: Rewritable, weights: IgpcWeights
) -> None:
    """Add the kernels of K and L, shape (filters, channels per group, 1, ...), in the site's dtype."""
    for label, stage, names in (("K", weights.k, tensors.k), ("L", weights.l, tensors.l)):
        for index, values in enumerate(stage):
            suffix = str(index + 1) if len(stage) > 1 else ""
            kernel = values.astype(site.dtype).reshape(*values.shape, *[1] * site.spatial_rank)
            wanted = f"{base_name(site)}/igpc/{label}{suffix}.weight"
            names.append(edit.constant(tensors.holder, wanted, kernel))
