"""What lies before the first difference between student and teacher: computed once for both, and not trained.

Up to the first rewritten layer a compressed model is the original. Budgets of parameters rewrite late layers, where the
parameters are; the early ones, on large maps, are most of the work of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnx_igpc.calibration.graph_cuts import GraphCuts, TensorType, outer_reads
from onnx_igpc.errors import with_flags
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.traversal import subgraphs
from onnx_igpc.torch_bridge import to_torch
from onnx_igpc.torch_bridge.module import OnnxModule
from onnx_igpc.torch_bridge.running import as_list
from onnx_igpc.torch_bridge.tensors import has_half
from onnx_igpc.torch_bridge.training.loader import TensorBatch
from onnx_igpc.torch_bridge.training.pairing import Pairing, with_outputs
from onnx_igpc.torch_bridge.training.recipe import Recipe

# What these make lies on the host, where it stays cheap; what is read is not worth crossing a cut.
_SIZES = frozenset({"Shape", "Size"})


def picked(module: OnnxModule, values: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The values that a module takes, in its order."""
    return [values[name] for name in module.input_names]


class Whole(torch.nn.Module):
    """A module behind a front, from the inputs of the model on."""

    def __init__(self, front: OnnxModule, behind: OnnxModule, input_names: Sequence[str]) -> None:
        super().__init__()
        self.front, self.behind, self._names = front, behind, tuple(input_names)

    def forward(self, *inputs: torch.Tensor) -> Any:
        values = ahead(self.front, dict(zip(self._names, inputs, strict=True)))
        return self.behind(*picked(self.behind, values))


def measured_alone(model: ModelProto) -> frozenset[str]:
    """Inputs of which nothing but the shape is read."""
    names = {value.name for value in model.graph.input}
    names -= {value.name for value in model.graph.output}
    for node in model.graph.node:
        if node.domain or node.op_type not in _SIZES:
            names.difference_update(outer_reads(node))
    return frozenset(names)


def ahead(front: OnnxModule | None, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs, and what the front makes of them, by name."""
    values = dict(inputs)
    if front is not None:
        with torch.no_grad():
            made = as_list(front(*picked(front, values)))
        values.update(zip(front.output_names, made, strict=True))
    return values


@dataclass(frozen=True)
class Split:
    """Student and teacher from where they differ on, and the front that both have; ``frozen``: the weights in it."""

    front: OnnxModule
    student: ModelProto
    teacher: ModelProto
    frozen: tuple[str, ...]


def split(
    models: tuple[ModelProto, ModelProto],
    outputs: tuple[Sequence[str], Sequence[str]],
    inputs: Mapping[str, torch.Tensor],
) -> Split | None:
    """Student and teacher behind what they have in common; ``None`` where nothing that is trained is.

    Args:
        models: the two whole.
        outputs: what is wanted of each, by name; it lies behind.
        inputs: some samples by name, on the CPU. Only tensors of floats cross the cut, with the samples as
            their first dimension.
    """
    shared = _shared(*models) - {name for names in outputs for name in names}
    cuts = [GraphCuts(OpenModel(model), range(len(model.graph.node))) for model in models]
    known = {name: TensorType(np.dtype(np.float32), ()) for name in shared | inputs.keys()}
    given = {name: known[name] for name in known if all(cut.can_cross(name) for cut in cuts)}
    reads = [cut.extract(names, given)[1] for cut, names in zip(cuts, outputs, strict=True)]
    crossing = sorted({name for names in reads for name in names} - inputs.keys())
    if not crossing:
        return None
    before, _ = cuts[1].extract(crossing, {name: given[name] for name in inputs})
    front = to_torch(_typed(before.proto, models[1])).eval().requires_grad_(False)
    made = ahead(front, inputs)
    samples = {len(value) for value in inputs.values()}
    floats = all(made[name].dtype == torch.float32 and made[name].dim() for name in crossing)
    if not floats or samples != {len(made[name]) for name in crossing} or not front.bindings:
        return None
    types = {name: given[name] for name in inputs}
    types |= {n: TensorType(np.dtype(np.float32), (None,) * made[n].dim()) for n in crossing}
    student, taught = (
        _typed(cut.extract(names, types)[0].proto, model)
        for cut, names, model in zip(cuts, outputs, models, strict=True)
    )
    frozen = set(front.bindings.values())
    if not frozen.isdisjoint(_stored(student)):
        return None  # a weight that is used behind as well is trained there
    return Split(front, student, taught, tuple(sorted(frozen)))


def _stored(model: ModelProto) -> set[str]:
    made = {name for node in model.graph.node if not node.input for name in node.output}
    return made | {tensor.name for tensor in model.graph.initializer}


def _typed(part: ModelProto, whole: ModelProto) -> ModelProto:
    """The part with the inputs of the whole as they are declared there."""
    declared = {value.name: value for value in whole.graph.input}
    for value in part.graph.input:
        if value.name in declared:
            value.CopyFrom(declared[value.name])
    return part


def _shared(student: ModelProto, teacher: ModelProto) -> set[str]:
    """Names of values that both compute from the inputs by the same nodes and weights."""
    if list(student.opset_import) != list(teacher.opset_import):
        return set()
    if list(student.functions) != list(teacher.functions):
        return set()
    weights = _equal_weights(student, teacher)
    theirs = {name: node for node in teacher.graph.node for name in node.output}
    same = {value.name for value in student.graph.input} | weights
    found: set[str] = set()
    for node in student.graph.node:
        if same.issuperset(name for name in node.input if name) and _is_same(node, theirs):
            same.update(node.output)
            found.update(name for name in node.output if name)
    return found


def _is_same(node: NodeProto, theirs: Mapping[str, NodeProto]) -> bool:
    if node.op_type in _SIZES or any(True for _ in subgraphs(node)):
        return False
    return bool(node.output) and theirs.get(node.output[0]) == node


def _equal_weights(student: ModelProto, teacher: ModelProto) -> set[str]:
    theirs = {tensor.name: tensor for tensor in teacher.graph.initializer}
    return {
        tensor.name
        for tensor in student.graph.initializer
        if tensor.name in theirs and _equal(tensor, theirs[tensor.name])
    }


def _equal(one: TensorProto, other: TensorProto) -> bool:
    if one.data_type != other.data_type or list(one.dims) != list(other.dims):
        return False
    if one.data_type == onnx.TensorProto.STRING:
        return one == other
    return numpy_helper.to_array(one).tobytes() == numpy_helper.to_array(other).tobytes()


@dataclass(frozen=True)
class Ends:
    """The models that become student and teacher, with the paired tensors behind their outputs."""

    student: ModelProto
    teacher: ModelProto | None
    input_names: tuple[str, ...]
    front: OnnxModule | None = None
    frozen: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        models: tuple[ModelProto, ModelProto | None],
        pairing: Pairing,
        names: Sequence[str],
        recipe: Recipe,
        probe: TensorBatch,
    ) -> Ends:
        """Whole, or behind a front where that is not trained."""
        model, teacher = models
        inputs = tuple(spec.name for spec in model_inputs(model))
        tensors = [pair.tensor for pair in pairing.pairs]
        student = with_outputs(model, tensors, names)
        if teacher is None:
            return cls(student, None, inputs)
        sources = [pair.source for pair in pairing.pairs]
        found = None
        # What is trained in half precision is rounded in the end, and judged as a whole.
        if recipe.front == "frozen" and not has_half(model):
            ends = [*names, *tensors], [*names, *sources]
            given = dict(zip(inputs, probe.inputs, strict=True))
            found = split((model, teacher), ends, given)
        if found is None:
            return cls(student, with_outputs(teacher, sources, names), inputs)
        return cls(found.student, found.teacher, inputs, found.front, found.frozen)

    @property
    def note(self) -> str:
        return with_flags(
            f"{len(self.frozen)} weights before the first rewritten layer stay as in the original, and what they "
            "make is computed once for both (`front` train trains them)"
        )
