"""Report files: the tree of a model and of what was measured of it, as JSON or as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnx_igpc.errors import ModelError, UsageError
from onnx_igpc.files.destinations import destination
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel, file_bytes, open_model
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.tree import Change, RewriteReport

_PAGE = (".html", ".htm")


def is_page(path: Path) -> bool:
    """Whether a report file is to be a page.

    Raises:
        UsageError: its suffix is neither that of a page nor that of JSON; ``-`` is JSON on stdout,
            and so is a pipe or device without a suffix.
    """
    suffix = path.suffix.lower()
    bare = str(path) == "-" or (not suffix and destination(path).is_stream)
    if suffix not in (*_PAGE, ".json") and not bare:
        raise UsageError(f"a report is a .html page or .json, which {path} is not")
    return suffix in _PAGE


def report_text(path: Path, report: RewriteReport, title: str) -> str:
    """What belongs into the report file ``path``; ``title`` is the model's name."""
    if not is_page(path):
        return report.to_json()
    from onnx_igpc.report.html import render_html

    return render_html(report, title)


def carried_report(model: OpenModel) -> RewriteReport:
    """The report that a model carries, with the size of its file.

    Raises:
        ModelError: it carries none.
    """
    digest = read_digest(model.proto)
    if digest is None:
        raise ModelError(
            f"{model.name} carries no report: onnx-igpc compress found nothing to rewrite in it (such a "
            "model stays as it is, byte for byte), or has not seen it"
        )
    if model.path is not None:
        digest.totals.file_bytes.after = file_bytes(model.path)
    return digest


def read_report(path: Path) -> RewriteReport:
    """The report in a JSON file.

    Raises:
        UsageError: it cannot be read.
        ModelError: it is no report.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    try:
        return RewriteReport.from_json(text)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def compared_report(original: Path, candidate: Path) -> RewriteReport:
    """What the candidate's digest says, or counts of both models where it has none.

    Raises:
        ModelError: a model cannot be read, or its digest not.
    """
    ours, theirs = open_model(candidate), open_model(original)
    digest = read_digest(ours.proto)
    report = digest or _counted(theirs, ours)
    report.totals.file_bytes.after = file_bytes(candidate)
    if digest is None or read_digest(theirs.proto) is None:
        # A digest tells of the model as it was before any rewrite: only such a file compares.
        report.totals.file_bytes.before = file_bytes(original)
    return report


def subject(models: Sequence[Path]) -> Path:
    """The model that a race is about: the last one that carries a report, or else the last."""
    carrying = [path for path in models[1:] if read_digest(open_model(path).proto) is not None]
    return (carrying or list(models))[-1]


def _counted(original: OpenModel, candidate: OpenModel) -> RewriteReport:
    before, after = count(original), count(candidate)
    report = RewriteReport(notes=list(after.notes))
    report.totals.parameters = Change(before.parameters, after.parameters)
    report.totals.macs = Change(before.macs, after.macs)
    report.input_shapes = {name: list(shape) for name, shape in after.input_shapes.items()}
    return report
