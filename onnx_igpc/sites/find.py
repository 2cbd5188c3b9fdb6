"""Finding the pointwise convolutions of a model: each a site to rewrite, or kept with a reason."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_igpc.errors import ModelError, UsageError, texts, with_flags
from onnx_igpc.graph.view import TRANSPARENT, ConstantRef, GraphView, NodeRef
from onnx_igpc.sites.conv_form import malformed
from onnx_igpc.sites.foreign_convolutions import (
    ForeignConvolution,
    foreign_convolution,
    foreign_reason,
)
from onnx_igpc.sites.weight_shapes import Shape, constant_shape, sparse_weight, weight_shapes

# Between a head and the output that it makes stand only operators that move, normalise or choose values.
_AFTER_HEAD = frozenset(
    {
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Concat",
        "Identity",
        "Cast",
        "Softmax",
        "LogSoftmax",
        "Hardmax",
        "Sigmoid",
        "Slice",
        "Split",
        "Resize",
        "Upsample",
        "ArgMax",
        "ArgMin",
        "TopK",
        "NonMaxSuppression",
        "ZipMap",
    }
)
_HEAD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_SUPPORTED_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class SiteFilter:
    """Which sites may be rewritten: globs on the node's name, and whether heads are included.

    A node without a name goes by the name of its first output. A single glob can be a plain string.
    """

    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()
    include_heads: bool = False

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            object.__setattr__(self, name, texts(name, getattr(self, name)))


@dataclass(frozen=True, eq=False)
class Kept:
    """A pointwise convolution that stays as it is, and the reason.

    ``part_of`` names the site that an earlier run rewrote and that this convolution is a part of.
    ``output`` is the tensor that it makes.
    """

    name: str
    ref: NodeRef
    output: str
    reason: str
    in_channels: int | None = None
    out_channels: int | None = None
    part_of: str | None = None


@dataclass(frozen=True, eq=False)
class Rewritable:
    """A pointwise convolution that can be rewritten.

    The weight has shape (F, C, 1, ...) with ``spatial_rank`` ones and the given dtype, the bias
    (F,). Weight and bias can be read until the model is edited.
    """

    name: str
    ref: NodeRef
    in_channels: int
    out_channels: int
    weight: ConstantRef
    bias: ConstantRef | None
    dtype: np.dtype
    spatial_rank: int = 2

    @property
    def output_tensor(self) -> gs.Tensor:
        return self.ref.node.outputs[0]

    @property
    def has_bias(self) -> bool:
        return self.ref.has_input(2)

    def weight_matrix(self) -> np.ndarray:
        """The dense weight W, shape (F, C), in its own dtype."""
        return self.weight.values().reshape(-1, self.in_channels)

    def kept(self, reason: str) -> Kept:
        """The site as one that stays."""
        output = str(self.ref.proto.output[0])
        return Kept(self.name, self.ref, output, reason, self.in_channels, self.out_channels)


@dataclass(frozen=True, eq=False)
class FoundSites:
    """The pointwise convolutions of a model in the order of the graph, and the view they lie in."""

    view: GraphView
    all: tuple[Rewritable | Kept, ...]

    @property
    def rewritable(self) -> list[Rewritable]:
        return [site for site in self.all if isinstance(site, Rewritable)]


def find_sites(
    view: GraphView,
    site_filter: SiteFilter | None = None,
    taken: Mapping[str, str] | None = None,
) -> FoundSites:
    """Every convolution with a kernel of 1, or of unknown size, in the order of the graph, function
    bodies last.

    ``taken`` maps names of nodes that an earlier run inserted to the site they belong to.

    Raises:
        UsageError: an include or exclude glob matches no pointwise convolution.
        ModelError: a convolution lacks its weight, or a constant cannot be evaluated.
    """
    chosen, taken = site_filter or SiteFilter(), taken or {}
    pointwise = [each for each in _convolutions(view) if _may_be_pointwise(*each)]
    names = _names([ref for ref, _, _ in pointwise])
    # Nodes that share a name are matched by it as well as by the one that tells them apart.
    # Sites of an earlier run are no convolutions any more, but may be asked for as before.
    own = [ref.name for ref, _, _ in pointwise]
    known = list(dict.fromkeys([*names, *own, *taken.values()]))
    _require_matches(chosen.include, known, "`include`")
    _require_matches(chosen.exclude, known, "`exclude`")
    found = [
        _describe(view, ref, _only(shapes), name, chosen, taken)
        if kind is None
        else _foreign(ref, kind, _only(shapes), name)
        for (ref, kind, shapes), name in zip(pointwise, names, strict=True)
    ]
    return FoundSites(view, tuple(found))


def _convolutions(
    view: GraphView,
) -> Iterator[tuple[NodeRef, ForeignConvolution | None, frozenset[Shape] | None]]:
    """Every convolution, what it is if no Conv of ONNX, and the shapes that its weight may have."""
    for ref in view.nodes:
        kind = foreign_convolution(ref)
        if kind is None and not (ref.op_type == "Conv" and ref.is_standard):
            continue
        position = 1 if kind is None else kind.weight
        if len(ref.node.inputs) <= position or not ref.proto.output:
            name = f"{ref.op_type} {ref.proto.name!r}"
            raise ModelError(f"{view.model.name}: {name} lacks its weight or output")
        yield ref, kind, weight_shapes(view, ref, position)


def _only(shapes: frozenset[Shape] | None) -> Shape | None:
    """The shape where there is but one."""
    return next(iter(shapes)) if shapes is not None and len(shapes) == 1 else None


def _foreign(ref: NodeRef, kind: ForeignConvolution, shape: Shape | None, name: str) -> Kept:
    """A convolution that is kept for the operator that it is."""
    kept = Kept(name, ref, str(ref.proto.output[0]), foreign_reason(ref, kind))
    if shape is None or len(shape) <= 2 or ref.attribute("group", 1) != 1:
        return kept
    return replace(kept, in_channels=shape[-1 if kind.channels_last else 1], out_channels=shape[0])


def _is_dequantized(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether the values are made by DequantizeLinear and then at most moved."""
    producer = view.producer(tensor)
    while producer is not None and producer.op_type in TRANSPARENT and producer.node.inputs:
        producer = view.producer(producer.node.inputs[0])
    return producer is not None and producer.op_type == "DequantizeLinear"


def _may_be_pointwise(
    ref: NodeRef, kind: ForeignConvolution | None, shapes: frozenset[Shape] | None
) -> bool:
    """Whether the kernel is 1, or not known."""
    spatial = slice(1, -1) if kind is not None and kind.channels_last else slice(2, None)
    kernel = ref.attribute("kernel_shape")
    if kernel is None:
        return shapes is None or any(_is_one(shape[spatial]) for shape in shapes)
    return isinstance(kernel, Sequence) and _is_one(kernel)


def _is_one(kernel: Sequence[int]) -> bool:
    return 1 <= len(kernel) <= 3 and all(size == 1 for size in kernel)


def _names(refs: Sequence[NodeRef]) -> list[str]:
    """The nodes' names; the first output's where there is none, both where names are not unique."""
    own = [ref.name for ref in refs]
    count = Counter(own)
    return [
        name if count[name] == 1 else f"{name}:{ref.scope.path}/{ref.proto.output[0]}"
        for name, ref in zip(own, refs, strict=True)
    ]


def _matches(name: str, glob: str) -> bool:
    """Whether the glob matches; a name with brackets or stars always matches itself."""
    return name == glob or fnmatchcase(name, glob)


def _require_matches(globs: Sequence[str], names: Sequence[str], option: str) -> None:
    for glob in globs:
        # All of none is not a slip of the pen.
        if glob != "*" and not any(_matches(name, glob) for name in names):
            near = difflib.get_close_matches(glob, names, n=3, cutoff=0.4) or list(names[:3])
            hint = f"; near matches: {', '.join(near)}" if near else ""
            raise UsageError(f"{option} {glob!r} matches no pointwise convolution{hint}")


def _describe(
    view: GraphView,
    ref: NodeRef,
    shape: Shape | None,
    name: str,
    chosen: SiteFilter,
    taken: Mapping[str, str],
) -> Rewritable | Kept:
    inputs = ref.node.inputs
    weight = view.constant(inputs[1], ref.scope)
    bias = view.constant(inputs[2], ref.scope) if ref.has_input(2) else None
    flaw = malformed(ref, shape, constant_shape(bias) if bias else None)
    shape = None if flaw else shape
    groups = 1 if flaw else ref.attribute("group", 1)
    kept = Kept(
        name,
        ref,
        str(ref.proto.output[0]),
        flaw or "",
        shape[1] * groups if shape else None,
        shape[0] if shape else None,
        taken.get(ref.proto.name),
    )
    if kept.part_of:
        return replace(kept, reason=f"part of the already rewritten {kept.part_of}")
    if flaw:
        return kept
    if groups > 1:
        return replace(kept, reason=f"already a grouped convolution ({groups} groups)")
    if ref.is_parametrized:
        return replace(kept, reason="attributes are parameters of the function")
    if weight is None or shape is None:
        return replace(kept, reason=_reason_no_weight(view, ref, shape))
    if ref.has_input(2) and bias is None:
        return replace(kept, reason="bias is computed at run time")
    dtype = _dtype(weight)
    if dtype not in _SUPPORTED_DTYPES:
        return replace(kept, reason=f"{dtype} weights are not supported")
    site = Rewritable(name, ref, shape[1], shape[0], weight, bias, dtype, len(shape) - 2)
    reason = _reason_globs({name, ref.name}, chosen)
    if reason is None and not chosen.include_heads:
        reason = _reason_head(view, site.output_tensor)
    reason = reason or _reason_values(site)
    return site.kept(reason) if reason else site


def _reason_no_weight(view: GraphView, ref: NodeRef, shape: Shape | None) -> str:
    producer = view.producer(ref.node.inputs[1])
    unknown = shape is None and ref.attribute("kernel_shape") is None
    doubt = ", and its shape is not known" if unknown else ""
    if _is_dequantized(view, ref.node.inputs[1]):
        return f"weight is quantized (behind DequantizeLinear){doubt}"
    if _is_sparse(ref, producer):
        return "weight is sparse"
    if ref.scope.in_function and producer is None:
        return f"weight is a parameter of the {ref.scope.path.split('/')[0]}{doubt}"
    return f"weight is computed at run time{doubt}"


def _is_sparse(ref: NodeRef, producer: NodeRef | None) -> bool:
    if producer is not None:
        return producer.op_type == "Constant" and producer.attribute("sparse_value") is not None
    return sparse_weight(ref.node.inputs[1], ref.scope) is not None


def _dtype(constant: ConstantRef) -> np.dtype:
    if constant.chain:
        return np.dtype(constant.values().dtype)
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(constant.root.data_type))


def _reason_globs(names: set[str], chosen: SiteFilter) -> str | None:
    def matched(globs: Sequence[str]) -> str | None:
        return next((g for g in globs if any(_matches(name, g) for name in names)), None)

    if chosen.include and matched(chosen.include) is None:
        return with_flags("not matched by `include`")
    glob = matched(chosen.exclude)
    return with_flags("excluded by `exclude` ") + glob if glob else None


def _reason_head(view: GraphView, output: gs.Tensor) -> str | None:
    """Whether a model output is reached through operators that only move or normalise values."""
    pending = [(output, "")]
    seen: set[int] = set()
    while pending:
        tensor, through = pending.pop(0)
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        reached = view.model_output(tensor)
        if reached is not None:
            way = f"only {through} before output" if through else "it makes output"
            return f"head: {way} '{reached}'"
        pending += [(further, through) for further in view.beyond(tensor)]
        for consumer in view.consumers(tensor):
            if consumer.op_type in _AFTER_HEAD and consumer.proto.domain in _HEAD_DOMAINS:
                label = f"{through}, {consumer.op_type}" if through else consumer.op_type
                pending += [(further, label) for further in consumer.node.outputs]
    return None


def _reason_values(site: Rewritable) -> str | None:
    constants = [("weight", site.weight)] + ([("bias", site.bias)] if site.bias else [])
    for label, constant in constants:
        values = constant.values()
        if not np.isfinite(values).all():
            what = "NaN" if np.isnan(values).any() else "infinite values"
            return f"{label} holds {what}"
    return None
