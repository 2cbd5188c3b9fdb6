"""What sites are written with: names, constants and nodes in the place of one site."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_igpc.errors import ModelError
from onnx_igpc.graph.edit import GraphEdit, SubgraphBuilder
from onnx_igpc.graph.traversal import NodeHolder
from onnx_igpc.sites.subgraph import IgpcSubgraph

_OPSET_SPLIT_INPUT = 13
_OPSET_SLICE_INPUT = 10


@dataclass
class SharedConstants:
    """Constants by their values, so that sites that shared weights share them still."""

    edit: GraphEdit
    _known: dict[tuple[object, ...], str] = field(default_factory=dict)

    def name(self, holder: NodeHolder, wanted: str, values: np.ndarray) -> str:
        """The tensor that holds ``values``: a known one, or a new one named like ``wanted``."""
        stored = np.ascontiguousarray(values)
        digest = hashlib.sha256(stored.tobytes()).digest()
        key = (id(holder), stored.dtype.str, stored.shape, digest)
        if key not in self._known:
            self._known[key] = self.edit.constant(holder, wanted, stored)
        return self._known[key]


class NodeWriter(ABC):
    """Writes the nodes of one site.

    Tensors are given and returned by name. Node methods return the tensor they make: ``output``
    where it is given, or else a new one. All new names begin with ``prefix``. ``conv_attributes`` are
    those of the first convolution: strides, padding and whatever else the dense one has.
    """

    part = "{label}/split{place}"
    """What the parts of a Split are called, by their place or the index of the path they are for."""
    sizes = "{label}/split.sizes"
    """What their sizes are called."""

    def __init__(
        self,
        builder: SubgraphBuilder,
        prefix: str,
        conv_attributes: Sequence[onnx.AttributeProto],
        spatial_rank: int,
        opset: int,
    ) -> None:
        self.opset = opset
        self._builder = builder
        self._prefix = prefix
        self._conv_attributes = conv_attributes
        self._spatial_rank = spatial_rank

    @abstractmethod
    def integers(self, label: str, values: Sequence[int]) -> str:
        """An int64 constant."""

    @property
    def node_names(self) -> tuple[str, ...]:
        """The nodes written so far."""
        return tuple(self._builder.node_names)

    def nodes(self) -> list[onnx.NodeProto]:
        """All nodes as protobuf messages."""
        return self._builder.build(self.opset)

    def convolution(
        self,
        x: str,
        label: str,
        tensors: Sequence[str],
        groups: int,
        moving: bool,
        output: str | None,
    ) -> str:
        """A pointwise convolution with a kernel and perhaps a bias; as the first one if ``moving``."""
        attributes = self._conv_attributes if moving else ()
        shape = {"group": groups, "kernel_shape": [1] * self._spatial_rank}
        return self.node("Conv", [x, *tensors], label, output, attributes, **shape)

    def gather(self, x: str, label: str, channels: Sequence[int], output: str | None = None) -> str:
        """Channels of ``x``."""
        inputs = [x, self.integers(f"{label}.indices", channels)]
        return self.node("Gather", inputs, label, output, axis=1)

    def add(self, a: str, b: str, label: str = "add", output: str | None = None) -> str:
        """a + b."""
        return self.node("Add", [a, b], label, output)

    def concat(self, parts: Sequence[str], label: str, output: str | None = None) -> str:
        """The channels of all parts."""
        return self.node("Concat", parts, label, output, axis=1)

    def split(self, x: str, label: str, sizes: Mapping[int, int]) -> dict[int, str]:
        """Consecutive channels of ``x`` for the paths of a stage, by index.

        The sizes are an attribute up to opset 12.
        """
        made = {
            index: self.value(self.part.format(label=label, place=place, path=index + 1))
            for place, index in enumerate(sizes, start=1)
        }
        name = self._builder.fresh(self._wanted(f"{label}/split"))
        outputs, stated = list(made.values()), list(sizes.values())
        if self.opset < _OPSET_SPLIT_INPUT:
            self._builder.add_with_outputs("Split", [x], outputs, name, axis=1, split=stated)
        else:
            inputs = [x, self.integers(self.sizes.format(label=label), stated)]
            self._builder.add_with_outputs("Split", inputs, outputs, name, axis=1)
        return made

    def slice(self, x: str, label: str, start: int, end: int, axis: int = 0) -> str:
        """Elements from ``start`` to before ``end``; the bounds are attributes up to opset 9."""
        if self.opset < _OPSET_SLICE_INPUT:
            return self.node("Slice", [x], label, starts=[start], ends=[end], axes=[axis])
        parts = (("starts", start), ("ends", end), ("axes", axis))
        inputs = [self.integers(f"{label}.{part}", [value]) for part, value in parts]
        return self.node("Slice", [x, *inputs], label)

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        label: str,
        output: str | None = None,
        attributes: Sequence[onnx.AttributeProto] = (),
        **attrs: object,
    ) -> str:
        """Any node of one output."""
        made = output or self.value(label)
        name = self._builder.fresh(self._wanted(label))
        return self._builder.add(op, inputs, made, name, attributes, **attrs)

    def value(self, label: str) -> str:
        """A new name for a tensor."""
        return self._builder.fresh(self._wanted(f"{label}_output"))

    def _wanted(self, label: str) -> str:
        return f"{self._prefix}/{label}"


class SiteWriter(NodeWriter):
    """Writes a site in another way; all names are derived from the original Conv's."""

    def __init__(self, site: IgpcSubgraph, constants: SharedConstants, opset: int) -> None:
        builder = SubgraphBuilder(constants.edit.names, site.refs[0].proto)
        prefix = f"{site.nodes[0].split('/igpc/')[0]}/igpc/lowered"
        super().__init__(builder, prefix, site.conv_attributes, site.spatial_rank, opset)
        self.site = site
        self._constants = constants

    def weights(self, label: str, values: np.ndarray) -> str:
        """A float constant in the site's dtype.

        Raises:
            ModelError: a value that is too large for it.
        """
        with np.errstate(over="ignore"):
            stored = values.astype(self.site.dtype)
        if not np.isfinite(stored).all():
            raise ModelError(
                f"site {self.site.name!r} cannot be lowered this way: {label} would not be finite "
                f"in {self.site.dtype}"
            )
        return self._constants.name(self.site.holder, self._wanted(label), stored)

    def integers(self, label: str, values: Sequence[int]) -> str:
        stored = np.asarray(values, dtype=np.int64)
        return self._constants.name(self.site.holder, self._wanted(label), stored)

    def conv(
        self,
        x: str,
        label: str,
        weight: np.ndarray,
        *,
        groups: int = 1,
        bias: np.ndarray | None = None,
        moving: bool = False,
        output: str | None = None,
    ) -> str:
        """A pointwise convolution; ``weight`` has shape (filters, channels per group).

        ``moving`` gives it the strides and padding of the site, as the first convolution needs.
        """
        kernel = weight.reshape(*weight.shape, *[1] * self.site.spatial_rank)
        tensors = [self.weights(f"{label}.weight", kernel)]
        if bias is not None:
            tensors.append(self.weights(f"{label}.bias", bias))
        return self.convolution(x, label, tensors, groups, moving, output)
