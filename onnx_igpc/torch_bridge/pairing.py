"""Which tensors of the compressed model must do what the same tensors of the original do.

A rewrite keeps the names of the tensors that the dense layers made. The digest lists them, and the order
of channels where a later layer was spared a Gather by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import ModelProto

from onnx_igpc.errors import ModelError
from onnx_igpc.feeds import model_inputs
from onnx_igpc.report import RewriteReport


@dataclass(frozen=True)
class Pair:
    """One tensor in both models. order: channel i of the compressed model's tensor is channel
    ``order[i]`` of the teacher's; None where they are in the same order."""

    site: str
    tensor: str
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Pairing:
    """The pairs, and the sites that have none, with the reason."""

    pairs: tuple[Pair, ...]
    unpaired: dict[str, str]


def pair_sites(student: ModelProto, teacher: ModelProto, digest: RewriteReport | None) -> Pairing:
    """Pair the output of each rewritten site with the teacher's tensor of the same name."""
    pairs, unpaired = {}, {}
    ours, theirs = _computed(student), _computed(teacher)
    outputs = {output.name for output in student.graph.output}
    for site in digest.rewritten if digest else ():
        if site.output in outputs:
            unpaired[site.name] = "it makes a model output, which is matched by itself"
        elif site.output not in ours:
            unpaired[site.name] = "it lies in a function or sub-graph"
        elif site.output not in theirs:
            unpaired[site.name] = f"the teacher has no tensor {site.output!r}"
        else:
            assert digest is not None
            order = digest.permutations.get(site.output)
            pairs[site.output] = Pair(site.name, site.output, tuple(order) if order else None)
    return Pairing(tuple(pairs.values()), unpaired)


def with_outputs(model: ModelProto, tensors: Sequence[str]) -> ModelProto:
    """A copy of a model in which inner tensors follow the graph outputs as further outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return copy


def check_teacher(student: ModelProto, teacher: ModelProto) -> None:
    """Raise ModelError where the teacher takes other inputs or gives other outputs than the student."""
    ours, theirs = ({spec.name: spec for spec in model_inputs(m)} for m in (student, teacher))
    outputs = [{output.name for output in model.graph.output} for model in (student, teacher)]
    for kind, ours_names, their_names in (
        ("input", set(ours), set(theirs)),
        ("output", outputs[0], outputs[1]),
    ):
        if odd := sorted(ours_names ^ their_names):
            has = "model" if odd[0] in ours_names else "teacher"
            raise ModelError(
                f"the teacher does not fit: only the {has} has an {kind} {odd[0]!r}; the teacher is "
                "the model that was compressed"
            )
    for name, spec in ours.items():
        other = theirs[name]
        fixed = zip(spec.shape, other.shape, strict=False)
        if len(spec.shape) != len(other.shape) or any(
            isinstance(a, int) and isinstance(b, int) and a != b for a, b in fixed
        ):
            raise ModelError(
                f"the teacher does not fit: input {spec.describe()} is {other.describe()} there"
            )


def _computed(model: ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output if name}
