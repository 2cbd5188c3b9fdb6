"""What of two models' outputs can be compared, and as what: quantities, class numbers, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnx_igpc.errors import UsageError
from onnx_igpc.graph.inputs import InputSpec
from onnx_igpc.graph.traversal import NodeHolder, subgraphs
from onnx_igpc.report.tree import RewriteReport

_STANDARD = ("", "ai.onnx")
# How many rows these make depends on the values, not on the shapes, of what they read.
_COUNTING = frozenset(
    {"NonMaxSuppression", "NonZero", "Unique", "Compress", "Loop", "Scan", "Range", "TopK"}
)
_CHOOSING = frozenset({"NonMaxSuppression"})
# Outputs that number classes, by their position, and operators that only move what they read.
_NUMBERING = {"ArgMax": 0, "ArgMin": 0, "TopK": 1}
_CLASSIFIERS = frozenset({"LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"})
_MOVING = frozenset(
    {
        "Identity",
        "Cast",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Transpose",
        "Slice",
        "Gather",
        "Resize",
        "Upsample",
        "Expand",
        "Tile",
        "ArrayFeatureExtractor",
    }
)


_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
_LAST = 4


# These also look up by its number what a class is called.
_LOOKING_UP = frozenset({"Gather", "ArrayFeatureExtractor"})


@dataclass(frozen=True)
class Compared:
    """A tensor of either model that is compared under one name.

    order: the candidate's tensor corresponds to ``original[:, order]``; None where channels lie in the
    same order. classes: the values number classes. may_vary: the shape depends on the data.
    """

    name: str
    original: str
    candidate: str
    order: tuple[int, ...] | None = None
    classes: bool = False
    may_vary: bool = False


@dataclass(frozen=True)
class OutputKinds:
    """outputs: those that are compared. left_out: why others are not, in sentences."""

    outputs: tuple[Compared, ...]
    left_out: tuple[str, ...]


def output_kinds(
    model: onnx.ModelProto,
    outputs: Sequence[InputSpec],
    others: Mapping[str, str],
    asked: Sequence[str] = (),
    scores: str | None = None,
) -> OutputKinds:
    """What to compare of two models with the outputs of ``model``.

    Args:
        model: the original.
        outputs: its outputs that are tensors of numbers.
        others: the types of its other outputs by name, as onnxruntime writes them.
        asked: the only ones to compare, by name; all that can be if empty.
        scores: one that is compared in any case.

    Raises:
        UsageError: one that is asked for does not exist or cannot be compared.
    """
    known = {spec.name: spec for spec in outputs}
    wanted = dict.fromkeys((*asked, *((scores,) if scores is not None else ())))
    for name in wanted:
        if name in others:
            raise UsageError(f"output {name!r} is {others[name]}, which cannot be compared")
        if name not in known:
            listed = ", ".join([*known, *others])
            raise UsageError(f"no output {name!r}: the models have {listed}")
    numbers = _class_numbers(model)
    counted, chosen = _dependent(model, _COUNTING), _dependent(model, _CHOOSING)
    symbols = {
        dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim
    }
    compared, left_out = [], []
    if not asked:
        left_out += [
            f"output {name!r} is not compared: it is {kind}, no tensor of numbers"
            for name, kind in others.items()
        ]
    for name, spec in known.items():
        if asked and name not in wanted:
            continue
        fixed = all(isinstance(dim, int) or (dim and dim in symbols) for dim in spec.shape)
        if name in chosen and not fixed and name not in wanted:
            left_out.append(
                f"output {name!r} is not compared: how many rows it has, and for what, depends on the "
                "data (NonMaxSuppression)"
            )
            continue
        classes = name in numbers
        may_vary = name in counted and not fixed and name not in wanted
        compared.append(Compared(name, name, name, classes=classes, may_vary=may_vary))
    return OutputKinds(tuple(compared), tuple(left_out))


def site_tensors(
    original: onnx.ModelProto, candidate: onnx.ModelProto, report: RewriteReport | None
) -> tuple[Compared, ...]:
    """The outputs of the rewritten sites in both models, those that can be seen from outside.

    Of a candidate without a report, the last few layers that have one name in both models.
    """
    ours, theirs = _inner(candidate), _inner(original)
    if report is None:
        shared = [
            node.output[0]
            for node in original.graph.node
            if node.op_type in _LAYERS and node.output[0] in ours & theirs
        ]
        return tuple(Compared(name, name, name) for name in shared[-_LAST:])
    moved = {
        tensor: (former, tuple(permutation.order))
        for permutation in report.permutations
        for tensor, former in permutation.tensors.items()
    }
    renamed = {former: tensor for tensor, (former, _) in moved.items()}
    found = {}
    for site in report.rewritten:
        tensor = site.output if site.output in ours else renamed.get(site.output, site.output)
        source, order = moved.get(tensor, (tensor, None))
        if tensor in ours and source in theirs:
            found[tensor] = Compared(site.name, source, tensor, order)
    return tuple(found.values())


def _inner(model: onnx.ModelProto) -> set[str]:
    made = {name for node in model.graph.node for name in node.output if name}
    return made - {output.name for output in model.graph.output}


def _class_numbers(model: onnx.ModelProto) -> set[str]:
    """Values that number classes: what ArgMax and its like make, and what only moves it."""
    found: set[str] = set()
    for node in model.graph.node:
        if node.domain == "ai.onnx.ml" and node.op_type in _CLASSIFIERS:
            found.update(node.output[:1])
        if node.domain in _STANDARD and node.op_type in _NUMBERING:
            found.update(node.output[_NUMBERING[node.op_type] :][:1])
        if node.op_type in _MOVING and node.domain in (*_STANDARD, "ai.onnx.ml"):
            sources = node.input[: 2 if node.op_type in _LOOKING_UP else 1]
            if found.intersection(sources):
                found.update(node.output)
    return found


def _dependent(model: onnx.ModelProto, operators: frozenset[str]) -> set[str]:
    """Values that depend on what one of the operators makes, those in functions and branches too."""
    bodies = {(function.domain, function.name): function for function in model.functions}
    holding: dict[int, bool] = {}

    def holds(holder: NodeHolder) -> bool:
        if id(holder) not in holding:
            holding[id(holder)] = False
            holding[id(holder)] = any(is_one(node) for node in holder.node)
        return holding[id(holder)]

    def is_one(node: onnx.NodeProto) -> bool:
        if node.domain in _STANDARD and node.op_type in operators:
            return True
        body = bodies.get((node.domain, node.op_type))
        return (body is not None and holds(body)) or any(holds(g) for _, g in subgraphs(node))

    found: set[str] = set()
    for node in model.graph.node:
        if found.intersection(node.input) or is_one(node):
            found.update(name for name in node.output if name)
    return found
