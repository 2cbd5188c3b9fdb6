"""Finding the pointwise convolutions of a model: each a site to rewrite, or kept with a reason."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_igpc.arguments import texts
from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.graph.view import TRANSPARENT, ConstantRef, GraphView, NodeRef
from onnx_igpc.sites.conv_form import malformed

# Between a head and the output that it makes stand only operators that move or normalise values.
_AFTER_HEAD = frozenset(
    {
        "Reshape",
        "Flatten",
        "Squeeze",
        "Transpose",
        "Concat",
        "Identity",
        "Cast",
        "Softmax",
        "LogSoftmax",
        "Sigmoid",
        "Slice",
        "Split",
        "Resize",
    }
)
_SUPPORTED_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class SiteFilter:
    """Which sites may be rewritten: globs on the node's name, and whether heads are included.

    A node without a name goes by the name of its first output. ``taken`` maps names of nodes that
    an earlier run inserted to the site they belong to.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include_heads: bool = False
    taken: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            object.__setattr__(self, name, texts(name, getattr(self, name)))


@dataclass(frozen=True, eq=False)
class PointwiseSite:
    """A pointwise convolution; ``kept_reason`` says why it cannot or must not be rewritten.

    The weight has shape (F, C, 1, ...) with ``spatial_rank`` ones and the given dtype, the bias
    (F,). Weight and bias can be read until the model is edited.
    """

    name: str
    ref: NodeRef
    in_channels: int | None
    out_channels: int | None
    weight: ConstantRef | None
    bias: ConstantRef | None
    dtype: np.dtype | None = None
    spatial_rank: int = 2
    kept_reason: str | None = None

    @property
    def input_tensor(self) -> gs.Tensor:
        return self.ref.node.inputs[0]

    @property
    def output_tensor(self) -> gs.Tensor:
        return self.ref.node.outputs[0]

    @property
    def has_bias(self) -> bool:
        return len(self.ref.node.inputs) > 2 and bool(self.ref.node.inputs[2].name)

    def weight_matrix(self) -> np.ndarray:
        """The dense weight W, shape (F, C), in its own dtype."""
        assert self.weight is not None
        assert self.in_channels is not None
        return self.weight.values().reshape(-1, self.in_channels)


def find_sites(view: GraphView, site_filter: SiteFilter | None = None) -> list[PointwiseSite]:
    """Every convolution with a kernel of 1 in the order of the graph, function bodies last.

    Raises:
        UsageError: an include or exclude glob matches no pointwise convolution.
        ModelError: a convolution lacks its weight, or a constant cannot be evaluated.
    """
    chosen = site_filter or SiteFilter()
    convolutions = [
        (ref, _shape(view, ref)) for ref in view.nodes if ref.op_type == "Conv" and ref.is_standard
    ]
    pointwise = [(ref, shape) for ref, shape in convolutions if _is_pointwise(ref, shape)]
    names = _names([ref for ref, _ in pointwise])
    # Nodes that share a name are matched by it as well as by the one that tells them apart.
    # Sites of an earlier run are no convolutions any more, but may be asked for as before.
    own = [_own_name(ref) for ref, _ in pointwise]
    known = list(dict.fromkeys([*names, *own, *chosen.taken.values()]))
    _require_matches(chosen.include, known, "--include")
    _require_matches(chosen.exclude, known, "--exclude")
    return [
        _describe(view, ref, shape, name, chosen)
        for (ref, shape), name in zip(pointwise, names, strict=True)
    ]


def _shape(view: GraphView, ref: NodeRef) -> tuple[int, ...] | None:
    """The shape of the weight as far as it is known without running the model."""
    if len(ref.node.inputs) < 2 or not ref.proto.output:
        raise ModelError(f"{view.model.name}: Conv {ref.proto.name!r} lacks its weight or output")
    weight = view.constant(ref.node.inputs[1], ref.scope)
    if weight is not None:
        return _constant_shape(weight)
    declared = ref.node.inputs[1].shape
    if declared and all(isinstance(dim, int) for dim in declared):
        return tuple(declared)
    return _dequantized_shape(view, ref)


def _constant_shape(constant: ConstantRef) -> tuple[int, ...]:
    return tuple(constant.values().shape) if constant.chain else tuple(constant.root.dims)


def _dequantized_shape(view: GraphView, ref: NodeRef) -> tuple[int, ...] | None:
    producer = view.producer(ref.node.inputs[1])
    if producer is None or producer.op_type != "DequantizeLinear" or not producer.node.inputs:
        return None
    constant = view.constant(producer.node.inputs[0], ref.scope)
    return tuple(constant.root.dims) if constant else None


def _is_dequantized(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether the values are made by DequantizeLinear and then at most moved."""
    producer = view.producer(tensor)
    while producer is not None and producer.op_type in TRANSPARENT and producer.node.inputs:
        producer = view.producer(producer.node.inputs[0])
    return producer is not None and producer.op_type == "DequantizeLinear"


def _is_pointwise(ref: NodeRef, shape: tuple[int, ...] | None) -> bool:
    kernel = ref.attribute("kernel_shape")
    if kernel is None:
        if shape is None:
            return False
        kernel = shape[2:]
    return isinstance(kernel, Sequence) and (
        1 <= len(kernel) <= 3 and all(size == 1 for size in kernel)
    )


def _names(refs: Sequence[NodeRef]) -> list[str]:
    """The nodes' names; the first output's where there is none, both where names are not unique."""
    own = [_own_name(ref) for ref in refs]
    count = Counter(own)
    return [
        name if count[name] == 1 else f"{name}:{ref.scope.path}/{ref.proto.output[0]}"
        for name, ref in zip(own, refs, strict=True)
    ]


def _own_name(ref: NodeRef) -> str:
    return str(ref.proto.name or ref.proto.output[0])


def _matches(name: str, glob: str) -> bool:
    """Whether the glob matches; a name with brackets or stars always matches itself."""
    return name == glob or fnmatchcase(name, glob)


def _require_matches(globs: Sequence[str], names: Sequence[str], option: str) -> None:
    for glob in globs:
        if not any(_matches(name, glob) for name in names):
            near = difflib.get_close_matches(glob, names, n=3, cutoff=0.4) or list(names[:3])
            hint = f"; near matches: {', '.join(near)}" if near else ""
            raise UsageError(f"{option} {glob!r} matches no pointwise convolution{hint}")


def _describe(
    view: GraphView,
    ref: NodeRef,
    shape: tuple[int, ...] | None,
    name: str,
    chosen: SiteFilter,
) -> PointwiseSite:
    inputs = ref.node.inputs
    weight = view.constant(inputs[1], ref.scope)
    bias = view.constant(inputs[2], ref.scope) if len(inputs) > 2 and inputs[2].name else None
    flaw = malformed(ref, shape, _constant_shape(bias) if bias else None)
    shape = None if flaw else shape
    groups = 1 if flaw else ref.attribute("group", 1)
    site = PointwiseSite(
        name,
        ref,
        in_channels=shape[1] * groups if shape else None,
        out_channels=shape[0] if shape else None,
        weight=weight,
        bias=bias,
        dtype=_dtype(weight) if weight else None,
        spatial_rank=len(shape) - 2 if shape else len(ref.attribute("kernel_shape", [1, 1])),
    )
    checks: tuple[Callable[[], str | None], ...] = (
        lambda: _reason_taken(ref, chosen),
        lambda: flaw,
        lambda: f"already a grouped convolution ({groups} groups)" if groups > 1 else None,
        lambda: "attributes are parameters of the function" if ref.is_parametrized else None,
        lambda: _reason_weight(view, site),
        lambda: _reason_globs({name, _own_name(ref)}, chosen),
        lambda: None if chosen.include_heads else _reason_head(view, site.output_tensor),
        lambda: _reason_values(site),
    )
    reason = next((found for check in checks if (found := check())), None)
    return replace(site, kept_reason=reason)


def _reason_taken(ref: NodeRef, chosen: SiteFilter) -> str | None:
    owner = chosen.taken.get(ref.proto.name)
    return f"part of the already rewritten {owner}" if owner else None


def _reason_weight(view: GraphView, site: PointwiseSite) -> str | None:
    ref = site.ref
    if site.weight is None:
        producer = view.producer(ref.node.inputs[1])
        if _is_dequantized(view, ref.node.inputs[1]):
            return "weight is quantized (behind DequantizeLinear)"
        if ref.scope.in_function and producer is None:
            return f"weight is a parameter of the {ref.scope.path.split('/')[0]}"
        return "weight is computed at run time"
    if site.has_bias and site.bias is None:
        return "bias is computed at run time"
    if site.dtype not in _SUPPORTED_DTYPES:
        return f"{site.dtype} weights are not supported"
    return None


def _dtype(constant: ConstantRef) -> np.dtype:
    if constant.chain:
        return np.dtype(constant.values().dtype)
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(constant.root.data_type))


def _reason_globs(names: set[str], chosen: SiteFilter) -> str | None:
    def matched(globs: Sequence[str]) -> str | None:
        return next((g for g in globs if any(_matches(name, g) for name in names)), None)

    if chosen.include and matched(chosen.include) is None:
        return "not matched by --include"
    glob = matched(chosen.exclude)
    return f"excluded by --exclude {glob}" if glob else None


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
            if consumer.op_type in _AFTER_HEAD and consumer.is_standard:
                label = f"{through}, {consumer.op_type}" if through else consumer.op_type
                pending += [(further, label) for further in consumer.node.outputs]
    return None


def _reason_values(site: PointwiseSite) -> str | None:
    assert site.weight is not None
    constants = [("weight", site.weight)] + ([("bias", site.bias)] if site.bias else [])
    for label, constant in constants:
        values = constant.values()
        if not np.isfinite(values).all():
            what = "NaN" if np.isnan(values).any() else "infinite values"
            return f"{label} holds {what}"
    return None
