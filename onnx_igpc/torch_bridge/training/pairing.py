"""Which tensors of the compressed model must do what the same tensors of the original do.

A rewrite keeps the names of the tensors that the dense layers made. The digest lists them, and those
whose channels were put into another order, which spares a later layer a Gather.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import onnx
from onnx import ModelProto

from onnx_igpc.errors import ModelError
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.report.tree import BlockReport, NarrowReport, RewriteReport, SiteReport
from onnx_igpc.torch_bridge.training.comparable import Survey

FEATURE = "penultimate feature"
"""What the pair is called that is no site."""


@dataclass(frozen=True)
class Pair:
    """A tensor in both models, such as the output of a site. ``tensor`` of the compressed one corresponds to
    ``source[:, order]`` of the teacher; order is None where the channels lie in the same order. What is
    ``pooled`` is compared by its mean over height and width."""

    site: str
    tensor: str
    source: str
    order: tuple[int, ...] | None = None
    pooled: bool = False


@dataclass(frozen=True)
class Pairing:
    """The pairs, and the sites that have none, with the reason."""

    pairs: tuple[Pair, ...]
    unpaired: dict[str, str]


def pair_sites(
    student: Survey, teacher: Survey, digest: RewriteReport | None, outputs: Sequence[str]
) -> Pairing:
    """Pair the output of each rewritten site, collapsed block and narrowed convolution with the teacher's tensor that it stands for.

    student, teacher: what there is in the two models, and what cannot be compared. outputs: names of
    what is compared anyway.
    """
    if digest is None:
        return Pairing((), {})
    pairs: dict[str, Pair] = {}
    unpaired: dict[str, str] = {}
    ours, theirs = student.computed, teacher.computed
    changed: list[SiteReport | BlockReport | NarrowReport] = [
        *digest.rewritten,
        *digest.blocks,
        *digest.narrowed,
    ]
    for site in changed:
        tensor, source, order = _correspondence(site.output, ours, digest)
        if tensor in outputs:
            unpaired[site.name] = "it makes a model output, which is matched by itself"
        elif tensor not in ours:
            unpaired[site.name] = "it lies in a function or sub-graph"
        elif source not in theirs:
            unpaired[site.name] = f"the teacher has no tensor {source!r}"
        elif reason := student.inner.get(tensor) or teacher.inner.get(source):
            unpaired[site.name] = reason
        else:
            pairs[tensor] = Pair(site.name, tensor, source, order)
    return Pairing(tuple(pairs.values()), unpaired)


def pair_feature(
    feature: str, student: Survey, teacher: Survey, digest: RewriteReport | None, pooled: bool
) -> Pair | None:
    """Pair a tensor of the teacher with the student's; None where there is none, or they cannot be compared."""
    tensor, source, order = _correspondence(feature, student.computed, digest)
    if tensor not in student.computed or source not in teacher.computed:
        return None
    if tensor in student.inner or source in teacher.inner:
        return None
    return Pair(FEATURE, tensor, source, order, pooled)


def _correspondence(
    name: str, computed: Set[str], digest: RewriteReport | None
) -> tuple[str, str, tuple[int, ...] | None]:
    """The tensor of the student that stands for one of the teacher, the teacher's, and the order of channels."""
    moved = {
        tensor: (former, tuple(permutation.order))
        for permutation in (digest.permutations if digest is not None else ())
        for tensor, former in permutation.tensors.items()
    }
    renamed = {former: tensor for tensor, (former, _) in moved.items()}
    tensor = name if name in computed else renamed.get(name, name)
    source, order = moved.get(tensor, (tensor, None))
    return tensor, source, order


def with_outputs(
    model: ModelProto, tensors: Sequence[str], outputs: Sequence[str] | None = None
) -> ModelProto:
    """A copy of a model in which inner tensors follow the graph outputs as further outputs.

    outputs: names of the graph outputs, in the order in which they come, or of inner tensors in their
    place; others are left out. None keeps what there is.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    if outputs is not None:
        there = {output.name: output for output in model.graph.output}
        del copy.graph.output[:]
        copy.graph.output.extend(
            there.get(name, onnx.ValueInfoProto(name=name)) for name in outputs
        )
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
