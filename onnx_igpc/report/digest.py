"""The report inside a written model: its digest, in the model's metadata."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import onnx

from onnx_igpc.errors import UsageError
from onnx_igpc.report.tree import Change, RewriteReport

DIGEST_KEY = "onnx_igpc.report"


# Fields that the digest has even where they are empty.
_ALWAYS = frozenset({"in_channels", "out_channels", "parameters", "macs", "totals", "sites"})


def read_digest(model: onnx.ModelProto) -> RewriteReport | None:
    """The report inside a model that this tool wrote; ``None`` for any other model.

    Raises:
        ModelError: as :meth:`RewriteReport.from_json`.
    """
    for entry in model.metadata_props:
        if entry.key == DIGEST_KEY:
            return RewriteReport.from_json(entry.value)
    return None


def refuse_lowered(digest: RewriteReport | None, name: str, step: str) -> None:
    """Refuse a model that was lowered or quantized; ``step`` is what it cannot be used for, as in ``compress``.

    Raises:
        UsageError: the digest says that it was.
    """
    if digest is not None and digest.lowering is not None:
        raise UsageError(
            f"{name} was lowered for a runtime, which is final: {step} the model before that"
        )
    refuse_quantized(digest, name, step)


def refuse_quantized(digest: RewriteReport | None, name: str, step: str) -> None:
    """Refuse a model that quantize wrote; ``step`` as for :func:`refuse_lowered`.

    Raises:
        UsageError: the digest says that it was quantized.
    """
    if digest is not None and digest.quantization is not None:
        raise UsageError(f"{name} was quantized, which is final: {step} the model before that")


def _without_defaults(data: dict[str, Any]) -> dict[str, Any]:
    """The report without what reading it back supplies: a small model should not grow by its digest."""

    def filled(values: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value
            for key, value in values.items()
            if key in _ALWAYS or value not in (None, "", [], {})
        }

    if data["lowering"] is not None:
        sites = {name: filled(site) for name, site in data["lowering"]["sites"].items()}
        data["lowering"] = filled({**data["lowering"], "sites": sites})
    return filled({**data, "sites": [filled(site) for site in data["sites"]]})


def write_digest(model: onnx.ModelProto, report: RewriteReport) -> None:
    """Store the report in the model's metadata.

    Left out is what would make equal runs write different bytes or tell of the machine: the file's own
    size, times, and the folder that data lay in; and what only a report file has.
    """
    portable = replace(
        report,
        totals=replace(report.totals, file_bytes=Change()),
        sites=[replace(site, thumbnails=None) for site in report.sites],
        calibration=report.calibration and report.calibration.portable(),
        selection=report.selection and report.selection.portable(),
        lowering=report.lowering and report.lowering.portable(),
        quantization=report.quantization and report.quantization.portable(),
        finetune=report.finetune and report.finetune.portable(),
        verify=None,
        benchmark=None,
    )
    data = _without_defaults(portable.to_dict())
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for entry in model.metadata_props:
        if entry.key == DIGEST_KEY:
            entry.value = text
            return
    model.metadata_props.add(key=DIGEST_KEY, value=text)
