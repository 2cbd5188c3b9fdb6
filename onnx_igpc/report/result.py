"""A model in memory with the report of what was done to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx

from onnx_igpc.data.file_guard import FileGuard
from onnx_igpc.files.destinations import destination
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import (
    OpenModel,
    PathLike,
    copy_model,
    file_bytes,
    open_model,
    save_model,
)
from onnx_igpc.graph.parsing import check_message
from onnx_igpc.graph.spellings import settle_spellings
from onnx_igpc.graph.traversal import copied
from onnx_igpc.report.tree import RewriteReport


@dataclass
class CompressResult:
    """The rewritten model and the report of the rewrite.

    ``changed`` is false where there was nothing to rewrite; :meth:`save` then copies the input.
    ``guard`` knows the files that the run read.
    """

    opened: OpenModel
    report: RewriteReport
    changed: bool
    guard: FileGuard = field(default_factory=FileGuard, repr=False)
    _loaded: onnx.ModelProto | None = field(default=None, repr=False)

    @property
    def model(self) -> onnx.ModelProto:
        """The model with all its data in memory.

        Raises:
            ModelError: it is larger than a protobuf message can be (2 GiB): use :meth:`save`.
        """
        if self._loaded is None:
            self._loaded = (
                self.opened.materialized() if self.opened.has_external_data else self.opened.proto
            )
        return self._loaded

    def save(self, path: PathLike) -> None:
        """Write the model, whole or not at all, and put its size into the report.

        A link keeps pointing, to what is written. A pipe or device is written into.

        Raises:
            UsageError: the file cannot be written, or is one that was read.
        """
        target = Path(path)
        self.guard.with_output(target).check()
        write = save_model if self.changed else copy_model
        write(self.opened, target)
        if not destination(target).is_stream:
            self.report.totals.file_bytes.after = file_bytes(target)


def new_report(opened: OpenModel) -> RewriteReport:
    """For a model that carries none, and that nothing was done to: its counts and the size of its file."""
    report, cost = RewriteReport(), count(opened)
    for change, known in (
        (report.totals.parameters, cost.parameters),
        (report.totals.macs, cost.macs),
    ):
        change.before = change.after = known
    report.input_shapes = {name: list(shape) for name, shape in cost.input_shapes.items()}
    report.totals.file_bytes.before = (
        file_bytes(opened.path, opened.proto) if opened.path is not None else opened.total_bytes()
    )
    return report


def open_copy(model: onnx.ModelProto | PathLike) -> OpenModel:
    """A model to edit: read from its file, or a copy of the message.

    Raises:
        ModelError: as :func:`~onnx_igpc.graph.model.open_model`.
    """
    if not isinstance(model, onnx.ModelProto):
        return open_model(model)
    check_message("the model", model)
    copy = copied(model)
    settle_spellings(copy)
    return OpenModel(copy)
