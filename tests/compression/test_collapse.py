"""compress with a budget of MACs or latency: residual blocks collapsed, and what the report says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from onnx_igpc import Budget, Calibration, Keep, Lowering, Setting, SiteFilter, compress
from onnx_igpc.cli import main
from onnx_igpc.compression import plan_choice
from onnx_igpc.errors import CheckFailedError, UsageError
from onnx_igpc.graph.cost import count
from onnx_igpc.lowering import block_prices
from onnx_igpc.planning.search import Plan
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.html.page import render_html
from onnx_igpc.report.result import CompressResult
from onnx_igpc.report.tree import RewriteReport
from tests.calibration_graphs import ListData, faint, images, residual_model, saved
from tests.helpers import pointwise_model, run
from tests.lowering_prices import race_by_macs

SAMPLES = 40


@pytest.fixture(autouse=True)
def by_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Races in which a model takes as long as it has multiply-accumulates."""

    monkeypatch.setattr(block_prices, "race_models", race_by_macs)


def three_blocks() -> onnx.ModelProto:
    """The second and the third add little."""
    return faint(residual_model(16, blocks=3), b0=1.0, b1=0.05, b2=0.1)


def compressed(
    model: onnx.ModelProto, target: str, x: np.ndarray | None = None, **options: Any
) -> CompressResult:
    values = images(SAMPLES, 16) if x is None else x
    budget = Budget(target, blocks=options.pop("blocks", "auto"), channels="keep")
    return compress(
        model, budget, calibration=Calibration(ListData(model, {"x": values})), **options
    )


def test_the_blocks_that_do_little_are_gone_and_all_is_told() -> None:
    model = three_blocks()
    result = compressed(model, "latency=50%")
    report, written = result.report, result.model
    assert [block.name for block in report.blocks] == ["sum1_node", "sum2_node"]
    for block in report.blocks:
        assert block.node in {node.name for node in written.graph.node}
        assert block.parameters.before == 16 * 32 * 2 + 32 + 9 * 32 + 2 * 16
        assert block.parameters.after == 16 * 16 + 16
        assert block.macs.after == 36 * 16 * 16
        assert block.error is not None
        assert 0 < block.error < 1
    states = {site.name: site.status for site in report.sites}
    assert list(states) == [f"{name}{index}_node" for index in range(3) for name in "ab"]
    assert [states[name] for name in ("a0_node", "b0_node")] == ["kept", "kept"]
    assert {states[f"{name}{index}_node"] for index in (1, 2) for name in "ab"} == {"collapsed"}
    gone = next(site for site in report.sites if site.name == "a1_node")
    assert gone.reason == "went with the residual block of sum1_node"
    assert (gone.parameters.after, gone.macs.after) == (0, 0)
    cost = count(written)
    assert (report.totals.macs.after, report.totals.parameters.after) == (
        cost.macs,
        cost.parameters,
    )
    assert cost.macs <= 0.5 * count(model).macs
    dense = 3 * (2 * 16 * 32 + 32)
    assert report.totals.pointwise_parameters.before == dense
    assert report.totals.pointwise_parameters.after == dense // 3 + 2 * (16 * 16 + 16)
    assert {"a1_node", "d2_node", "b2_bn_scale"} <= set(report.removed)
    assert report.selection is not None
    assert report.selection.unit == "blocks"
    assert report.selection.curve[-1] == (1.0, 0.0)
    assert read_digest(written) is not None
    again = RewriteReport.from_json(report.to_json())
    assert again.blocks == report.blocks


def test_the_figure_is_of_samples_that_the_fit_did_not_see() -> None:
    model, x = three_blocks(), images(SAMPLES, 16)
    result = compressed(model, "latency=70%", x)
    damage, used = result.report.damage, result.report.calibration
    assert damage is not None
    assert damage.samples == SAMPLES, "the parts are exchanged"
    assert used is not None
    assert used.fit == "residual blocks one after another, by least squares"
    before, after = (run(each, {"x": x})["y"] for each in (model, result.model))
    agreement = np.mean(before.argmax(axis=1) == after.argmax(axis=1))
    assert damage.fitted is not None
    assert damage.fitted.agreement == pytest.approx(agreement)


def test_sites_are_rewritten_where_that_does_less_damage_or_blocks_may_not_go() -> None:
    heavy = faint(residual_model(16, blocks=2), b0=3.0, b1=3.0)
    rewritten = compressed(heavy, "macs=95%").report
    assert not rewritten.blocks
    assert rewritten.rewritten
    forbidden = compressed(three_blocks(), "macs=60%", blocks="keep").report
    assert not forbidden.blocks
    assert forbidden.rewritten
    assert forbidden.options.blocks == "keep"
    other = compressed(three_blocks(), "pointwise-parameters=60%").report
    assert not other.blocks, "of pointwise parameters alone sites are what counts"


def test_of_multiply_accumulates_the_plan_of_less_damage_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan_sites = plan_choice.plan_sites

    def worse(*given: Any) -> Plan:
        planned = plan_sites(*given)
        assert planned.summary is not None
        planned.summary.measured_damage = 9.0
        return planned

    assert not compressed(three_blocks(), "macs=60%").report.blocks
    monkeypatch.setattr(plan_choice, "plan_sites", worse)
    report = compressed(three_blocks(), "macs=60%").report
    assert report.blocks
    assert report.selection is not None
    assert report.selection.latency is None

    def impossible(*given: Any) -> Plan:
        raise CheckFailedError("out of reach")

    monkeypatch.setattr(plan_choice, "plan_sites", impossible)
    assert compressed(three_blocks(), "macs=60%").report.blocks
    with pytest.raises(CheckFailedError, match="out of reach"):
        compressed(three_blocks(), "macs=60%", blocks="keep")


def test_excluded_sites_keep_their_blocks() -> None:
    report = compressed(three_blocks(), "latency=70%", sites=SiteFilter(exclude="b1*")).report
    assert "sum1_node" not in [block.name for block in report.blocks]
    # What was asked for by name may be gone when the sites are looked for again.
    only = compressed(
        three_blocks(), "latency=80%", sites=SiteFilter(include=["a1*", "b1*"])
    ).report
    assert [block.name for block in only.blocks] == ["sum1_node"]


def test_a_budget_of_time_takes_blocks_and_can_still_be_trained() -> None:
    result = compressed(
        three_blocks(), "latency=60%", lowering=Lowering(setting=Setting(threads=1))
    )
    report = result.report
    assert report.blocks
    assert report.lowering is None, "nothing was lowered"
    assert report.selection is not None
    latency = report.selection.latency
    assert latency is not None
    assert latency.measured <= 0.6
    assert latency.dense_seconds == pytest.approx(1e-9 * count(three_blocks()).macs)
    # Ruin is refused only where the result is final.
    ruined = faint(residual_model(16, blocks=3), b0=9.0, b1=9.0, b2=9.0)
    assert compressed(ruined, "latency=30%").report.blocks


def test_what_is_compressed_again_keeps_its_blocks_in_the_report() -> None:
    once = compressed(three_blocks(), "latency=70%")
    assert once.report.blocks
    twice = compressed(once.model, "pointwise-parameters=70%")
    assert [block.name for block in twice.report.blocks] == [
        block.name for block in once.report.blocks
    ]
    assert twice.report.rewritten


def test_a_budget_that_nothing_reaches_says_so() -> None:
    with pytest.raises(CheckFailedError, match="macs=1% cannot be reached"):
        compressed(three_blocks(), "macs=1%")


def test_the_command_and_the_page_tell_of_blocks(tmp_path: Path) -> None:
    onnx.save(three_blocks(), tmp_path / "model.onnx")
    data = saved(tmp_path, x=images(SAMPLES, 16))
    page = tmp_path / "report.html"
    given = [str(tmp_path / "model.onnx"), "--calibration", str(data), "--target", "latency=50%"]
    given += ["--channels", "keep"]
    given += ["-o", str(tmp_path / "small.onnx"), "--report", str(page)]
    shown = CliRunner().invoke(main, ["compress", *given])
    assert shown.exit_code == 0, shown.output
    assert "collapsed to one" in shown.output
    assert "4 gone with blocks" in shown.output
    text = page.read_text(encoding="utf-8")
    assert "2 residual blocks became one pointwise convolution each" in text
    assert 'id="blocks"' in text
    assert "collapsed: went with the residual block of sum1_node" in text
    assert "residual blocks are collapsed, from left to right" in text
    refused = CliRunner().invoke(
        main, ["compress", *given[:3], "-o", str(tmp_path / "o.onnx"), "--blocks", "only"]
    )
    assert refused.exit_code == 2
    assert "give --target" in refused.output
    plain = render_html(RewriteReport(), "x")
    assert 'id="blocks"' not in plain


def test_blocks_only_or_a_line_that_says_why_not() -> None:
    assert compressed(three_blocks(), "macs=90%", blocks="only").report.blocks
    failed = "cannot be reached by collapsing residual blocks"
    with pytest.raises(CheckFailedError, match=rf"macs=15% {failed}: the least .* is 19.5%"):
        compressed(three_blocks(), "macs=15%", blocks="only")
    plain = pointwise_model(16, 16)
    with pytest.raises(CheckFailedError, match=rf"macs=90% {failed}: there are none"):
        compressed(plain, "macs=90%", images(SAMPLES, 16, 5), blocks="only")
    with pytest.raises(CheckFailedError, match=rf"{failed}: what they do .* cannot be measured"):
        compressed(three_blocks(), "macs=90%", images(1, 16), blocks="only")
    with pytest.raises(UsageError, match="for `target` latency or macs, not pointwise-parameters"):
        Budget("pointwise-parameters=50%", blocks="only")


def test_a_promise_is_kept_by_as_many_blocks_as_it_allows() -> None:
    def kept(promise: str, **options: Any) -> RewriteReport:
        data = Calibration(ListData(three_blocks(), {"x": images(120, 16)}))
        keep = Keep(promise, **options)
        return compress(three_blocks(), keep, calibration=data).report

    loose, strict = (kept(f"agreement={share}%", minimize="latency") for share in (40, 80))
    assert len(loose.blocks) >= len(strict.blocks) >= 1
    assert not strict.rewritten
    for report, bound in ((loose, 0.4), (strict, 0.8)):
        assert report.damage is not None
        assert report.damage.interval is not None
        assert report.damage.interval[0] >= bound
        assert report.selection is not None
        assert report.selection.latency is not None
        assert report.selection.target.startswith("latency=")
    counted = kept("agreement=80%", minimize="macs", blocks="only")
    assert [block.name for block in counted.blocks] == [block.name for block in strict.blocks]
    with pytest.raises(CheckFailedError, match="cannot be kept by collapsing residual blocks: no"):
        kept("output=0.000001", minimize="macs", blocks="only")
    assert not kept("agreement=80%", minimize="macs").blocks
    with pytest.raises(UsageError, match="for `minimize` latency or macs, not pointwise-param"):
        Keep("agreement=80%", blocks="only")
