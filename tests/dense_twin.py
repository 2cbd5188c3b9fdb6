"""An independent judge of a rewrite: the original with each site's matrix, read off the written graph.

The matrix of a site is measured: the nodes that the report lists as inserted are run on the unit
vectors. The original with these matrices in the place of its weights must compute what the written
model computes, whatever lies around the sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_igpc.fitting.weights import IgpcWeights, igpc_matrix
from onnx_igpc.graph.traversal import NodeHolder, Scope, opset_version, scopes
from onnx_igpc.report.tree import RewriteReport, SiteReport
from tests.helpers import run

_IR_CHECKED = 10


def dense_twin(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    report: RewriteReport,
    own_biases: bool = False,
) -> onnx.ModelProto:
    """``before``, whose rewritten convolutions have the weights that ``after`` computes with.

    Its biases are the original's, unless ``own_biases`` says that the rewrite gave new ones.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(before)
    for number, site in enumerate(report.rewritten):
        matrix, bias = measured(after, site)
        holder, index = _convolution(twin, site, _scope_of(after, site).path)
        conv = holder.node[index]
        values = {"weight": matrix.reshape(*matrix.shape, *[1] * _rank(after, site))}
        if own_biases:
            values["bias"] = bias
        del conv.input[len(values) + 1 if own_biases else 3 :]
        made = []
        for position, (part, value) in enumerate(values.items(), start=1):
            name = f"twin_{part}_{number}"
            made.append(
                helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))
            )
            if position < len(conv.input):
                conv.input[position] = name
            else:
                conv.input.append(name)
        rest = [_copy(node) for node in holder.node]
        del holder.node[:]
        holder.node.extend([*rest[:index], *made, *rest[index:]])
    return twin


def measured(model: onnx.ModelProto, site: SiteReport) -> tuple[np.ndarray, np.ndarray]:
    """M and b of a rewritten site, shapes (F, C) and (F,), from running its nodes on unit vectors and 0.

    Where a Gather of the model's own was merged into the site's, which reads another tensor then, they
    are what the layout and the stored tensors say.
    """
    scope = _scope_of(model, site)
    own = [_copy(node) for node in scope.holder.node if node.name in site.nodes]
    constants = _constants(scope)
    kernels = [constants[node.input[1]] for node in own if node.op_type == "Conv"]
    made = {name for node in own for name in node.output}
    read = {name for node in own for name in node.input if name} - made - {site.input}
    if not read <= constants.keys():
        return _stated(site, own, constants)
    dtype, rank = kernels[0].dtype, kernels[0].ndim - 2
    assert site.in_channels is not None
    C = site.in_channels
    units = np.concatenate([np.eye(C), np.zeros((1, C))]).astype(dtype)
    for node in own:
        for attribute in list(node.attribute):
            if attribute.name in ("pads", "strides", "auto_pad"):
                node.attribute.remove(attribute)
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        own,
        "site",
        [helper.make_tensor_value_info(site.input, kind, [C + 1, C, *[1] * rank])],
        [helper.make_tensor_value_info(site.output, kind, None)],
        [numpy_helper.from_array(constants[name], name) for name in sorted(read)],
    )
    opset = helper.make_opsetid("", opset_version(model))
    alone = helper.make_model(
        graph, opset_imports=[opset], ir_version=max(4, min(model.ir_version, _IR_CHECKED))
    )
    y = run(alone, {site.input: units.reshape(C + 1, C, *[1] * rank)})[site.output]
    y = y.reshape(C + 1, -1).astype(np.float64)
    return np.asarray((y[:C] - y[C]).T.astype(dtype)), np.asarray(y[C].astype(dtype))


def _stated(
    site: SiteReport, nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    assert site.layout is not None
    layout = site.layout
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    kernels = [constants[node.input[1]] for node in convolutions]
    biases = [constants[node.input[2]] for node in convolutions if len(node.input) > 2]
    bias = np.concatenate(biases) if biases else np.zeros(layout.out_channels, kernels[0].dtype)
    if layout.output_interleave is not None:
        bias = bias[list(layout.output_interleave)]
    flat = [kernel.reshape(kernel.shape[:2]) for kernel in kernels]
    split = len(layout.k.paths)
    weights = IgpcWeights(tuple(flat[:split]), tuple(flat[split:]))
    return np.asarray(igpc_matrix(layout, weights).astype(kernels[0].dtype)), bias


def _scope_of(model: onnx.ModelProto, site: SiteReport) -> Scope:
    return next(s for s in scopes(model) if any(n.name in site.nodes for n in s.holder.node))


def _rank(model: onnx.ModelProto, site: SiteReport) -> int:
    """The number of spatial dimensions of a rewritten site."""
    scope = _scope_of(model, site)
    nodes = scope.holder.node
    conv = next(node for node in nodes if node.name in site.nodes and node.op_type == "Conv")
    return int(_constants(scope)[conv.input[1]].ndim - 2)


def _constants(scope: Scope) -> dict[str, np.ndarray]:
    """Every stored tensor that a scope sees, by name."""
    found: dict[str, np.ndarray] = {}
    for holder in (*reversed(scope.parents), scope.holder):
        if isinstance(holder, onnx.GraphProto):
            found |= {t.name: numpy_helper.to_array(t) for t in holder.initializer}
        found |= dict(_made_constants(holder.node, found))
    return found


def _made_constants(
    nodes: Iterable[onnx.NodeProto], known: dict[str, np.ndarray]
) -> list[tuple[str, np.ndarray]]:
    made: dict[str, np.ndarray] = {}
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            made[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Cast" and node.input[0] in made:
            to = helper.tensor_dtype_to_np_dtype(node.attribute[0].i)
            made[node.output[0]] = made[node.input[0]].astype(to)
        elif node.op_type == "Identity" and node.input[0] in {**known, **made}:
            made[node.output[0]] = {**known, **made}[node.input[0]]
    return list(made.items())


def _convolution(model: onnx.ModelProto, site: SiteReport, path: str) -> tuple[NodeHolder, int]:
    """Where the dense convolution of a site lies: in the scope in which it was rewritten, its output is
    the site's. Convolutions that are no sites can have both names elsewhere."""
    found = [
        (scope.holder, index)
        for scope in scopes(model)
        for index, node in enumerate(scope.holder.node)
        if scope.path == path
        and node.op_type == "Conv"
        and node.output[0] == site.output
        and site.name in _names(node, scope.path)
    ]
    assert len(found) == 1, site.name
    return found[0]


def _names(node: onnx.NodeProto, path: str) -> tuple[str, str]:
    """How the report may call a node: nodes that share a name have their scope in theirs."""
    own = node.name or node.output[0]
    return own, f"{own}:{path}/{node.output[0]}"


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
