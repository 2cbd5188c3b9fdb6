"""What an onnxruntime profile says: which execution provider ran which nodes, and for how long.

onnxruntime runs its own rewrite of the graph. As measured with onnxruntime 1.31: basic and extended
optimization keep a node's name; the NCHWc layout names a convolution ``<last fused output>_nchwc``;
float16 on the CPU prefixes names with ``InsertedPrecisionFreeCast_``; a node that it makes of one between
DequantizeLinear and QuantizeLinear has ``_token_<number>`` behind its name; a nameless node appears as
``<operator>_<index>``, Constant nodes not counted. What none of these explains is matched by operator
and output shape where that is unique, and otherwise stays unmatched.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import onnx

from onnx_igpc.errors import ModelError
from onnx_igpc.runtime.session import provider_label, provider_name

COMPUTE_OPERATORS = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "FusedConv",
        "NhwcFusedConv",
        "NhwcConv",
        "QLinearConv",
        "ConvInteger",
        "ConvTransposeWithDynamicPads",
        "Gemm",
        "FusedGemm",
        "QGemm",
        "MatMul",
        "FusedMatMul",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "MatMulNBits",
    }
)
"""Operators that carry a CNN's arithmetic, under the names that onnxruntime's rewrites give them."""

# Gemm counts as MatMul: onnxruntime makes one of the other and an Add.
_FAMILIES = {"ConvTranspose": "ConvTranspose", "Conv": "Conv", "Gemm": "MatMul", "MatMul": "MatMul"}
_INFERABLE_BYTES = 2**30  # shape inference serializes the model
_SUFFIX = "_kernel_time"
_NAME = re.compile(r'("name" :)"(.*?)"(,"args" :)', re.DOTALL)
# By the names that profiles use; what is not listed has four bytes.
_ELEMENT_BYTES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "double": 8,
    "int64": 8,
    "uint64": 8,
}
_CAST_PREFIX = "InsertedPrecisionFreeCast_"
_FUSION_SUFFIX = re.compile(r"(_nchwc|/MatMulAddFusion|(_prequant)?_token_\d+|_prequant)$")


@dataclass(frozen=True)
class NodeRun:
    """One node as onnxruntime ran it, over all runs in the profile.

    name: onnxruntime's name. node: the model's node (its name, or its first output where it has
    none), None where no match was found. microseconds: summed over all calls. median_microseconds:
    of one call. bytes_moved: of the first input and the first output, as onnxruntime lays them out.
    """

    name: str
    op_type: str
    provider: str
    node: str | None
    output_shapes: tuple[tuple[int, ...], ...]
    calls: int
    microseconds: int
    median_microseconds: float = 0.0
    bytes_moved: int = 0

    @property
    def typical_microseconds(self) -> float:
        """All calls at their median: one call that was interrupted does not count as the rule."""
        return self.calls * self.median_microseconds


@dataclass(frozen=True)
class ProviderShare:
    """How many of the executed nodes a provider ran, and its share of their time, in [0, 1]."""

    provider: str
    nodes: int
    time_share: float


@dataclass(frozen=True)
class ExecutionProfile:
    """The nodes of a profile in the order of their first execution."""

    nodes: tuple[NodeRun, ...]

    def shares(self) -> list[ProviderShare]:
        """One entry a provider, most nodes first. Providers are onnxruntime's full names."""
        by_provider: dict[str, list[NodeRun]] = defaultdict(list)
        for run in self.nodes:
            by_provider[run.provider].append(run)
        time = sum(run.microseconds for run in self.nodes) or 1
        shares = [
            ProviderShare(
                name,
                len(runs),
                sum(run.microseconds for run in runs) / time,
            )
            for name, runs in by_provider.items()
        ]
        return sorted(shares, key=lambda share: (-share.nodes, share.provider))

    def ran_on(self, provider: str) -> int:
        """How many nodes the provider executed."""
        wanted = provider_name(provider)
        return sum(run.provider == wanted for run in self.nodes)

    def misplaced(self, provider: str) -> list[NodeRun]:
        """The compute nodes (convolutions, Gemm, MatMul) that another provider executed."""
        wanted = provider_name(provider)
        return [
            run for run in self.nodes if run.op_type in COMPUTE_OPERATORS and run.provider != wanted
        ]

    def layers(self) -> dict[str, int]:
        """How many compute nodes each operator ran, under onnxruntime's names, most first."""
        found = Counter(run.op_type for run in self.nodes if run.op_type in COMPUTE_OPERATORS)
        return dict(found.most_common())

    def describe(self) -> str:
        """One line, as in ``cuda ran 98 of 100 nodes (99.7 % of the time), cpu 2``."""
        parts: list[str] = []
        for share in self.shares():
            label = provider_label(share.provider)
            if not parts:
                time = f"{100 * share.time_share:.1f} % of the time"
                parts.append(f"{label} ran {share.nodes} of {len(self.nodes)} nodes ({time})")
            else:
                parts.append(f"{label} {share.nodes}")
        return ", ".join(parts)


def read_profile(
    path: str | os.PathLike[str],
    model: onnx.ModelProto | None = None,
    *,
    skip_first: bool = False,
) -> ExecutionProfile:
    """Read the JSON file that ``session.end_profiling()`` names.

    With the model that the session was made from, each executed node also names the model's node.
    skip_first leaves out the first run, in which memory is allocated and kernels are chosen.
    Raises ModelError where the file is not a profile or lists no node.
    """
    try:
        events = _events(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not an onnxruntime profile: {error}") from error
    ends = [e["ts"] + e["dur"] for e in events if skip_first and e.get("name") == "model_run"]
    start = min(ends, default=0)
    runs: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("ts", start) < start:
            continue
        args = event.get("args", {})
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX) and "provider" in args:
            key = (event["name"].removesuffix(_SUFFIX), args["op_name"], args["provider"])
            runs[key].append(event)
    if not runs:
        raise ModelError(f"{path}: the profile lists no executed node: run the session first")
    executed = [_node_run(key, found) for key, found in runs.items()]
    return ExecutionProfile(tuple(executed if model is None else _Matcher(model).match(executed)))


def _events(text: str) -> list[dict[str, Any]]:
    """The events of a profile; raises ValueError where it is none."""
    try:
        found: list[dict[str, Any]] = json.loads(text)
    except ValueError:
        # onnxruntime 1.28 writes names as they are, with quotes, backslashes and line breaks.
        found = json.loads(_NAME.sub(lambda each: f"{each[1]}{json.dumps(each[2])}{each[3]}", text))
    return found


def misplaced_message(runs: Iterable[NodeRun], provider: str) -> str:
    """One line that names compute nodes which ran elsewhere than asked (the first three)."""
    runs = list(runs)
    named = [
        f"{run.op_type} {run.node or run.name} on {provider_label(run.provider)}" for run in runs
    ]
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return f"asked for {provider_label(provider_name(provider))}, but onnxruntime ran " + (
        ", ".join(named[:3]) + more
    )


def _node_run(key: tuple[str, str, str], events: list[dict[str, Any]]) -> NodeRun:
    name, op_type, provider = key
    args = events[0]["args"]
    return NodeRun(
        name=name,
        op_type=op_type,
        provider=provider,
        node=None,
        output_shapes=_shapes(args.get("output_type_shape", [])),
        calls=len(events),
        microseconds=sum(int(event["dur"]) for event in events),
        median_microseconds=float(median(int(event["dur"]) for event in events)),
        bytes_moved=_first_bytes(args, "input_type_shape")
        + _first_bytes(args, "output_type_shape"),
    )


def _shapes(entries: list[dict[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    """``[{"float": [1, 8, 4, 4]}]`` as ``((1, 8, 4, 4),)``; the key is the element type."""
    return tuple(tuple(shape) for entry in entries for shape in entry.values())


def _first_bytes(args: dict[str, Any], key: str) -> int:
    """Bytes of the first tensor of an event's ``{input,output}_type_shape``; 0 if it has none."""
    for entry in args.get(key, [])[:1]:
        for kind, shape in entry.items():
            return int(math.prod(shape)) * _ELEMENT_BYTES.get(kind, 4)
    return 0


def _label(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _family(op_type: str) -> str:
    """``Conv`` for FusedConv and its like, so that a fused node compares with the model's."""
    found = next((family for name, family in _FAMILIES.items() if name in op_type), op_type)
    return found.removeprefix("QLinear")


class _Matcher:
    """Finds the model's node for a node of onnxruntime's rewritten graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        # onnxruntime turns Constant nodes into initializers before it numbers the nodes.
        nodes = [node for node in model.graph.node if node.op_type != "Constant"]
        self._by_index = {
            f"{node.op_type}_{i}": node for i, node in enumerate(nodes) if not node.name
        }
        self._by_name = {node.name: node for node in nodes if node.name}
        self._producer = {name: node for node in nodes for name in node.output if name}
        self._consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in nodes:
            for name in node.input:
                self._consumers[name].append(node)
        self._by_shape = _nodes_by_shape(model, nodes)

    def match(self, runs: list[NodeRun]) -> list[NodeRun]:
        """The same runs with their ``node``: by name first, then by what is left of their shape."""
        named = [self._by_any_name(run) for run in runs]
        taken = {_label(node) for node in named if node is not None}
        matched = []
        for run, node in zip(runs, named, strict=True):
            label = self._by_unique_shape(run, taken) if node is None else _label(node)
            matched.append(replace(run, node=label))
        return matched

    def _by_any_name(self, run: NodeRun) -> onnx.NodeProto | None:
        plain = _FUSION_SUFFIX.sub("", run.name.removeprefix(_CAST_PREFIX))
        family = _family(run.op_type)
        for found in (self._by_name, self._by_index, self._producer):
            node = found.get(plain)
            if node is not None:
                return self._before_fusion(node, family)
        return None

    def _by_unique_shape(self, run: NodeRun, taken: set[str]) -> str | None:
        key = (_family(run.op_type), run.output_shapes[0] if run.output_shapes else ())
        left = [_label(node) for node in self._by_shape.get(key, ()) if _label(node) not in taken]
        return left[0] if len(left) == 1 else None

    def _before_fusion(self, last: onnx.NodeProto, family: str) -> onnx.NodeProto | None:
        """From the last node that was fused in (an activation, a sum) back to the operator itself."""
        node: onnx.NodeProto = last
        while _family(node.op_type) != family:
            # Only a sum has its data in a later input; a Clip's bounds may be computed as well.
            names = node.input if node.op_type in ("Add", "Sum") else node.input[:1]
            sources = [self._producer[name] for name in names if name in self._producer]
            # A fused sum has two producers; the convolution is the one that only feeds this node.
            sources = [s for s in sources if len(self._consumers[s.output[0]]) == 1]
            if len(sources) != 1:
                return None
            node = sources[0]
        return node


def _nodes_by_shape(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto]
) -> dict[tuple[str, tuple[int, ...]], list[onnx.NodeProto]]:
    """Nodes by operator family and first output's shape, for shapes that inference finds fixed."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _INFERABLE_BYTES:
        return {}
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError):
        return {}
    shapes = {}
    for info in (*graph.value_info, *graph.output):
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[info.name] = tuple(d.dim_value for d in dims)
    found: dict[tuple[str, tuple[int, ...]], list[onnx.NodeProto]] = defaultdict(list)
    for node in nodes:
        if node.output and node.output[0] in shapes:
            found[_family(node.op_type), shapes[node.output[0]]].append(node)
    return dict(found)
