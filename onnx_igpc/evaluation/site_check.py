"""Checking a written graph: valid, same interface, and every rewritten site computing its matrix."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from onnx_igpc.errors import (
    CheckFailedError,
    IgpcError,
    MissingExtraError,
    ModelError,
    first_line,
)
from onnx_igpc.fitting.weights import IgpcWeights, apply_igpc, apply_stage
from onnx_igpc.graph.checks import IR_CHECKED, OPSET_CHECKED
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import copied, opset_version
from onnx_igpc.graph.view import GraphView
from onnx_igpc.layout.group_layout import GroupedStage, GroupLayout
from onnx_igpc.runtime.session import import_onnxruntime, make_session, run_session
from onnx_igpc.sites.rewrite import Rewritten

# Largest deviation from the predicted output, relative to its largest value (fp16: the largest term in it).
TOLERANCE = {np.dtype(np.float16): 5e-3}
DEFAULT_TOLERANCE = 1e-4
_SPATIAL = 5
# Padding of any width adds the same zeros: the check does with little of it.
_MOST_PADDING = 3


def check_sites(model: OpenModel, rewritten: Sequence[Rewritten]) -> str:
    """Run each rewritten site alone in onnxruntime against the matrix of its weights.

    In the linear form a site computes x -> M x + b; in the paper's form BatchNorm and activation
    lie between K and L, so that each of them is checked alone.

    Raises:
        CheckFailedError: a site deviates by more than 1e-4 of its largest value (fp16: 5e-3 of the
            largest term in it).
    """
    if not rewritten:
        return "nothing was rewritten"
    try:
        import_onnxruntime("checking the rewritten sites")
    except MissingExtraError:
        return "not run: onnxruntime is not installed"
    graph = _WrittenGraph(model)
    worst = 0.0
    for rewrite in rewritten:
        try:
            error = max(graph.deviation(rewrite, part) for part in graph.parts(rewrite))
        except (KeyError, ValueError, AssertionError, IgpcError) as problem:
            raise CheckFailedError(
                f"site {rewrite.site.name!r} cannot be run as its weights say "
                f"({first_line(problem)}): please report this"
            ) from problem
        if not error <= TOLERANCE.get(rewrite.site.dtype, DEFAULT_TOLERANCE):
            raise CheckFailedError(
                f"site {rewrite.site.name!r} deviates by {error:.1e} from what its weights say: "
                "please report this"
            )
        worst = max(worst, error)
    what = "M x + b" if rewritten[0].form == "linear" else "K x and L x"
    # Rounded up to a power of ten: the text is part of what is written, and must not depend on the
    # last bits of another machine's arithmetic.
    bound = 10.0 ** np.ceil(np.log10(max(worst, 1e-12)))
    return f"{len(rewritten)} of {len(rewritten)} compute {what} (deviation below {bound:.0e})"


@dataclass(frozen=True)
class _LinearPart:
    """A part of a site that is a matrix: ``target = matrix @ source + bias``, strided like K.

    ``apply`` multiplies the matrix with an array of shape (channels, n), float64; ``terms`` gives the sizes of
    what is added up on the way, which can be much larger than the sum.
    """

    source: str
    target: str
    channels: int
    apply: Callable[[np.ndarray], np.ndarray]
    bias: np.ndarray | None
    with_strides: bool
    terms: Callable[[np.ndarray], np.ndarray] | None = None

    def applied(self, x: np.ndarray) -> np.ndarray:
        """The matrix at every place of x (N, C, ...): (N, F, ...)."""
        columns = np.moveaxis(x, 1, 0)
        made = self.apply(columns.reshape(self.channels, -1))
        return np.moveaxis(made.reshape(len(made), *columns.shape[1:]), 0, 1)

    def largest_term(self, x: np.ndarray) -> float:
        """The size of what is rounded on the way."""
        if self.terms is None:
            return 0.0
        return float(self.terms(np.moveaxis(x, 1, 0).reshape(self.channels, -1)).max())


class _WrittenGraph:
    """The written graph, seen as the nodes that make each tensor and the constants they read."""

    def __init__(self, model: OpenModel) -> None:
        self.model = model
        self.view = GraphView(model)
        nodes = self.view.nodes
        self._made = {(ref.scope.path, name): ref for ref in nodes for name in ref.proto.output}
        self._read = {
            (ref.scope.path, tensor.name): (tensor, ref)
            for ref in nodes
            for tensor in ref.node.inputs
        }

    def constant(self, path: str, name: str) -> np.ndarray | None:
        """The values of a constant that a node in the scope ``path`` reads; ``None`` if computed."""
        if (path, name) not in self._read:
            return None
        tensor, ref = self._read[path, name]
        found = self.view.constant(tensor, ref.scope)
        return found.values() if found else None

    def parts(self, rewrite: Rewritten) -> list[_LinearPart]:
        """The whole site in the linear form, K and L apart in the paper's."""
        layout, tensors = rewrite.layout, rewrite.tensors
        path = rewrite.site.ref.scope.path
        weights = IgpcWeights(
            tuple(self._matrix(path, name) for name in tensors.k),
            tuple(self._matrix(path, name) for name in tensors.l),
        )
        if rewrite.form == "linear":
            whole = partial(apply_igpc, layout, weights)
            ends, channels = (rewrite.input, rewrite.output), layout.in_channels
            terms = partial(_terms, layout, weights)
            return [_LinearPart(*ends, channels, whole, rewrite.bias, True, terms)]
        k = rewrite.stages["K"]
        first = partial(apply_stage, layout.k, weights.k)
        parts = [_LinearPart(k.input, k.output, layout.in_channels, first, None, True)]
        if layout.l is not None:
            second = partial(_apply_l, layout.l, layout.interleave, weights.l)
            io, channels = rewrite.stages["L"], layout.l.in_channels
            parts.append(_LinearPart(io.input, io.output, channels, second, None, False))
        return parts

    def _matrix(self, path: str, name: str) -> np.ndarray:
        kernel = self.constant(path, name)
        if kernel is None:
            raise ModelError(f"tensor {name!r} is no constant")
        return kernel.astype(np.float64).reshape(kernel.shape[:2])

    def deviation(self, rewrite: Rewritten, part: _LinearPart) -> float:
        """max |computed - predicted| on random input, relative to max |predicted|, or in half precision to the
        largest term of it."""
        rank, dtype = rewrite.site.spatial_rank, rewrite.site.dtype
        # onnxruntime has no convolution of float64 on the CPU; of float32 shows the same graph.
        dtype = np.dtype(np.float32) if dtype == np.float64 else dtype
        generator = np.random.default_rng(zlib.crc32(rewrite.site.name.encode()))
        size = (2, part.channels, *[_SPATIAL] * rank)
        normal = generator.standard_normal(size)
        x = (normal * _input_scale(part, normal, dtype)).astype(dtype)
        session = make_session(self._extract(rewrite, part, x), threads=1)
        y = run_session(session, {part.source: x})[part.target].astype(np.float64)
        seen = x.astype(np.float64)
        seen = _strided(seen, rewrite) if part.with_strides else seen
        expected = part.applied(seen)
        if part.bias is not None:
            expected += part.bias.astype(np.float64).reshape(1, -1, *[1] * rank)
        if y.shape != expected.shape:
            return float("inf")
        scale = float(np.abs(expected).max())
        if dtype == np.float16:
            # Single precision has room enough for terms that cancel.
            scale = max(scale, part.largest_term(seen))
        scale = scale or 1.0
        return float(np.abs(y - expected).max()) / scale

    def _extract(self, rewrite: Rewritten, part: _LinearPart, x: np.ndarray) -> onnx.ModelProto:
        """The nodes between the part's source and target as a model of their own."""
        path = rewrite.site.ref.scope.path
        nodes: dict[str, onnx.NodeProto] = {}
        constants: dict[str, np.ndarray] = {}
        pending = [part.target]
        while pending:
            name = pending.pop()
            if name == part.source or name in nodes or name in constants:
                continue
            values = self.constant(path, name)
            if values is not None:
                constants[name] = values
                continue
            node = _with_little_padding(self._made[path, name].proto)
            nodes[name] = node
            pending.extend(each for each in node.input if each)
        # A node that makes several tensors, as Split does, was met once for each.
        single = {node.output[0]: node for node in nodes.values()}
        ordered = sorted(single.values(), key=lambda node: self._made[path, node.output[0]].index)
        elem = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        graph = onnx.helper.make_graph(
            ordered,
            "site",
            [onnx.helper.make_tensor_value_info(part.source, elem, x.shape)],
            [onnx.helper.make_tensor_value_info(part.target, elem, None)],
            [_initializer(each, name, x.dtype) for name, each in constants.items()],
        )
        version = opset_version(self.model.proto, rewrite.site.ref.scope)
        return onnx.helper.make_model(
            graph,
            opset_imports=[onnx.helper.make_opsetid("", min(version, OPSET_CHECKED))],
            ir_version=min(max(4, int(self.model.proto.ir_version)), IR_CHECKED),
        )


def _initializer(values: np.ndarray, name: str, dtype: np.dtype) -> onnx.TensorProto:
    """A constant of the extracted graph; floats in the type that it is run in."""
    kept = values if values.dtype.kind in "iu" else values.astype(dtype)
    return onnx.numpy_helper.from_array(kept, name)


def _apply_l(
    stage: GroupedStage,
    interleave: Sequence[int] | None,
    weights: Sequence[np.ndarray],
    x: np.ndarray,
) -> np.ndarray:
    """L P x."""
    return apply_stage(stage, weights, x if interleave is None else x[list(interleave)])


def _terms(layout: GroupLayout, weights: IgpcWeights, x: np.ndarray) -> np.ndarray:
    """|K x| and |L| P |K x|: K x and L P K x can nearly cancel, and so can the products within L P K x.

    Rounding is relative to these (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    inside: np.ndarray = np.abs(apply_stage(layout.k, weights.k, x))
    if layout.l is None:
        return inside
    sizes = [np.abs(each) for each in weights.l]
    return np.concatenate([inside, _apply_l(layout.l, layout.interleave, sizes, inside)])


def _input_scale(part: _LinearPart, x: np.ndarray, dtype: np.dtype) -> float:
    """How large to make the input: M x as large as b, so that an error in either shows.

    Without a bias M x is about 1, which keeps float16 away from its smallest and largest numbers.
    """
    made = float(np.abs(part.applied(x)).max())
    largest_bias = float(np.abs(part.bias).max()) if part.bias is not None else 0.0
    wanted = min(max(largest_bias, 1e-2), 1e4) if largest_bias else 1.0
    if made == 0.0:
        return 1.0
    largest = float(np.finfo(dtype).max) ** 0.5 / float(np.abs(x).max())
    return float(min(wanted / made, largest))


def _with_little_padding(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node, or a copy of it with less padding: a model can ask for more than memory holds."""
    wide = [
        a for a in node.attribute if a.name == "pads" and max(a.ints, default=0) > _MOST_PADDING
    ]
    if node.op_type != "Conv" or not wide:
        return node
    copy = copied(node)
    for attribute in copy.attribute:
        if attribute.name == "pads":
            attribute.ints[:] = [min(pad, _MOST_PADDING) for pad in attribute.ints]
    return copy


def _strided(x: np.ndarray, rewrite: Rewritten) -> np.ndarray:
    """What a kernel of 1 reads: the input with its padding, at every stride."""
    rank = rewrite.site.spatial_rank
    pads = rewrite.pads or (0,) * (2 * rank)
    strides = rewrite.strides or (1,) * rank
    pads = tuple(min(pad, _MOST_PADDING) for pad in pads)
    around = [(0, 0), (0, 0), *((pads[i], pads[rank + i]) for i in range(rank))]
    steps = (slice(None), slice(None), *(slice(None, None, stride) for stride in strides))
    return np.pad(x, around)[steps]
