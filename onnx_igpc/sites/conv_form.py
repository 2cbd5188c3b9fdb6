"""Whether a convolution is one that a runtime would take: onnx.checker looks at far less.

A model file can declare a Conv whose weight has no channels, whose strides are empty or whose bias has
the wrong length, and still be valid for the checker.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx_igpc.graph.view import NodeRef

# onnxruntime takes an empty one for NOTSET.
_AUTO_PADS = (b"NOTSET", b"", b"SAME_UPPER", b"SAME_LOWER", b"VALID")


def malformed(ref: NodeRef, weight: Sequence[int] | None, bias: Sequence[int] | None) -> str | None:
    """What is wrong with a Conv, in words; ``None`` if nothing is.

    ``weight`` and ``bias`` are their shapes, ``None`` where they are not known.
    """
    if weight is None:
        return None
    kernel, rank = list(weight[2:]), len(weight) - 2
    if rank < 1 or min(weight) < 1:
        return f"malformed: a weight of shape {list(weight)}"
    groups = ref.attribute("group", 1)
    if not isinstance(groups, int) or groups < 1 or weight[0] % groups:
        return f"malformed: {groups} groups of {weight[0]} filters"
    if bias is not None and list(bias) != [weight[0]]:
        return f"malformed: a bias of shape {list(bias)} for {weight[0]} filters"
    if (auto_pad := ref.attribute("auto_pad", _AUTO_PADS[0])) not in _AUTO_PADS:
        return f"malformed: auto_pad {auto_pad!r}"
    for name, length, least in (
        ("kernel_shape", rank, 1),
        ("strides", rank, 1),
        ("dilations", rank, 1),
        ("pads", 2 * rank, 0),
    ):
        values = ref.attribute(name)
        if values is None:
            continue
        if not _integers(values) or len(values) != length or min(values) < least:
            return f"malformed: {name} {values!r} for {rank} dimensions"
        if name == "kernel_shape" and list(values) != kernel:
            return f"malformed: kernel_shape {list(values)} for a weight of shape {list(weight)}"
    return None


def _integers(values: object) -> bool:
    return isinstance(values, Sequence) and all(isinstance(value, int) for value in values)
