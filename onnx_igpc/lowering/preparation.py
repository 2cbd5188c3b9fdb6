"""What is done to a model before its sites are written for a runtime: constants, and BatchNormalization folded."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnx_igpc.graph.edit import IR_WITH_FREE_INITIALIZERS
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering.catalogue import fold_batch_norms
from onnx_igpc.report.tree import RewriteReport


@dataclass(frozen=True)
class Preparation:
    """What :func:`prepare` did: inputs that are constants now, and BatchNormalizations folded or not."""

    inputs_removed: list[str]
    folded: list[str]
    kept: dict[str, str]

    def put_into(self, report: RewriteReport) -> list[str]:
        """Say in the report what was folded; the inputs that are gone."""
        report.folded += [name for name in self.folded if name not in report.folded]
        report.notes += [f"{name} was not folded: {why}" for name, why in self.kept.items()]
        return self.inputs_removed


def prepare(opened: OpenModel) -> Preparation:
    """Fold BatchNormalization and make listed weights constant."""
    graph = opened.proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    # Up to version 3 of the format all weights must be listed, and none of them can be fed.
    free = opened.proto.ir_version >= IR_WITH_FREE_INITIALIZERS
    listed = [value.name for value in graph.input if value.name in stored] if free else []
    if listed:
        kept = [value for value in graph.input if value.name not in stored]
        kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
        del graph.input[:]
        graph.input.extend(kept)
    folded = fold_batch_norms(opened)
    return Preparation(listed, folded.changed, folded.kept)
