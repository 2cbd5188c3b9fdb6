"""compress with a budget of MACs or latency: channels left out, and what the report says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from onnx_igpc import Budget, Calibration, SiteFilter, compress
from onnx_igpc.cli import main
from onnx_igpc.errors import CheckFailedError, UsageError
from onnx_igpc.graph.cost import count
from onnx_igpc.lowering import block_prices
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.html.page import render_html
from onnx_igpc.report.result import CompressResult
from onnx_igpc.report.tree import RewriteReport
from tests.calibration_graphs import ListData, faint, images, residual_model, saved
from tests.helpers import pointwise_model, run
from tests.lowering_prices import race_by_macs

SAMPLES = 40
READERS = ["b0_node", "b1_node", "b2_node"]


@pytest.fixture(autouse=True)
def by_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Races in which a model takes as long as it has multiply-accumulates."""

    monkeypatch.setattr(block_prices, "race_models", race_by_macs)


def three_blocks() -> onnx.ModelProto:
    """All of them add much, so that none can go; the channels in between are more than what makes them tells apart."""
    return faint(residual_model(16, blocks=3), b0=1.0, b1=1.0, b2=1.0)


def compressed(
    target: str,
    model: onnx.ModelProto | None = None,
    x: np.ndarray | None = None,
    sites: SiteFilter | None = None,
    **options: Any,
) -> CompressResult:
    model = three_blocks() if model is None else model
    values = images(SAMPLES, 16) if x is None else x
    data = Calibration(ListData(model, {"x": values}))
    return compress(model, Budget(target, **options), calibration=data, sites=sites)


@pytest.mark.parametrize("quantity", ["latency", "macs"])
def test_fewer_channels_are_read_and_all_is_told(quantity: str) -> None:
    result = compressed(f"{quantity}=75%", channels="only")
    report, cost = result.report, count(result.model)
    assert not report.blocks
    assert not report.rewritten
    assert 0.6 <= cost.macs / count(three_blocks()).macs <= 0.75
    assert report.totals.macs.after == cost.macs
    assert report.narrowed
    shapes = {each.name: list(each.dims) for each in result.model.graph.initializer}
    nodes = {node.name: node for node in result.model.graph.node}
    for each in report.narrowed:
        assert each.name in READERS
        assert each.maker == each.name.replace("b", "a")
        assert each.channels.before == 32
        assert each.channels.after is not None
        assert each.channels.after < 32
        assert shapes[nodes[each.name].input[1]][1] == each.channels.after
        assert shapes[nodes[each.maker].input[1]][0] == each.channels.after
        assert each.error is not None
        assert 0 < each.error < 1
    assert report.selection is not None
    assert report.selection.unit == "channels"
    assert report.selection.curve[-1][0] == 1.0
    assert report.options.channels == "only"
    narrow = {each.name: each for each in report.narrowed}
    for site in report.sites:
        each = narrow.get(site.name.replace("a", "b"))
        if each is None:
            assert site.status == "kept"
            assert site.reason == "the budget is kept by leaving out channels between convolutions"
            assert site.parameters.ratio == 1.0
            continue
        verb = "reads" if site.name.startswith("b") else "makes"
        assert site.status == "narrowed"
        assert site.reason == f"{verb} {each.channels.after} of 32 channels"
        left = each.channels.after or 0
        # A bias of 32 where they are made; where they are read one comes to be, for what was left out.
        before, after = (17 * 32, 17 * left) if verb == "makes" else (16 * 32, 16 * left + 16)
        assert (site.parameters.before, site.parameters.after) == (before, after)
        assert site.macs.after == 36 * 16 * left
    assert read_digest(result.model) is not None
    assert RewriteReport.from_json(report.to_json()).narrowed == report.narrowed


def test_the_figure_is_of_samples_that_the_fit_did_not_see() -> None:
    x = images(SAMPLES, 16)
    result = compressed("macs=75%", x=x, channels="only")
    damage, used = result.report.damage, result.report.calibration
    assert damage is not None
    assert damage.samples == SAMPLES, "the parts are exchanged"
    assert used is not None
    assert used.fit == "fewer channels in one place after another, by least squares"
    before, after = (run(each, {"x": x})["y"] for each in (three_blocks(), result.model))
    assert damage.fitted is not None
    assert damage.fitted.agreement == pytest.approx(
        np.mean(before.argmax(axis=1) == after.argmax(axis=1))
    )


def test_channels_or_blocks_by_what_does_less_damage() -> None:
    little = faint(residual_model(16, blocks=3), b0=1.0, b1=0.01, b2=1.0)
    assert [block.name for block in compressed("latency=74%", little).report.blocks] == [
        "sum1_node"
    ]
    assert not compressed("latency=74%", little, blocks="keep").report.blocks
    assert compressed("latency=74%", little, blocks="keep").report.narrowed
    much = compressed("latency=75%").report
    assert much.narrowed
    assert not much.blocks
    neither = compressed("macs=75%", blocks="keep", channels="keep").report
    assert neither.rewritten
    assert not neither.narrowed
    assert not compressed("pointwise-parameters=75%").report.narrowed


def test_convolutions_that_are_excluded_make_and_read_what_they_did() -> None:
    result = compressed("macs=90%", sites=SiteFilter(exclude="a1*"), channels="only")
    assert result.report.narrowed
    assert "b1_node" not in [each.name for each in result.report.narrowed]


def test_what_is_compressed_again_keeps_its_channels_in_the_report() -> None:
    once = compressed("macs=75%", channels="only")
    twice = compressed("pointwise-parameters=70%", once.model)
    assert twice.report.rewritten
    assert twice.report.narrowed == once.report.narrowed


def test_the_command_and_the_page_tell_of_channels(tmp_path: Path) -> None:
    onnx.save(three_blocks(), tmp_path / "model.onnx")
    data = saved(tmp_path, x=images(SAMPLES, 16))
    page = tmp_path / "report.html"
    given = [str(tmp_path / "model.onnx"), "--calibration", str(data)]
    target = ["--target", "latency=75%", "--channels", "only", "--report", str(page)]
    shown = CliRunner().invoke(
        main, ["compress", *given, *target, "-o", str(tmp_path / "small.onnx")]
    )
    assert shown.exit_code == 0, shown.output
    assert "reads fewer channels" in shown.output
    assert " narrower " in shown.output
    text = page.read_text(encoding="utf-8")
    assert "read fewer channels, " in text
    assert 'id="channels"' in text
    assert "narrowed: reads " in text
    assert "narrowed: makes " in text
    assert "channels are left out, from left to right" in text
    refused = CliRunner().invoke(
        main, ["compress", *given, "-o", str(tmp_path / "o.onnx"), "--channels", "only"]
    )
    assert refused.exit_code == 2
    assert "--channels is for a budget: give --target" in refused.output
    assert 'id="channels"' not in render_html(RewriteReport(), "x")


def test_channels_only_or_a_line_that_says_why_not() -> None:
    failed = "cannot be reached by leaving out channels"
    with pytest.raises(CheckFailedError, match=rf"macs=10% {failed}: the least .* 25.0%"):
        compressed("macs=10%", channels="only")
    with pytest.raises(CheckFailedError, match=rf"macs=90% {failed}: there are none"):
        compressed("macs=90%", pointwise_model(16, 16), images(SAMPLES, 16, 5), channels="only")
    with pytest.raises(CheckFailedError, match=rf"{failed}: what they do .* cannot be measured"):
        compressed("macs=90%", x=images(1, 16), channels="only")
    with pytest.raises(UsageError, match="for `target` latency or macs, not pointwise-parameters"):
        Budget("pointwise-parameters=50%", channels="only")
    with pytest.raises(UsageError, match="exclude each other"):
        Budget("macs=50%", channels="only", blocks="only")
