"""The report as JSON and as the digest inside a model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onnx_igpc import compress
from onnx_igpc.errors import ModelError
from onnx_igpc.planning.options import Published
from onnx_igpc.report.digest import DIGEST_KEY, read_digest, write_digest
from onnx_igpc.report.tree import Change, Permutation, RewriteReport, SiteReport, StageReport
from tests.helpers import pointwise_model
from tests.html_reports import network_report


def full_report() -> RewriteReport:
    report = compress(pointwise_model(40, 24), Published(8)).report
    report.calibration = network_report().calibration
    report.permutations = [Permutation({"conv/permuted": "conv"}, [1, 0])]
    report.totals.file_bytes = Change(10, 5)
    return report


def test_json_round_trip() -> None:
    report = full_report()
    again = RewriteReport.from_json(report.to_json())
    assert again == report
    assert isinstance(again.sites[0], SiteReport)
    assert isinstance(again.sites[0].k, StageReport)
    assert isinstance(again.totals.macs, Change)
    assert isinstance(again.permutations[0], Permutation)


def test_the_fields_that_others_read() -> None:
    data = full_report().to_dict()
    for total in ("parameters", "macs", "pointwise_parameters", "file_bytes"):
        assert {"before", "after"} <= set(data["totals"][total])
    wanted = {"name", "in_channels", "out_channels", "status", "reason", "scheme"}
    wanted |= {"channels_per_group", "k", "l", "parameters", "macs", "error"}
    assert wanted <= set(data["sites"][0])
    assert data["version"] == 1


def test_names_in_other_scripts_stay_readable() -> None:
    report = RewriteReport(sites=[SiteReport("слой/卷积", 1, 1, "kept")])
    assert "слой/卷积" in report.to_json()
    assert RewriteReport.from_json(report.to_json()) == report


def test_ratio() -> None:
    assert Change(8, 2).ratio == 0.25
    assert Change(0, 2).ratio is None
    assert Change(None, 2).ratio is None
    assert Change(8, None).ratio is None


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused(version: Any) -> None:
    data = full_report().to_dict() | {"version": version}
    with pytest.raises(ModelError, match=r"has version .* this release reads version 1"):
        RewriteReport.from_dict(data)


NESTED = '{"a":' * 400 + "1" + "}" * 400
DAMAGE: dict[str, Any] = {
    "not JSON": "{",
    "not an object": "[1]",
    "a string": '"x"',
    "nothing": "",
    "too deep": "[" * 100_000,
    "lists in lists": f'{{"version":1,"totals":{{}},"notes":{"[" * 10_000}{"]" * 10_000}}}',
    "objects in a value": f'{{"version":1,"options":{{"ch":{NESTED}}},"totals":{{}},"sites":[]}}',
    "no totals": {"totals": None},
    "a number for totals": {"totals": 5},
    "a number for sites": {"sites": 5},
    "text for sites": {"sites": "abc"},
    "text for a site": {"sites": ["abc"]},
    "half a site": {"sites": [{"name": "conv"}]},
    "text for a stage": {"sites": [SiteReport("a", 1, 1, "kept").__dict__ | {"k": "abc"}]},
    "an unknown field": {"surprise": 1},
    "an unknown total": {"totals": {"surprise": {}}},
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_digest_is_one_line(case: str) -> None:
    damage = DAMAGE[case]
    if isinstance(damage, dict):
        data = full_report().to_dict() | damage
        damage = json.dumps(data, default=lambda each: each.__dict__)
    model = pointwise_model()
    model.metadata_props.add(key=DIGEST_KEY, value=damage)
    with pytest.raises(ModelError) as raised:
        read_digest(model)
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError):
        compress(model)


def test_the_digest_is_the_report_without_file_sizes() -> None:
    model, report = pointwise_model(), full_report()
    assert read_digest(model) is None
    write_digest(model, report)
    digest = read_digest(model)
    assert digest is not None
    assert digest.totals.file_bytes == Change()
    assert report.totals.file_bytes == Change(10, 5), "the report itself keeps them"
    digest.totals.file_bytes = report.totals.file_bytes
    assert digest == report


def test_the_digest_is_written_once() -> None:
    model = pointwise_model()
    model.metadata_props.add(key="other", value="stays")
    write_digest(model, RewriteReport(notes=["first"]))
    write_digest(model, RewriteReport(notes=["second"]))
    assert [entry.key for entry in model.metadata_props] == ["other", DIGEST_KEY]
    digest = read_digest(model)
    assert digest is not None
    assert digest.notes == ["second"]


def test_compress_writes_the_digest_of_its_report() -> None:
    result = compress(pointwise_model(40, 24), Published(8))
    digest = read_digest(result.model)
    assert digest is not None
    digest.totals.file_bytes = result.report.totals.file_bytes
    assert digest == result.report
