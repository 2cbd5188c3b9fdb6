"""Sections of a report out of a file: read whole, or refused in one line; whatever is read can be shown."""

from __future__ import annotations

import copy
import io
import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from rich.console import Console

from onnx_igpc.cli import main
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.errors import ModelError
from onnx_igpc.report.console.lowering import show_lowering
from onnx_igpc.report.console.quantization import show_quantization
from onnx_igpc.report.console.rewrite import show_rewrite
from onnx_igpc.report.digest import DIGEST_KEY, read_digest, write_digest
from onnx_igpc.report.html import render_html
from onnx_igpc.report.sections import (
    DamageReport,
    JudgedBy,
    JudgedMeans,
    JudgedReport,
    MeasuredOn,
    Thumbnail,
)
from onnx_igpc.report.selection import LatencyReport, TriedPlan, TriedShare
from onnx_igpc.report.tree import Change, Permutation, RewriteReport, SiteReport
from tests.helpers import pointwise_model
from tests.html_reports import (
    finetune_report,
    lowering_report,
    network_report,
    quantization_report,
)

SECTIONS = (
    *("options", "calibration", "preprocessing", "selection", "damage", "lowering", "finetune"),
    "quantization",
    *("verify", "benchmark", "sites", "totals", "permutations"),
)
ODD: tuple[Any, ...] = (
    *(None, True, "\n", 0, -1, 0.0, float("nan"), float("inf"), 1e308, 10**400),
    *([], {}, [[]], [0, 0], {"a": 1}, ...),
)
"""Values to put in a place of JSON; ``...`` stands for none at all."""


def full_report() -> RewriteReport:
    """With every section and every field of them, but few entries."""
    report = network_report(1)
    report.sites.append(SiteReport("kept", 8, 8, "kept", "a reason", parameters=Change(64, 64)))
    report.sites[0].thumbnails = {
        "M": Thumbnail(cells=(1, 1), shape=(32, 64), largest=0.5, data="eJxjAAAAAQAB")
    }
    report.permutations = [Permutation({"conv/permuted": "conv"}, [1, 0])]
    report.preprocessing = Preprocessing(resize=(8, 8), mean=(0.5,), std=(0.25,))
    fitted = DamageReport(agreement=0.95, kl=0.1, samples=300)
    report.damage = DamageReport(
        agreement=0.75, interval=(0.66, 0.82), kl=0.42, not_finite=1, samples=100, fitted=fitted
    )
    report.notes = [MeasuredOn.LEFT_OUT.note]
    assert report.calibration is not None
    report.calibration.fit, report.calibration.held_out = "in sequence", 100
    report.calibration.chosen_by = {"in sequence": 0.4, "each by itself": 0.5}
    assert report.verify is not None
    assert report.verify.classifier is not None
    classifier = replace(report.verify.classifier, kl=0.3)
    report.verify = replace(report.verify, classifier=classifier)
    report.lowering, report.finetune = lowering_report(), finetune_report(2)
    report.quantization = quantization_report()
    run = report.finetune
    run.val, run.outputs = JudgedBy("train", 40, False, None, kind="held-out"), ["y"]
    run.val_before = JudgedMeans(**vars(run.val_before), judged=2.5)
    run.epochs[0].val_judged = 0.5
    run.judged = JudgedReport(
        on="held-out",
        samples=40,
        before=2.5,
        after=0.5,
        least_after_training=0.5,
        epoch=1,
        gained=True,
    )
    assert report.selection is not None
    report.selection.curve = [(0.1, 0.5), (0.4, 0.014), (1.0, 0.0)]
    plan = TriedPlan(share=0.4, predicted=0.014, measured=0.02, agreement=0.9)
    report.selection.tried, report.selection.measured_damage = [plan], 0.02
    tried = TriedShare(predicted=0.5, measured=0.6, damage=0.1)
    report.selection.latency = LatencyReport(
        predicted=0.5, measured=0.6, damage=0.1, dense_seconds=0.01, tried=[tried]
    )
    return report


def show(report: RewriteReport) -> str:
    """All views of the report command, one after the other."""
    console = Console(file=io.StringIO(), width=80)
    show_rewrite(console, report, verbose=True)
    show_lowering(console, report, verbose=True)
    show_quantization(console, report, verbose=True)
    return render_html(report, "small.onnx")


def test_every_section_is_read_as_it_was_written() -> None:
    report = full_report()
    assert RewriteReport.from_json(report.to_json()) == report
    assert RewriteReport.from_json(report.to_json()).to_json() == report.to_json()
    assert list(report.to_dict()["verify"])[-1] == "passed"


def test_what_is_not_known_is_not_in_the_json() -> None:
    def written(damage: DamageReport) -> dict[str, Any]:
        values: dict[str, Any] = RewriteReport(damage=damage).to_dict()["damage"]
        return values

    assert written(DamageReport(agreement=1.0, samples=3)) == {"agreement": 1.0, "samples": 3}
    # The original's output can be all zero.
    unknown = {"relative_error": None, "output": "y", "samples": 3}
    assert written(DamageReport(output="y", samples=3)) == unknown
    assert RewriteReport().to_dict()["options"] == {}


NEWER: dict[str, tuple[str, ...]] = {
    "calibration": ("fit", "chosen_by", "held_out"),
    "damage": ("interval", "kl", "unknown", "fitted"),
    "selection": ("measured_damage", "tried"),
}
"""Fields that reports had not before damage was measured on held-out data."""


def test_reports_from_before_damage_was_held_out_are_read_and_shown() -> None:
    data = json.loads(full_report().to_json())
    for section, names in NEWER.items():
        for name in names:
            data[section].pop(name, None)
    del data["verify"]["classifier"]["kl"]
    data["notes"] = [MeasuredOn.FITTED.note]
    report = RewriteReport.from_dict(data)
    assert json.loads(report.to_json()) == data
    data["verify"] = None
    console = Console(file=io.StringIO(), width=200)
    report = RewriteReport.from_dict(data)
    show_rewrite(console, report)
    assert "saw" not in console.file.getvalue()  # type: ignore[attr-defined]
    page = render_html(report, "small.onnx")
    assert "on 100 samples of the data that the weights were fitted to" in page
    assert "left out of the fit" not in page


def test_damage_in_damage_without_end_is_refused() -> None:
    data = json.loads(RewriteReport().to_json())
    inner: dict[str, Any] = {"samples": 1}
    for _ in range(400):
        inner = {"samples": 1, "fitted": inner}
    with pytest.raises(ModelError, match="nested more than 50 levels deep"):
        RewriteReport.from_dict(data | {"damage": inner})


def test_the_digest_tells_nothing_of_the_machine() -> None:
    report, model = full_report(), pointwise_model()
    assert report.calibration is not None
    assert report.finetune is not None
    report.calibration.source, report.calibration.seconds = "/home/me/images", 1.5
    report.finetune.data = report.finetune.data.__class__("/home/me/train", 3, True, None)
    report.finetune.notes = ["/home/me/train has no labels"]
    report.finetune.epochs[0].seconds = 1.5
    write_digest(model, report)
    (entry,) = model.metadata_props
    assert "/home" not in entry.value
    assert "seconds" not in json.dumps(json.loads(entry.value)["finetune"])
    assert "train has no labels" in entry.value
    data = json.loads(entry.value)
    assert set(data["lowering"]) == {"mode", "provider", "threads", "batch", "shapes", "sites"}
    assert "seconds" not in data["calibration"]
    assert data["calibration"]["chosen_by"] == {"in sequence": 0.4, "each by itself": 0.5}
    assert "latency" not in data["selection"]
    assert "seconds" not in json.dumps(data["selection"])
    assert data["selection"]["tried"][0]["measured"] == 0.02
    assert data["damage"] == report.to_dict()["damage"]
    digest = read_digest(model)
    assert digest is not None
    write_digest(model, digest)
    assert model.metadata_props[0].value == entry.value


def changes(data: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every place in ``data`` with every odd value in it, and without it."""
    if isinstance(data, (dict, list)):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            here = (*place, key)
            yield from ((here, odd) for odd in ODD)
            yield from changes(value, here)


def changed(data: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    whole = copy.deepcopy(data)
    *way, last = place
    inner: Any = whole
    for key in way:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return whole


def read(data: dict[str, Any]) -> RewriteReport | str:
    """The report, or why it is refused."""
    try:
        return RewriteReport.from_dict(data)
    except ModelError as error:
        return str(error)


def test_every_section_is_tried() -> None:
    optional = {each.name for each in fields(RewriteReport) if each.default is None}
    assert optional <= set(SECTIONS)
    report = full_report()
    assert all(getattr(report, name) is not None for name in SECTIONS)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_refused_in_one_line_or_can_be_shown(section: str) -> None:
    # The other sections would only take time.
    whole = json.loads(full_report().to_json())
    data = json.loads(RewriteReport().to_json()) | {section: whole[section]}
    refused = []
    for place, value in changes({section: data[section]}):
        report = read(changed(data, place, value))
        if isinstance(report, str):
            refused.append(report)
            continue
        try:
            show(report)
        except Exception as error:
            raise AssertionError(f"{place} = {value!r}") from error
        assert RewriteReport.from_dict(report.to_dict()).to_json() == report.to_json()
    assert len(refused) > 10
    assert all(text.startswith("the report is damaged: ") for text in refused)
    assert all(text.isprintable() for text in refused)


WITHOUT: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "options": (("options", "ch"), "x", "options.ch is not a whole number"),
    "calibration": (("calibration", "samples"), ..., "calibration.samples is missing"),
    "preprocessing": (("preprocessing", "std"), [0.0], "preprocessing: std must not be 0"),
    "selection": (("selection", "chosen"), ..., "selection.chosen is missing"),
    "damage": (("damage", "agreement"), "all", "damage.agreement is not a number"),
    "interval": (("damage", "interval"), [0.5], "damage.interval is not a list of 2"),
    "fits": (("calibration", "chosen_by"), {"a": "b"}, "calibration.chosen_by.a is not a number"),
    "tried": (("selection", "tried", 0, "share"), ..., "selection.tried[0].share is missing"),
    "lowering": (("lowering", "sites"), [1], "lowering.sites is not an object"),
    "finetune": (("finetune", "epochs", 0, "loss"), ..., "finetune.epochs[0].loss is missing"),
    "verify": (("verify", "outputs", 0, "name"), ..., "verify.outputs[0].name is missing"),
    "benchmark": (("benchmark", "races"), ..., "benchmark.races is missing"),
    "races": (("benchmark", "races", 0, "timings"), [], "benchmark.races[0]: a race has no"),
    "layout": (("sites", 0, "layout"), {"no": "layout"}, "sites[0].layout: not a layout: 'C'"),
    "thumbnails": (("sites", 0, "thumbnails", "M"), {}, "sites[0].thumbnails.M.cells is missing"),
    "unknown": (("finetune", "surprise\n"), 1, "finetune.surprise? is not known"),
}


@pytest.mark.parametrize(
    "layout",
    [
        {"scheme": "v2", "C": 2**20, "F": 2**20, "ch": 2**20},
        {"scheme": "x", "C": 8, "F": 8, "ch": 8, "k": [[1, 2**20, 8], [1, 2**20, 8]]},
        {"scheme": "x", "C": 8, "F": 8, "ch": 8, "k": [["x" * 99, 10**9, 8]]},
        {"scheme": "x", "C": 8, "F": 8, "ch": 8, "k": [[[0], 10**9, 8]]},
    ],
)
def test_giant_layouts_are_refused_before_they_take_memory(layout: dict[str, Any]) -> None:
    data = json.loads(RewriteReport(sites=10 * full_report().sites[:1]).to_json())
    for site in data["sites"]:
        site["layout"] = layout
    tracemalloc.start()
    with pytest.raises(ModelError, match=r"have more than|not a layout"):
        RewriteReport.from_dict(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6


@pytest.mark.parametrize("view", ["console", "page"])
@pytest.mark.parametrize("case", WITHOUT)
def test_the_report_command_names_the_damaged_field(case: str, view: str, tmp_path: Path) -> None:
    place, value, said = WITHOUT[case]
    model, page = pointwise_model(), tmp_path / "page.html"
    damaged = changed(json.loads(full_report().to_json()), place, value)
    model.metadata_props.add(key=DIGEST_KEY, value=json.dumps(damaged))
    onnx.save(model, tmp_path / "m.onnx")
    more = ["--html", str(page)] if view == "page" else []
    result = CliRunner().invoke(main, ["report", str(tmp_path / "m.onnx"), *more])
    assert result.exit_code == 2
    assert f"the report is damaged: {said}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not page.exists()
