"""lower, and compress --lowering auto: the function stays, the report tells what was done."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import onnx_igpc
from onnx_igpc.cli import main
from onnx_igpc.errors import CheckFailedError, UsageError
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.lowering.catalogue import LOWERINGS
from onnx_igpc.lowering.lower import lower_model
from onnx_igpc.lowering.options import Lowering
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.result import CompressResult
from onnx_igpc.runtime.setting import Setting
from tests.calibration_graphs import images, saved
from tests.helpers import GraphBuilder, options_of, random_feeds
from tests.helpers import run as run_model
from tests.lowering_prices import Prices, by_operator
from tests.planning.test_budget import CHANNELS, classifier

ONE = Setting(threads=1)
DENSE_WINS = by_operator({"Conv": 50.0, "MatMul": 50.0})
GATHERS_COST = by_operator({"Gather": 100.0, "Conv": 10.0}, weight=0.01)


def two_sites(weights: str = "initializer") -> onnx.ModelProto:
    """x -> [1x1 Conv, BatchNormalization, Relu] twice -> y."""
    builder = GraphBuilder(weights=weights)  # type: ignore[arg-type]
    builder.input("x", ["n", 32, 6, 6])
    value = "x"
    for number in range(2):
        builder.conv(value, f"conv{number}", 32, 32, bias=True)
        builder.batch_norm(f"conv{number}", f"bn{number}", 32)
        value = builder.add("Relu", [f"bn{number}"], f"relu{number}")
    builder.conv(value, "last", 32, 32, kernel=3, group=32, pads=[1] * 4)
    builder.output("last", ["n", 32, 6, 6])
    return builder.model()


def compressed(weights: str = "initializer", **options: object) -> onnx.ModelProto:
    chosen = options_of(**{"channels_per_group": 8, **options})
    return onnx_igpc.compress(two_sites(weights), **chosen).model


def assert_same_function(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    feeds = random_feeds(before)
    expected, found = run_model(before, feeds), run_model(after, feeds)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4)


def assert_counted(result: CompressResult) -> None:
    """The report's counts are those of the graph that was written."""
    cost = count(OpenModel(result.model))
    totals = result.report.totals
    assert (totals.parameters.after, totals.macs.after) == (cost.parameters, cost.macs)
    made = {node.name: node.output[0] for node in result.model.graph.node}
    for site in result.report.rewritten:
        assert set(site.nodes) <= set(made)
        nodes = [("", made[name]) for name in site.nodes]
        assert site.parameters.after == cost.parameters_of(nodes) > 0


@pytest.mark.parametrize("label", LOWERINGS)
def test_one_lowering_throughout(label: str) -> None:
    before = compressed()
    result = lower_model(before, lowering=Lowering(label))
    assert_same_function(before, result.model)
    assert_counted(result)
    assert result.report.folded == ["bn0_node", "bn1_node"]
    assert "BatchNormalization" not in {node.op_type for node in result.model.graph.node}
    said = result.report.lowering
    assert said is not None
    assert said.mode == label
    for site in said.sites.values():
        assert site.lowering == label or (site.lowering == "literal" and site.reason)
    assert result.report.checks["lowering"].startswith("same outputs as before")


def test_measured_here() -> None:
    before = compressed()
    result = lower_model(before, lowering=Lowering(setting=ONE, cache=False))
    assert_same_function(before, result.model)
    assert_counted(result)
    said = result.report.lowering
    assert said is not None
    assert set(said.sites) == {"conv0_node", "conv1_node"}
    for site in said.sites.values():
        assert {site.lowering, "literal", "dense"} <= set(site.seconds or {})
    assert said.model is not None
    assert set(said.model.seconds) == {"literal", "dense", "chosen"}
    assert set(said.model.speedup) == {"literal", "dense"}


def test_the_digest_has_no_times_and_makes_it_final(tmp_path: Path) -> None:
    result = lower_model(compressed(), lowering=Lowering(setting=ONE, cache=False))
    result.save(tmp_path / "lowered.onnx")
    (entry,) = onnx.load(tmp_path / "lowered.onnx").metadata_props
    lowering = json.loads(entry.value)["lowering"]
    assert list(lowering) == ["mode", "provider", "threads", "batch", "sites"]
    for site in lowering["sites"].values():
        assert set(site) <= {"lowering", "reason"}
    with pytest.raises(UsageError, match="was lowered for a runtime, which is final: lower the"):
        lower_model(tmp_path / "lowered.onnx")
    with pytest.raises(UsageError, match="was lowered for a runtime, which is final: compress the"):
        onnx_igpc.compress(tmp_path / "lowered.onnx")


def test_training_refuses_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    onnx.save(two_sites(), tmp_path / "teacher.onnx")
    lower_model(compressed(), lowering=Lowering("dense")).save(tmp_path / "lowered.onnx")
    data = saved(tmp_path, x=images(4, 32))
    teacher = tmp_path / "teacher.onnx"
    arguments = [tmp_path / "lowered.onnx", "--teacher", teacher, "--data", data]
    result = invoke("finetune", *arguments, "-o", tmp_path / "tuned.onnx")
    assert result.exit_code == 2
    assert "lowered" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    result = invoke("to-torch", tmp_path / "lowered.onnx", "-o", tmp_path / "weights")
    assert result.exit_code == 2
    assert "was lowered for a runtime, which is final: train the model before that" in result.stderr


def test_weights_that_are_inputs_become_constants() -> None:
    before = compressed("input")
    listed = [value.name for value in before.graph.input]
    assert len(listed) > 1
    result = lower_model(before, lowering=Lowering("literal"))
    assert [value.name for value in result.model.graph.input] == ["x"]
    assert set(result.report.inputs_removed) >= set(listed) - {"x"}
    assert_same_function(before, result.model)


def test_what_cannot_be_lowered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no rewritten convolution"):
        lower_model(two_sites())
    with pytest.raises(UsageError, match="unknown lowering 'fast': choose from auto, literal"):
        lower_model(compressed(), lowering=Lowering("fast"))
    with pytest.raises(CheckFailedError, match=r"cuda is not in .* pip install"):
        lower_model(compressed(), lowering=Lowering(setting=Setting("cuda"), cache=False))


def test_compress_keeps_what_is_slower_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    Prices(DENSE_WINS).install(monkeypatch)
    original = two_sites()
    result = onnx_igpc.compress(
        original, onnx_igpc.Published(8), lowering=onnx_igpc.Lowering(setting=ONE, cache=False)
    )
    assert not result.changed
    reasons = {site.name: site.reason for site in result.report.kept}
    assert reasons["conv0_node"] == "slower on cpu (1 thread, batch 1)"
    assert result.model == original


def test_compress_lowers_what_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    Prices(GATHERS_COST).install(monkeypatch)
    literal = compressed()
    result = onnx_igpc.compress(
        two_sites(), onnx_igpc.Published(8), lowering=onnx_igpc.Lowering(setting=ONE, cache=False)
    )
    assert "Gather" in {node.op_type for node in literal.graph.node}
    assert "Gather" not in {node.op_type for node in result.model.graph.node}
    assert len(result.report.rewritten) == 2
    assert_same_function(literal, result.model)
    assert_counted(result)
    assert result.report.checks["sites"].startswith("2 of 2")


def test_slower_is_allowed_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Prices(DENSE_WINS).install(monkeypatch)
    result = onnx_igpc.compress(
        two_sites(),
        onnx_igpc.Published(8),
        lowering=onnx_igpc.Lowering(setting=ONE, allow_slower=True, cache=False),
    )
    assert len(result.report.rewritten) == 2


def test_options_of_compress_that_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="the paper's form is for training: train it, then use"):
        onnx_igpc.compress(
            two_sites(), onnx_igpc.Published(form="paper"), lowering=onnx_igpc.Lowering()
        )
    with pytest.raises(UsageError, match="compress lowers by measurement only, not to 'dense'"):
        onnx_igpc.compress(two_sites(), lowering=onnx_igpc.Lowering("dense"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return other_data(tmp_path, 0)


def other_data(folder: Path, seed: int) -> Path:
    """The same images with another noise for each seed: other layouts are candidates then."""
    noise = np.random.default_rng(seed).standard_normal(images(40, CHANNELS).shape)
    return saved(folder, x=(images(40, CHANNELS) + 0.05 * noise).astype(np.float32))


def timed(data: Path, target: str, kind: str = "auto") -> CompressResult:
    return onnx_igpc.compress(
        classifier(),
        onnx_igpc.Budget(target),
        calibration=data,
        lowering=onnx_igpc.Lowering(kind, setting=ONE, cache=False),
    )


def test_a_budget_of_time_holds_for_the_whole(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A weight costs time, and so does every node beyond those of the dense model.
    Prices(by_operator({}, weight=1.0)).install(monkeypatch)
    result = timed(data, "latency=60%")
    said = result.report.selection
    assert said is not None
    assert said.latency is not None
    assert said.latency.measured <= 0.6
    assert said.latency.predicted == pytest.approx(said.latency.measured, abs=0.05)
    assert result.report.lowering is not None
    assert result.report.lowering.model is not None
    seconds = result.report.lowering.model.seconds
    assert seconds["chosen"] <= 0.6 * seconds["dense"]
    assert_counted(result)


@pytest.mark.parametrize("seed", [2, 4])
def test_what_stands_around_a_site_is_no_part_of_its_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A neighbour's stand-in has weights, too, and not the same ones beside every candidate."""
    Prices(by_operator({}, weight=1.0)).install(monkeypatch)
    said = timed(other_data(tmp_path, seed), "latency=70%").report.selection
    assert said is not None
    assert said.latency is not None
    assert all(
        each.predicted == pytest.approx(each.measured, rel=0.01) for each in said.latency.tried
    )


def test_a_budget_of_time_that_is_left_literal_can_be_trained_and_lowered(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Prices(by_operator({}, weight=1.0)).install(monkeypatch)
    result = timed(data, "latency=60%", "literal")
    said = result.report.selection
    assert said is not None
    assert said.latency is not None
    assert said.latency.measured <= 0.6
    assert result.report.lowering is None
    digest = read_digest(result.model)
    assert digest is not None
    assert any("finetune, then onnx-igpc lower" in note for note in digest.notes)
    result.save(tmp_path / "small.onnx")
    assert_counted(result)
    lowered = onnx_igpc.lower(
        tmp_path / "small.onnx", lowering=onnx_igpc.Lowering(setting=ONE, cache=False)
    )
    assert lowered.report.lowering is not None
    assert lowered.report.lowering.model is not None
    seconds = lowered.report.lowering.model.seconds
    assert seconds["chosen"] <= 0.6 * seconds["dense"]


def test_literal_is_for_budgets_of_time(data: Path, tmp_path: Path) -> None:
    literal = onnx_igpc.Lowering("literal", setting=ONE, cache=False)
    with pytest.raises(UsageError, match="compress lowers by measurement only, not to 'literal'"):
        onnx_igpc.compress(classifier(), lowering=literal)
    onnx.save(compressed(), tmp_path / "small.onnx")
    with pytest.raises(UsageError, match="`precision` int8 is for what is measured, and 'literal'"):
        onnx_igpc.lower(tmp_path / "small.onnx", lowering=replace(literal, precision="int8"))


def test_the_budget_moves_until_the_measured_time_fits(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole takes longer than its sites say."""

    def whole(model: onnx.ModelProto) -> float:
        sites = by_operator({}, weight=1.0)(model)
        rewritten = any("igpc" in node.name for node in model.graph.node)
        dense = all(node.name.endswith("dense") for node in model.graph.node if "igpc" in node.name)
        return sites * (1.2 if rewritten and not dense else 1.0)

    Prices(by_operator({}, weight=1.0), whole).install(monkeypatch)
    said = timed(data, "latency=70%").report.selection
    assert said is not None
    assert said.latency is not None
    tried = said.latency.tried
    assert len(tried) > 1
    assert tried[0].measured > 0.7
    assert said.latency.measured <= 0.7


def test_time_that_cannot_be_reached_fails_the_check(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Prices(by_operator({}, weight=1.0)).install(monkeypatch)
    with pytest.raises(
        CheckFailedError, match=r"latency=1% cannot be reached on cpu \(1 thread, batch 1\)"
    ):
        timed(data, "latency=1%")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    onnx.save(compressed(), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def test_the_command(file: Path, tmp_path: Path) -> None:
    arguments = ("lower", file, "-o", tmp_path / "fast.onnx", "--threads", 1)
    cache = ("--cache", tmp_path / "cache")
    result = invoke(*arguments, *cache, "-v")
    assert result.exit_code == 0, result.output
    for text in ("2 sites:", "whole model", "predicted from sites", "conv0_node", "wrote"):
        assert text in result.stdout
    assert_same_function(onnx.load(file), onnx.load(tmp_path / "fast.onnx"))
    again = invoke(*arguments, *cache)
    assert "races of sites: 0 measured" in again.stdout
    shown = invoke("report", tmp_path / "fast.onnx")
    assert shown.exit_code == 0, shown.output


def test_the_command_refuses(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "fast.onnx"
    missing = invoke("lower", file, "-o", target, "--provider", "cuda", "--no-cache")
    assert missing.exit_code == 1
    assert "onnx-igpc[gpu]" in missing.stderr
    assert len(missing.stderr.strip().splitlines()) == 1
    both = invoke("lower", file, "-o", target, "--no-cache", "--cache", tmp_path)
    assert both.exit_code == 2
    onto_itself = invoke("lower", file, "-o", file)
    assert onto_itself.exit_code == 2
    assert not target.exists()


def test_compress_takes_the_options(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Prices(GATHERS_COST).install(monkeypatch)
    onnx.save(two_sites(), tmp_path / "dense.onnx")
    output = tmp_path / "fast.onnx"
    arguments = ("compress", tmp_path / "dense.onnx", "-o", output, "--ch", 8, "--no-cache")
    result = invoke(*arguments, "--lowering", "auto", "--threads", 1, "--batch", 2)
    assert result.exit_code == 0, result.output
    digest = read_digest(onnx.load(output))
    assert digest is not None
    assert digest.lowering is not None
    assert (digest.lowering.threads, digest.lowering.batch) == (1, 2)


def test_report_of_a_lowered_model_tells_its_lowering(tmp_path: Path) -> None:
    lowered = lower_model(compressed(), lowering=Lowering("padded-8", cache=False))
    path = tmp_path / "lowered.onnx"
    lowered.save(path)
    shown = CliRunner().invoke(main, ["report", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "lowered for cpu" in shown.output
    assert "2 sites" in shown.output


def test_nothing_new_to_rewrite_is_not_lowered_and_says_so() -> None:
    first = onnx_igpc.compress(two_sites(), onnx_igpc.Published(8))
    again = onnx_igpc.compress(
        first.model, onnx_igpc.Published(8), lowering=onnx_igpc.Lowering(setting=ONE, cache=False)
    )
    assert not again.changed
    assert any("onnx-igpc lower" in text for text in again.report.warnings)


def test_page_of_a_lowered_model_tells_what_each_site_became(tmp_path: Path) -> None:
    lowered = lower_model(compressed(), lowering=Lowering("padded-8", cache=False))
    path, page = tmp_path / "lowered.onnx", tmp_path / "lowered.html"
    lowered.save(path)
    shown = CliRunner().invoke(main, ["report", str(path), "--html", str(page), "-q"])
    assert shown.exit_code == 0, shown.output
    text = page.read_text()
    assert "What each site became" in text
    assert lowered.report.lowering is not None
    counts = Counter(site.lowering for site in lowered.report.lowering.sites.values())
    assert sum(counts.values()) == 2
    assert ", ".join(f"{count} {name}" for name, count in counts.most_common()) in text
