"""Reports for the tests of the page: small ones with everything in them, and hostile ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnx_igpc import compress
from onnx_igpc.evaluation.thumbnails import add_thumbnails
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.layout.serialization import layout_to_dict
from onnx_igpc.planning.options import Published
from onnx_igpc.report.tree import Change, RewriteReport, SiteReport, StageReport, Totals
from tests.helpers import pointwise_model

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<b>\u202eevil\x00\x1b[31m\U0001f480"
"""A name that breaks out of everything that does not escape it."""


def network_report(sites: int = 12) -> RewriteReport:
    """A report of ``sites`` rewritten and kept convolutions with all that commands add to it."""
    report = RewriteReport(
        options={"form": "linear", "init": "fitted", "channels_per_group": 16},
        totals=Totals(Change(2_000_000, 700_000), Change(9 * 10**8, 3 * 10**8)),
        sites=[_site(number) for number in range(sites)],
        warnings=["expect to fine-tune before use"],
        notes=["a note"],
        checks={"onnx.checker": "passed"},
        input_shapes={"image": [1, 3, 224, 224]},
        calibration={"source": "images", "samples": 300},
        selection=_selection(),
        finetune=_finetune(),
        verify=_verify(),
        benchmark=_benchmark(),
    )
    report.totals.file_bytes = Change(8_000_000, 2_800_000)
    return report


def hostile_report() -> RewriteReport:
    """A compressed model, and everything it could bring along, under a hostile name."""
    model = pointwise_model(40, 24)
    _rename(model)
    result = compress(model, Published(8))
    add_thumbnails(result.report, result.opened, OpenModel(model))
    report = result.report
    kept = SiteReport(HOSTILE + "2", 8, 8, "kept", HOSTILE, output=HOSTILE)
    report.sites.append(kept)
    report.notes.append(HOSTILE)
    report.warnings.append(HOSTILE)
    report.removed.append(HOSTILE)
    report.options["include"] = [HOSTILE]
    report.checks[HOSTILE] = HOSTILE
    report.tool = HOSTILE
    report.input_shapes = {HOSTILE: [1, 2]}
    report.selection, report.finetune = _selection(), _finetune()
    report.selection |= {"target": HOSTILE, "measure": HOSTILE, "damage_by_site": {HOSTILE: 1.0}}
    report.verify, report.benchmark = _verify(), _benchmark()
    report.verify["outputs"][0]["name"] = HOSTILE
    report.verify["failures"] = [HOSTILE]
    report.verify["metric"] = {HOSTILE: 1.0}
    for entry in (*report.benchmark["models"], *report.benchmark["races"][0]["timings"]):
        entry["path"] += HOSTILE
    report.benchmark["machine"] = HOSTILE
    return report


def _rename(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = HOSTILE.replace("\x00", "")


def _site(number: int) -> SiteReport:
    width = 32 * (1 + number % 6)
    before, name = 64 * width, f"/features/{number}/conv"
    if number % 4 == 3:
        counts = Change(before, before)
        return SiteReport(
            name, 64, width, "kept", "excluded by --exclude", None, None, None, None, counts
        )
    layout = plan_layout(64, width, 16)
    k = StageReport.of(layout.k)
    stage = StageReport.of(layout.l)
    site = SiteReport(name, 64, width, "rewritten", None, layout.scheme, 16, k, stage)
    site.parameters = Change(before, layout.weights)
    site.macs = Change(49 * before, 49 * layout.weights)
    site.error = 0.9 / (number + 1)
    site.layout = layout_to_dict(layout)
    site.nodes, site.replaced = [f"{name}/igpc/K", f"{name}/igpc/L"], [name]
    return site


def _selection() -> dict[str, Any]:
    curve = [[share, float(0.5 * np.exp(-9 * share))] for share in np.linspace(0.1, 0.9, 9)]
    return {
        "target": "pointwise-parameters=40%",
        "measure": "KL divergence, nats",
        "curve": [*curve, [1.0, 0.0]],
        "chosen": [0.398, 0.014],
        "damage_by_site": {"/features/0/conv": 0.001},
    }


def _finetune() -> dict[str, Any]:
    rows = [
        {"epoch": i, "loss": 2.0 / i, "agreement": 1 - 0.5 / i, "val_agreement": 1 - 0.6 / i}
        for i in range(1, 6)
    ]
    return {
        "recipe": {"epochs": 5, "lr": 0.005},
        "data": {"source": "train", "samples": 1437},
        "val_before": {"loss": 3.0, "agreement": 0.2},
        "epochs": rows,
    }


def _verify() -> dict[str, Any]:
    output = {"name": "logits", "max_abs": 3.31, "mean_abs": 0.241, "relative": 0.607}
    return {
        "samples": 360,
        "random": False,
        "outputs": [output | {"relative_norm": 0.199, "cosine": 0.98}],
        "classifier": {
            "scores": "logits",
            "classes": 10,
            "samples": 360,
            "agreement": 0.992,
            "original": {"top1": 0.983, "top5": 1.0},
            "candidate": {"top1": 0.992, "top5": 0.997},
        },
        "metric": None,
        "executed": {"original": "cpu ran 23 of 23 nodes"},
        "failures": [],
    }


def _benchmark() -> dict[str, Any]:
    speed = {"value": 1.25, "low": 1.21, "high": 1.3}
    return {
        "provider": "cpu",
        "onnxruntime": "1.20.0",
        "machine": "x86_64 Linux, 2 processors",
        "rounds": 8,
        "inputs": "random",
        "models": [
            {"path": "models/model.onnx", "file_bytes": 8_000_000, "executed": "", "notes": []},
            {"path": "models/small.onnx", "file_bytes": 2_800_000, "executed": "", "notes": []},
        ],
        "races": [
            {
                "batch": 1,
                "threads": 2,
                "timings": [
                    _timing("models/model.onnx", 2.5, None),
                    _timing("models/small.onnx", 2.0, speed),
                ],
            }
        ],
    }


def _timing(path: str, median: float, speed: dict[str, float] | None) -> dict[str, Any]:
    rounds = [median + 0.1 * step for step in (-1, 0, 0, 1, -2, 2, 0, 40)]
    return {
        "path": path,
        "median_ms": median,
        "quartiles_ms": [median - 0.1, median + 0.1],
        "samples_per_second": 1000 / median,
        "speedup": speed,
        "limit": speed and {"speedup": 1.6, "reached": 0.78},
        "rounds_ms": rounds,
    }
