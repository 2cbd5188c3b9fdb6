"""What can be known before the first step is checked before it."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
import torch

from onnx_igpc.errors import DataError, MissingExtraError, ModelError, UsageError
from onnx_igpc.torch_bridge.training.held_out import Part
from onnx_igpc.torch_bridge.training.loader import BatchLoader
from onnx_igpc.torch_bridge.training.networks import Networks

_BATCH = 16


def check_can_write(target: Path) -> None:
    """Refuse a file in a folder that takes no files, before any work is done for it.

    Raises:
        UsageError: no file can be made in its folder, which is there.
        MissingExtraError: safetensors, which checkpoints need, is not installed.
    """
    try:
        with tempfile.TemporaryFile(dir=target.resolve().parent):
            pass
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from error
    if importlib.util.find_spec("safetensors") is None:
        raise MissingExtraError("safetensors", "torch", "writing checkpoints")


def refuse_training_mode(model: onnx.ModelProto, name: str) -> None:
    """Raise ModelError where nodes of a model, called ``name``, compute as in training when it is run.

    BatchNormalization then normalises by the batch and Dropout drops values: no two runs, and no two
    runtimes, agree on what such a model computes.
    """
    flags = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.BOOL}
    on = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.name in flags and onnx.numpy_helper.to_array(tensor).any()
    }
    functions = (node for function in model.functions for node in function.node)
    for node in _nodes((*model.graph.node, *functions)):
        if node.op_type == "Constant":
            on |= {
                node.output[0]
                for a in node.attribute
                if a.name == "value"
                and a.t.data_type == onnx.TensorProto.BOOL
                and onnx.numpy_helper.to_array(a.t).any()
            }
        attributes = {a.name: a.i for a in node.attribute}
        normalizes = node.op_type == "BatchNormalization" and attributes.get("training_mode")
        drops = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in on
        if normalizes or drops:
            raise ModelError(
                f"{name} was exported in training mode ({node.op_type} "
                f"{node.name or node.output[0]!r}): export it in eval mode, as after model.eval()"
            )


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes with those of their sub-graphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def explain_not_finite(
    networks: Networks, sources: Sequence[tuple[Part, BatchLoader]], *, student: bool
) -> None:
    """Where a loss is NaN or infinite: is it the teacher, or the model itself, on some sample?

    student: whether to look at the model, which is to blame before the first step alone.

    Raises:
        DataError: it is; which one, on which sample, in which tensor.
    """
    networks.student.eval()
    for part, loader in sources:
        each = loader.rows or _BATCH
        chunks = [range(i, min(i + each, part.size)) for i in range(0, part.size, each)]
        for chunk, batch in zip(chunks, loader.plain(map(list, chunks)), strict=True):
            with torch.no_grad():
                ours, theirs = networks.forward_plain(batch)
            for who, found in (("the teacher", theirs), ("the model", ours if student else None)):
                for name, values in zip(networks.student.output_names, found or (), strict=False):
                    row = _first_not_finite(values)
                    if row is not None:
                        number = part.number(chunk[min(row, len(chunk) - 1)])
                        raise DataError(
                            f"{who} makes values that are NaN or infinite in {name!r} of sample {number} "
                            f"(counted from 0) of {part.source}: take the sample out, or mend {who}"
                        )


def _first_not_finite(values: torch.Tensor) -> int | None:
    if not values.is_floating_point() or bool(values.isfinite().all()):
        return None
    bad = ~values.isfinite()
    rows = bad.flatten(1).any(1) if bad.dim() > 1 else bad.reshape(-1)
    return int(rows.nonzero()[0, 0])
