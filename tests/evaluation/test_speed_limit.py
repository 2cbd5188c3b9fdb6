"""The limit of a rewritten model's speed-up: its arithmetic, and on models that were compressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnx_igpc
from onnx_igpc.evaluation import benchmark as benchmark_module
from onnx_igpc.evaluation.benchmark import benchmark
from onnx_igpc.evaluation.speed_limit import SiteWork, site_work, speed_limit
from onnx_igpc.report.benchmark import BenchmarkReport, SpeedLimit
from onnx_igpc.report.tree import Change, RewriteReport, SiteReport, StageReport
from onnx_igpc.runtime.bandwidth import SIZES, Bandwidth, measure_bandwidth
from onnx_igpc.runtime.profile import ExecutionProfile, NodeRun
from onnx_igpc.runtime.setting import Settings
from tests import runtime_graphs as graphs
from tests.helpers import options_of, pointwise_model

FLAT = Bandwidth((1, 10**9), (1e9, 1e9))
"""A gigabyte a second at every size."""

RUNS = 2


def node_run(node: str | None, milliseconds: float, size: int = 0) -> NodeRun:
    """A node that took so long in each of two runs."""
    each = 1000 * milliseconds
    return NodeRun(
        f"{node}_nchwc", "Conv", "CPUExecutionProvider", node, (), RUNS, int(2 * each), each, size
    )


def work(name: str, share: float, *replaced: str) -> SiteWork:
    return SiteWork(name, frozenset({name, *replaced}), share)


def limit_of(runs: list[NodeRun], sites: list[SiteWork], dense_ms: float) -> SpeedLimit:
    found = speed_limit(ExecutionProfile(tuple(runs)), RUNS, sites, FLAT, dense_ms, dense_ms / 2)
    assert isinstance(found, SpeedLimit)
    return found


def test_each_site_is_bound_by_arithmetic_or_memory_or_stays_dense() -> None:
    runs = [
        node_run("a", 8.0, 10**6),  # a quarter of its MACs left: 2 ms, moved in 1 ms
        node_run("b", 4.0, 3 * 10**6),  # 1 ms of arithmetic, but 3 ms to move
        node_run("c", 1.0, 5 * 10**6),  # 5 ms to move at that rate, though dense it took 1 ms
        node_run("other", 5.0, 10**8),
        node_run(None, 2.0),
    ]
    limit = limit_of(runs, [work("a", 0.25), work("b", 0.25), work("c", 0.25)], 20.0)
    assert [site.limit_ms for site in limit.sites] == pytest.approx([2.0, 3.0, 1.0])
    assert limit.outside_ms == pytest.approx(7.0)
    assert limit.limit_ms == pytest.approx(13.0)
    assert limit.speedup == pytest.approx(20 / 13)
    assert limit.reached == pytest.approx(13 / 10)
    assert limit.memory_bound == 2


def test_profiled_times_are_scaled_to_the_unprofiled_median() -> None:
    runs = [node_run("a", 3.0), node_run("other", 1.0)]
    limit = limit_of(runs, [work("a", 0.5)], 2.0)
    assert limit.outside_ms == pytest.approx(0.5)
    assert limit.sites[0].dense_ms == pytest.approx(1.5)
    assert limit.limit_ms == pytest.approx(0.5 + 0.75)


def test_all_nodes_that_a_site_replaced_are_its_own() -> None:
    """In the paper's form BatchNorm and activation are replaced, too."""
    runs = [node_run("conv", 2.0), node_run("act", 2.0), node_run("other", 4.0)]
    limit = limit_of(runs, [work("conv", 0.5, "bn", "act")], 8.0)
    assert limit.sites[0].limit_ms == pytest.approx(2.0)
    assert limit.outside_ms == pytest.approx(4.0)


def test_a_call_that_was_interrupted_does_not_count() -> None:
    interrupted = NodeRun("a", "Conv", "CPUExecutionProvider", "a", (), 5, 100_000, 1000.0)
    assert interrupted.typical_microseconds == 5000.0


def test_site_without_a_node_in_the_profile_means_no_limit() -> None:
    profile = ExecutionProfile((node_run("a", 1.0),))
    found = speed_limit(profile, RUNS, [work("a", 0.5), work("b", 0.5)], FLAT, 1.0, 1.0)
    assert found == "1 of 2 rewritten sites are not in the profile, as b"
    nothing = speed_limit(profile, RUNS, [], FLAT, 1.0, 1.0)
    assert isinstance(nothing, str)


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 1.5), st.integers(0, 10**8)), min_size=1),
    st.floats(0.01, 100),
)
def test_a_limit_lies_between_what_is_outside_and_dense(
    sites: list[tuple[float, float, int]], outside: float
) -> None:
    runs = [node_run(str(i), ms, size) for i, (ms, _, size) in enumerate(sites)]
    shares = [work(str(i), share) for i, (_, share, _) in enumerate(sites)]
    limit = limit_of([*runs, node_run("other", outside)], shares, 10.0)
    assert limit.outside_ms <= limit.limit_ms <= 10.0 * (1 + 1e-9)
    assert limit.speedup >= 1 - 1e-9
    for site in limit.sites:
        assert site.limit_ms <= site.dense_ms


def test_bandwidth_lies_between_measured_sizes() -> None:
    measured = Bandwidth((2**10, 2**20), (100.0, 20.0))
    assert measured.at(2**10) == 100.0
    assert measured.at(2**15) == pytest.approx(60.0)
    assert (measured.at(1), measured.at(0), measured.at(2**30)) == (100.0, 100.0, 20.0)
    assert measured.seconds(2**20) == pytest.approx(2**20 / 20.0)


def test_bandwidth_of_this_machine_is_one() -> None:
    measured = measure_bandwidth("cpu", 1)
    assert measured.sizes == SIZES
    # Any machine that runs this moves more than 50 MB/s and less than 100 TB/s.
    assert all(5e7 < rate < 1e14 for rate in measured.bytes_per_second)


def test_share_of_a_site_is_that_of_its_layout_then_of_what_was_counted() -> None:
    def site(name: str, macs: Change, parameters: Change, **options: object) -> SiteReport:
        values = {"status": "rewritten", "replaced": ["n"], **options}
        return SiteReport(name, 64, 128, macs=macs, parameters=parameters, **values)  # type: ignore[arg-type]

    stages = {"k": StageReport(4, 16, 2048), "l": StageReport(8, 16, 2048)}
    report = RewriteReport(
        sites=[
            # As after a lowering that folded it back to dense.
            site("layout", Change(100, 100), Change(10, 10), **stages),
            site("without L", Change(100, 100), Change(10, 10), k=StageReport(4, 16, 2048)),
            site("macs", Change(100, 25), Change(10, 5)),
            site("parameters", Change(None, None), Change(10, 5)),
            site("neither", Change(), Change()),
            site("kept", Change(100, 100), Change(10, 10), status="kept"),
        ]
    )
    assert [(each.name, each.macs_share) for each in site_work(report)] == [
        ("layout", 0.5),
        ("without L", 0.25),
        ("macs", 0.25),
        ("parameters", 0.5),
    ]
    assert site_work(report)[0].labels == {"layout", "n"}


def test_share_of_a_layout_is_that_of_its_macs() -> None:
    for C, F in ((64, 128), (48, 40), (96, 20)):
        [site] = onnx_igpc.compress(pointwise_model(C, F), onnx_igpc.Published(16)).report.rewritten
        [own] = site_work(RewriteReport(sites=[site]))
        assert own.macs_share == pytest.approx(site.macs.ratio)


# ------------------------------------------------------------------------ on whole models


@pytest.fixture(autouse=True)
def quick_bandwidth(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.name != "test_bandwidth_of_this_machine_is_one":
        monkeypatch.setattr(benchmark_module, "measure_bandwidth", lambda *arguments: FLAT)


def raced(*models: onnx.ModelProto, folder: Path) -> BenchmarkReport:
    paths = [folder / f"{i}.onnx" for i in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        onnx.save(model, path)
    return benchmark(paths, settings=Settings(batches=(1, 2), threads=1), rounds=3, footprint=False)


def compressed(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    return onnx_igpc.compress(model, **options_of(channels_per_group=16, **options)).model


@pytest.mark.parametrize("form", ["linear", "paper"])
def test_pair_of_original_and_compressed_has_a_limit(tmp_path: Path, form: str) -> None:
    dense = pointwise_model(64, 128)
    report = raced(dense, compressed(dense, form=form), folder=tmp_path)
    for race in report.races:
        original, small = race.timings
        assert (original.limit, original.no_limit) == (None, None)
        assert small.no_limit is None
        assert small.limit is not None
        assert race.bandwidth == FLAT
        assert small.limit.reached == pytest.approx(small.limit.limit_ms / small.median_ms)
        assert small.limit.speedup == pytest.approx(original.median_ms / small.limit.limit_ms)
        assert len(small.limit.sites) == 1
    first, second = (race.timings[1].limit for race in report.races)
    assert first is not None
    assert second is not None
    # Twice the samples: twice the bytes.
    assert second.sites[0].memory_ms == pytest.approx(2 * first.sites[0].memory_ms)


def test_bytes_are_those_of_the_input_and_the_output(tmp_path: Path) -> None:
    dense = pointwise_model(64, 128)
    [batch, channels, height, width] = [
        dim.dim_value for dim in dense.graph.input[0].type.tensor_type.shape.dim
    ]
    report = raced(dense, compressed(dense), folder=tmp_path)
    limit = report.races[0].timings[1].limit
    assert limit is not None
    assert channels == 64
    moved = max(batch, 1) * (64 + 128) * height * width * 4
    assert limit.sites[0].memory_ms == pytest.approx(1000 * moved / 1e9)


def test_limit_of_int8_is_that_of_dense_int8(tmp_path: Path) -> None:
    dense = pointwise_model(64, 128)
    [batch, channels, height, width] = [
        dim.dim_value for dim in dense.graph.input[0].type.tensor_type.shape.dim
    ]
    samples = np.random.default_rng(0).standard_normal((8, channels, height, width))
    options = onnx_igpc.Quantization("minmax", setting=onnx_igpc.Setting(threads=1))
    pair = [
        onnx_igpc.quantize(model, samples.astype(np.float32), quantization=options).model
        for model in (dense, compressed(dense))
    ]
    report = raced(*pair, folder=tmp_path)
    original, small = report.races[0].timings
    assert small.no_limit is None
    assert small.limit is not None
    assert small.limit.speedup == pytest.approx(original.median_ms / small.limit.limit_ms)
    moved = max(batch, 1) * (64 + 128) * height * width
    assert small.limit.sites[0].memory_ms == pytest.approx(1000 * moved / 1e9)
    for facts in report.models:
        assert any("its layers ran as" in note and "QLinearConv" in note for note in facts.notes)


def test_reasons_for_no_limit(tmp_path: Path) -> None:
    dense = pointwise_model(64, 128)
    small = compressed(dense)
    quantized = onnx.ModelProto()
    quantized.CopyFrom(small)
    scale = onnx.numpy_helper.from_array(np.array(0.1, np.float32), "dequantized_scale")
    zero = onnx.numpy_helper.from_array(np.array(1, np.uint8), "dequantized")
    quantized.graph.initializer.extend([scale, zero])
    quantized.graph.node.append(
        onnx.helper.make_node("DequantizeLinear", ["dequantized", "dequantized_scale"], ["unused"])
    )
    again = raced(small, small, folder=tmp_path).races[0].timings[1]
    assert again.no_limit == "the first model is rewritten itself"
    mixed = raced(dense, quantized, folder=tmp_path).races[0].timings[1]
    assert mixed.no_limit == "one of the two models is quantized: race it against its like"
    plain = raced(dense, dense, folder=tmp_path).races[0].timings[1]
    assert (plain.limit, plain.no_limit) == (None, None)
    unknown = graphs.identity(("batch", 64, 5, 5))
    stranger = raced(unknown, small, folder=tmp_path)
    assert (stranger.races[0].timings[1].no_limit or "").startswith("1 of 1 rewritten sites")
