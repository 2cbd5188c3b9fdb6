"""Reading the structure of an interleaved grouped convolution from its nodes.

Every tensor of a site holds channels of one of four kinds, in some order: of its input x, of K's
rows, of L's filters, or of their sum. Gather, Split and Concat choose channels, a Conv makes new ones
and the Add joins two kinds. What comes out at the end is a layout and its weights, or the node at
which the graph is something else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_igpc.fitting.weights import IgpcWeights, igpc_matrix
from onnx_igpc.graph.view import GraphView, NodeRef
from onnx_igpc.layout.extended import EXTENDED
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout, GroupPath
from onnx_igpc.layout.permutations import compose_gathers

_LEAST_INPUTS = {"Conv": 2, "Gather": 2, "Split": 1, "Concat": 1, "Add": 2}
LINEAR = frozenset(_LEAST_INPUTS)
# No convolution has as many channels; what a damaged file states is not taken at its word.
_MOST_CHANNELS = 2**20
# The output has as many channels as the first input.
_KEEPS_CHANNELS = frozenset(
    {
        "AveragePool",
        "BatchNormalization",
        "Clip",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "MaxPool",
        "Relu",
        "Sigmoid",
        "Tanh",
    }
)
_SHAPE_ONLY = ("group", "kernel_shape")


class NotRecognisedError(Exception):
    """Why a graph is not the interleaved grouped convolution that it is said to be."""


@dataclass(frozen=True, eq=False)
class Structure:
    """What nodes do: x -> M x + b, strided and padded like the dense Conv was.

    ``input`` and ``output`` are the tensors that they read and make. ``layout`` counts channels as the
    file has them now. ``k`` and ``l`` have one float64 array of shape (filters of the path, channels per
    group) for each path, ``bias`` is float64 of shape (F,), everything that is added anywhere.
    ``conv_attributes`` are K's, without group and kernel_shape; ``dtype`` is that of the stored weights.

    ``refs`` has the nodes themselves, ``k_convs`` and ``l_convs`` the convolutions of each path;
    they can be used until the model is edited.
    """

    layout: GroupLayout
    k: tuple[np.ndarray, ...]
    l: tuple[np.ndarray, ...]  # noqa: E741 - the paper's name
    bias: np.ndarray | None
    input: str
    output: str
    conv_attributes: tuple[onnx.AttributeProto, ...]
    dtype: np.dtype
    spatial_rank: int
    refs: tuple[NodeRef, ...] = field(repr=False)
    k_convs: tuple[NodeRef, ...] = field(repr=False)
    l_convs: tuple[NodeRef, ...] = field(repr=False)


@dataclass(frozen=True)
class _Channels:
    """What a tensor holds: channels ``order`` of ``kind`` x, k, l or y."""

    kind: str
    order: tuple[int, ...]


@dataclass
class _Stage:
    """K or L as far as it was read: its paths, their weights, and the biases of all its filters."""

    paths: list[GroupPath] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    biases: list[np.ndarray] = field(default_factory=list)
    refs: list[NodeRef] = field(default_factory=list)
    has_bias: bool = False

    @property
    def filters(self) -> int:
        return sum(path.filters for path in self.paths)

    def bias(self) -> np.ndarray:
        return np.concatenate(self.biases)


def read_structure(
    view: GraphView, refs: list[NodeRef], stated: tuple[str, int | None] = ("", None)
) -> Structure:
    """The layout and weights of the site that consists of ``refs``, in the order of the graph.

    Where a tensor before the last Gather is read by others as well, the Gather is left out.
    ``stated`` is the site's input as the digest has it, or nothing for any, and its number of
    channels, some of which may have no reader.

    Raises:
        NotRecognisedError: a node, an attribute or a tensor that does not belong to such a site.
    """
    refs, output = _with_one_output(view, refs)
    reader = _Reader(view, refs, stated)
    for ref in refs:
        reader.read(ref)
    return reader.structure(output)


def _with_one_output(view: GraphView, refs: list[NodeRef]) -> tuple[list[NodeRef], str]:
    read = _read_outside(view, refs)
    last = refs[-1]
    if len(read) > 1 and last.op_type == "Gather":
        refs = refs[:-1]
        read = _read_outside(view, refs)
    if len(read) > 1:
        raise NotRecognisedError(f"'{read[0]}' inside it is read by other nodes as well")
    if not read:
        raise NotRecognisedError("nothing reads what it makes")
    return refs, read[0]


def _read_outside(view: GraphView, refs: list[NodeRef]) -> list[str]:
    own = {id(ref.node) for ref in refs}
    return [
        str(tensor.name)
        for ref in refs
        for tensor in ref.node.outputs
        if view.is_output(tensor) or any(id(r.node) not in own for r in view.consumers(tensor))
    ]


class _Reader:
    """Reads the nodes of one site in order."""

    def __init__(
        self, view: GraphView, refs: list[NodeRef], stated: tuple[str, int | None]
    ) -> None:
        self.view = view
        self.refs = refs
        for ref in refs:
            if not ref.is_standard or ref.op_type not in LINEAR:
                raise NotRecognisedError(f"{ref.label} does not belong to such a site")
            if len(ref.proto.input) < _LEAST_INPUTS[ref.op_type]:
                raise NotRecognisedError(f"{ref.label} lacks inputs")
        self.input = ""
        self.stages = {"K": _Stage(), "L": _Stage()}
        self.known: dict[str, _Channels] = {}
        self.attributes: tuple[onnx.AttributeProto, ...] = ()
        first = next((ref for ref in refs if ref.op_type == "Conv"), None)
        if first is None:
            raise NotRecognisedError("it has no convolution")
        weight = self._weight(first)
        self.dtype, self.rank = weight.dtype, weight.ndim - 2
        self.channels = self._input_channels(stated)

    def read(self, ref: NodeRef) -> None:
        """Note what ``ref`` makes."""
        if ref.is_parametrized:
            raise NotRecognisedError(f"{ref.label} has attributes that callers set")
        made = getattr(self, f"_{ref.op_type.lower()}")(ref)
        if len(made) != len(ref.node.outputs):
            raise NotRecognisedError(f"{ref.label} has {len(ref.node.outputs)} outputs")
        for tensor, channels in zip(ref.node.outputs, made, strict=True):
            self.known[str(tensor.name)] = channels

    def structure(self, output: str) -> Structure:
        """What was read, the site making ``output``."""
        k, l_stage = self.stages["K"], self.stages["L"]
        last = self.known[output]
        has_l, has_sum = bool(l_stage.paths), last.kind == "y"
        if last.kind not in (("l", "y") if has_l else ("k",)):
            raise NotRecognisedError(f"'{output}' is not made by its last stage")
        filters = l_stage.filters if has_l else k.filters
        if len(last.order) != filters or len(set(last.order)) != filters:
            raise NotRecognisedError(f"'{output}' does not have each of its filters once")
        order = None if last.order == tuple(range(filters)) else last.order
        layout = GroupLayout(
            EXTENDED,
            self.channels,
            filters,
            max(path.channels_per_group for path in k.paths),
            GroupedStage(self.channels, tuple(k.paths)),
            GroupedStage(k.filters, tuple(l_stage.paths)) if has_l else None,
            output_interleave=order,
            has_sum=has_sum,
        )
        return Structure(
            layout,
            tuple(k.weights),
            tuple(l_stage.weights),
            self._bias(layout),
            self.input,
            output,
            self.attributes,
            self.dtype,
            self.rank,
            tuple(self.refs),
            tuple(k.refs),
            tuple(l_stage.refs),
        )

    def _bias(self, layout: GroupLayout) -> np.ndarray | None:
        """All that is added, seen at the end: K's biases go through L as K's rows do."""
        k, l_stage = self.stages["K"], self.stages["L"]
        if not (k.has_bias or l_stage.has_bias):
            return None
        if layout.l is None:
            total = k.bias()
        else:
            stage = IgpcWeights(tuple(l_stage.weights))
            alone = GroupLayout(EXTENDED, k.filters, layout.out_channels, 1, layout.l)
            total = l_stage.bias() + igpc_matrix(alone, stage) @ k.bias()
            if layout.has_sum:
                total = total + k.bias()
        order = layout.output_interleave
        return total if order is None else total[list(order)]

    def _input_channels(self, stated: tuple[str, int | None]) -> int:
        """C, from the nodes that read x: the only tensor not made here and not constant."""
        made = {name for ref in self.refs for name in ref.proto.output}
        read = {}
        for ref in self.refs:
            several = ref.op_type in ("Add", "Concat")
            for tensor in ref.node.inputs if several else ref.node.inputs[:1]:
                if tensor.name not in made:
                    read[str(tensor.name)] = tensor
        if len(read) != 1:
            raise NotRecognisedError(f"it reads {len(read)} tensors, not one")
        self.input, tensor = next(iter(read.items()))
        counts = [self._read_by(ref) for ref in self.refs if ref.proto.input[0] == self.input]
        least = max(count for count, _ in counts)
        known = [count for count, is_all in counts if is_all]
        if stated[0] in ("", self.input) and stated[1] is not None:
            known.append(stated[1])
        elif (channels := _channels(self.view, tensor)) is not None:
            known.append(channels)
        if not known:
            raise NotRecognisedError(f"how many channels '{self.input}' has is not known")
        if len(set(known)) > 1 or known[0] < least:
            raise NotRecognisedError(f"its nodes do not read all {known[0]} channels alike")
        if known[0] > _MOST_CHANNELS:
            raise NotRecognisedError(f"{known[0]} channels are too many")
        self.known[self.input] = _Channels("x", tuple(range(known[0])))
        return known[0]

    def _read_by(self, ref: NodeRef) -> tuple[int, bool]:
        """How many channels of x there are at least, as ``ref`` reads it, and whether that is all."""
        if ref.op_type == "Conv":
            return int(ref.attribute("group", 1)) * self._weight(ref).shape[1], True
        if ref.op_type == "Gather":
            return max(self._indices(ref), default=0) + 1, False
        if ref.op_type == "Split":
            return sum(self._sizes(ref)), True
        raise NotRecognisedError(f"{ref.label} reads the site's input")

    def _constant(self, ref: NodeRef, index: int) -> np.ndarray:
        found = None
        if index < len(ref.node.inputs):
            found = self.view.constant(ref.node.inputs[index], ref.scope)
        if found is None:
            raise NotRecognisedError(f"{ref.label} reads what is computed at run time")
        return found.values()

    def _weight(self, ref: NodeRef) -> np.ndarray:
        weight = self._constant(ref, 1)
        if weight.ndim < 3 or any(size != 1 for size in weight.shape[2:]):
            raise NotRecognisedError(f"{ref.label} is not pointwise")
        return weight

    def _indices(self, ref: NodeRef) -> tuple[int, ...]:
        indices = self._constant(ref, 1)
        if ref.attribute("axis", 0) != 1 or indices.ndim != 1 or (indices < 0).any():
            raise NotRecognisedError(f"{ref.label} does not gather channels")
        return tuple(int(each) for each in indices)

    def _source(self, ref: NodeRef, index: int = 0) -> _Channels:
        name = str(ref.proto.input[index])
        if name not in self.known:
            raise NotRecognisedError(f"{ref.label} reads '{name}', which is not made before it")
        return self.known[name]

    def _gather(self, ref: NodeRef) -> list[_Channels]:
        source, chosen = self._source(ref), self._indices(ref)
        if max(chosen, default=0) >= len(source.order):
            raise NotRecognisedError(f"{ref.label} gathers more than {len(source.order)} channels")
        return [_Channels(source.kind, compose_gathers(source.order, chosen))]

    def _sizes(self, ref: NodeRef) -> list[int]:
        if ref.attribute("axis", 0) != 1:
            raise NotRecognisedError(f"{ref.label} does not split channels")
        given = ref.attribute("split")
        return [int(each) for each in (given or self._constant(ref, 1))]

    def _split(self, ref: NodeRef) -> list[_Channels]:
        source, sizes = self._source(ref), self._sizes(ref)
        bounds = [0, *accumulate(sizes)]
        if bounds[-1] != len(source.order) or min(sizes) < 0:
            raise NotRecognisedError(f"{ref.label} splits {bounds[-1]} channels")
        return [_Channels(source.kind, source.order[a:b]) for a, b in pairwise(bounds)]

    def _concat(self, ref: NodeRef) -> list[_Channels]:
        parts = [self._source(ref, index) for index in range(len(ref.proto.input))]
        kinds = {part.kind for part in parts}
        if ref.attribute("axis") != 1 or len(kinds) > 1:
            raise NotRecognisedError(f"{ref.label} does not join the paths of a stage")
        return [_Channels(kinds.pop(), tuple(i for part in parts for i in part.order))]

    def _add(self, ref: NodeRef) -> list[_Channels]:
        first, second = self._source(ref), self._source(ref, 1)
        whole = tuple(range(self.stages["K"].filters))
        if {first.kind, second.kind} != {"k", "l"} or not first.order == second.order == whole:
            raise NotRecognisedError(f"{ref.label} does not add K's output to L's")
        return [_Channels("y", whole)]

    def _conv(self, ref: NodeRef) -> list[_Channels]:
        source = self._source(ref)
        if source.kind not in ("x", "k"):
            raise NotRecognisedError(f"{ref.label} comes after L")
        label = "K" if source.kind == "x" else "L"
        stage, weight = self.stages[label], self._weight(ref)
        groups = int(ref.attribute("group", 1))
        if groups * weight.shape[1] != len(source.order) or weight.shape[0] % groups:
            raise NotRecognisedError(f"{ref.label} does not fit {len(source.order)} channels")
        self._check_attributes(ref, label, weight)
        bias = np.zeros(weight.shape[0])
        if ref.has_input(2):
            bias = self._constant(ref, 2).astype(np.float64)
            stage.has_bias = True
        if bias.shape != weight.shape[:1]:
            raise NotRecognisedError(f"{ref.label} has a bias that does not fit its filters")
        first = stage.filters
        filters = weight.shape[0] // groups
        stage.paths.append(GroupPath(groups, weight.shape[1], filters, source.order))
        stage.weights.append(weight.reshape(weight.shape[:2]).astype(np.float64))
        stage.biases.append(bias)
        stage.refs.append(ref)
        return [_Channels(label.lower(), tuple(range(first, first + weight.shape[0])))]

    def _check_attributes(self, ref: NodeRef, label: str, weight: np.ndarray) -> None:
        """All paths of K move over the input alike, those of L do not, and all have one dtype."""
        if weight.dtype != self.dtype or weight.ndim - 2 != self.rank:
            raise NotRecognisedError(f"{ref.label} has weights of another type or rank")
        own = tuple(entry for entry in ref.proto.attribute if entry.name not in _SHAPE_ONLY)
        if label == "L":
            steps, pads = ref.attribute("strides", ()), ref.attribute("pads", ())
            if any(step != 1 for step in steps) or any(pads):
                raise NotRecognisedError(f"{ref.label} has strides or padding")
        elif not self.stages["K"].paths:
            self.attributes = own
        elif _plain(own) != _plain(self.attributes):
            raise NotRecognisedError(f"{ref.label} has other attributes than the rest of K")


def _channels(view: GraphView, tensor: gs.Tensor) -> int | None:
    """How many channels a tensor has: as declared, or as what makes it says."""
    while True:
        shape = tensor.shape
        if shape is not None and len(shape) > 1 and isinstance(shape[1], int):
            return shape[1]
        maker = view.producer(tensor)
        if maker is None or not maker.is_standard:
            return None
        if maker.op_type == "Conv":
            weight = view.constant(maker.node.inputs[1], maker.scope)
            return int(weight.values().shape[0]) if weight else None
        if maker.op_type not in _KEEPS_CHANNELS:
            return None
        tensor = maker.node.inputs[0]


def _plain(attributes: tuple[onnx.AttributeProto, ...]) -> dict[str, object]:
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in attributes}
