"""Benchmarks: turns, ratios and their intervals, footprints, providers, weights listed as inputs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import onnx_igpc
from onnx_igpc.cli import main
from onnx_igpc.errors import CheckFailedError, ModelError, UsageError
from onnx_igpc.evaluation import contenders
from onnx_igpc.evaluation.benchmark import benchmark
from onnx_igpc.runtime import racing as runners
from onnx_igpc.runtime.footprint import measure, peak_memory
from onnx_igpc.runtime.profile import ExecutionProfile, NodeRun
from onnx_igpc.runtime.racing import MAX_RUNS_A_TURN, MIN_TURN_SECONDS, race, speedup
from onnx_igpc.runtime.session import PROVIDERS
from onnx_igpc.runtime.setting import Settings
from tests import runtime_graphs as graphs
from tests.helpers import pointwise_model


class FakeClock:
    """Time passes only when something runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def runner(self, name: str, seconds: float):  # type: ignore[no-untyped-def]
        def run() -> None:
            self.now += seconds
            self.order.append(name)

        return run


def save(model: onnx.ModelProto, path: Path) -> str:
    onnx.save(model, path)
    return str(path)


def test_models_take_turns_and_short_runs_are_repeated() -> None:
    clock = FakeClock()
    slow, fast = MIN_TURN_SECONDS * 2, MIN_TURN_SECONDS / 4
    runs = [clock.runner("a", slow), clock.runner("b", fast), clock.runner("c", 1e-9)]
    seconds = race(runs, rounds=3, warmup=2, clock=clock)
    np.testing.assert_allclose(seconds, [[slow, fast, 1e-9]] * 3, rtol=1e-4)
    # One call more than is timed: a turn begins with the caches full of what the others left.
    a, b, c = ["a"] * 2, ["b"] * 5, ["c"] * (MAX_RUNS_A_TURN + 1)
    warm = ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert clock.order == warm + a + b + c + b + c + a + c + a + b


def test_interval_holds_the_ratio_and_ignores_what_slows_both() -> None:
    generator = np.random.default_rng(0)
    load = generator.uniform(1, 3, 60)  # the machine is up to three times slower in some rounds
    baseline = 2.0 * load * generator.normal(1, 0.01, 60)
    result = speedup(baseline, load * generator.normal(1, 0.01, 60))
    assert result.low < 2.0 < result.high
    assert result.high - result.low < 0.1
    assert result.low <= result.value <= result.high


@given(st.floats(0.1, 10), st.integers(2, 20))
def test_constant_ratio_has_a_point_interval(ratio: float, rounds: int) -> None:
    seconds = np.linspace(1, 2, rounds)
    result = speedup(seconds * ratio, seconds)
    np.testing.assert_allclose([result.value, result.low, result.high], ratio)


def test_report_of_two_models(tmp_path: Path) -> None:
    paths = [
        save(graphs.classifier(), tmp_path / "a.onnx"),
        save(graphs.classifier(seed=1), tmp_path / "b.onnx"),
    ]
    report = benchmark(
        paths, settings=Settings(batches=(1, 3), threads=1), rounds=4, footprint=False
    )
    assert [(r.batch, r.threads) for r in report.races] == [(1, 1), (3, 1)]
    first, second = report.races[1].timings
    assert first.speedup is None
    assert second.speedup is not None
    assert second.speedup.value == pytest.approx(first.median_ms / second.median_ms)
    assert second.samples_per_second == pytest.approx(3000 / second.median_ms)
    assert report.models[0].file_bytes == Path(paths[0]).stat().st_size
    assert report.models[0].executed.startswith("cpu ran")
    assert report.inputs == "random"
    assert json.loads(json.dumps(report.to_dict()))["provider"] == "cpu"


def test_weights_listed_as_inputs_are_made_constant_and_said_so(tmp_path: Path) -> None:
    model = graphs.classifier()
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [5, 3, 1, 1]))
    path = save(model, tmp_path / "a.onnx")
    before = Path(path).read_bytes()
    [facts] = benchmark([path], rounds=2, footprint=False).models
    assert facts.constant_weights == 1
    [note] = facts.notes
    assert re.fullmatch(
        r"1 weights that the model lists as inputs were made constant: "
        r"[\d.e-]+ ms as it lists them, [\d.e-]+ ms as raced",
        note,
    )
    assert Path(path).read_bytes() == before


def test_external_data_counts_as_size(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model = graphs.classifier(classes=300)
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="w.bin")
    [facts] = benchmark([path], rounds=2, footprint=False).models
    assert facts.file_bytes == path.stat().st_size + (tmp_path / "w.bin").stat().st_size


def test_operators_name_the_models_nodes(tmp_path: Path) -> None:
    path = save(graphs.classifier(dims=(1, 16, 8, 8), classes=16), tmp_path / "a.onnx")
    [facts] = benchmark([path], rounds=2, footprint=False, per_operator=True).models
    assert facts.operators is not None
    assert [run.node for run in facts.operators if "Conv" in run.op_type] == ["conv"]


def test_batch_comes_from_the_models_or_the_shapes(tmp_path: Path) -> None:
    fixed = save(graphs.classifier(dims=(2, 3, 8, 8)), tmp_path / "two.onnx")
    free = save(graphs.classifier(dims=("n", 3, "h", "w")), tmp_path / "free.onnx")
    other = save(graphs.classifier(dims=(1, 3, 8, 8)), tmp_path / "one.onnx")
    [race] = benchmark([fixed], rounds=2, footprint=False).races
    assert race.batch == 2
    shapes = {"x": (4, 3, 6, 6)}
    [race] = benchmark([free], rounds=2, footprint=False, settings=Settings(shapes=shapes)).races
    assert race.batch == 4
    with pytest.raises(UsageError, match=r"different fixed batch sizes: \[1, 2\]"):
        benchmark([fixed, other], rounds=2, footprint=False)
    with pytest.raises(
        UsageError, match="batch 8 was asked for, but a model takes only batches of 1"
    ):
        benchmark([other], settings=Settings(batches=(1, 8)), rounds=2, footprint=False)
    with pytest.raises(UsageError, match="rounds"):
        benchmark([other], rounds=1)
    with pytest.raises(UsageError, match="at least one model"):
        benchmark([])


def test_data_feeds_the_race(tmp_path: Path) -> None:
    path = save(graphs.classifier(), tmp_path / "a.onnx")
    np.save(tmp_path / "d.npy", np.zeros((2, 3, 8, 8), np.float32))
    report = benchmark(
        [path], settings=Settings(batches=4), rounds=2, footprint=False, data=tmp_path / "d.npy"
    )
    assert report.inputs == str(tmp_path / "d.npy")


def test_io_binding_computes_what_a_plain_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU inputs and outputs are bound; the same calls work on the CPU."""
    from onnx_igpc.runtime.session import make_session

    session = make_session(graphs.classifier())
    bound = []
    real = session.io_binding

    def spy() -> object:
        bound.append(real())
        return bound[-1]

    monkeypatch.setattr(runners, "_DEVICE", {"cpu": "cpu"})
    monkeypatch.setattr(session, "io_binding", spy)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    runners.timed_run(session, feeds, "cpu")()
    [scores] = bound[0].copy_outputs_to_cpu()
    np.testing.assert_allclose(scores, session.run(None, feeds)[0])


def test_provider_that_ran_nothing_is_a_failed_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = NodeRun("conv", "Conv", PROVIDERS["cuda"], None, (), 1, 10)
    monkeypatch.setattr(contenders, "read_profile", lambda *a, **k: ExecutionProfile((run,)))
    path = save(graphs.classifier(), tmp_path / "a.onnx")
    with pytest.raises(CheckFailedError, match="cpu ran none of the nodes; cuda ran 1 of 1"):
        benchmark([path], rounds=2, footprint=False)


def test_arithmetic_on_another_provider_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The times are shown, but they are not those of the provider that was asked for."""
    runs = (
        NodeRun("conv", "Conv", PROVIDERS["cuda"], "conv", (), 1, 10),
        NodeRun("shape", "Shape", PROVIDERS["cpu"], None, (), 1, 10),
    )
    monkeypatch.setattr(contenders, "read_profile", lambda *a, **k: ExecutionProfile(runs))
    path = save(graphs.classifier(), tmp_path / "a.onnx")
    report = benchmark([path], rounds=2, footprint=False)
    assert report.failures == (f"{path}: asked for cpu, but onnxruntime ran Conv conv on cuda",)
    assert report.races[0].timings[0].median_ms > 0
    result = CliRunner().invoke(main, ["benchmark", path, "--rounds", "2"])
    assert result.exit_code == 1
    assert "failed:" in result.stdout
    assert "batch 1" in result.stdout


def test_batches_and_threads_as_lists_or_repeated(tmp_path: Path) -> None:
    path, report = save(graphs.classifier(), tmp_path / "a.onnx"), tmp_path / "report.json"
    arguments = ["benchmark", path, "--batch", "1,3", "--batch", "2", "--threads", "1,2"]
    result = CliRunner().invoke(main, [*arguments, "--rounds", "2", "--json", str(report)])
    assert result.exit_code == 0, result.output
    races = json.loads(report.read_text())["races"]
    pairs = [(race["threads"], race["batch"]) for race in races]
    assert pairs == [(1, 1), (1, 3), (1, 2), (2, 1), (2, 3), (2, 2)]
    for wrong in ("0", "-1", "x", "1,", ""):
        refused = CliRunner().invoke(main, ["benchmark", path, "--batch", wrong])
        assert refused.exit_code == 2
        assert "is not a whole number above 0: write 1,8" in refused.stderr


def test_console_shows_limit_operators_and_footprint(tmp_path: Path) -> None:
    path, small = tmp_path / "dense.onnx", tmp_path / "small.onnx"
    onnx.save(pointwise_model(64, 128), path)
    onnx_igpc.compress(path, onnx_igpc.Published(16)).save(small)
    arguments = ["benchmark", str(path), str(small), "--rounds", "2", "--per-operator"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    flat = " ".join(result.stdout.split())
    assert re.search(r"limit [\d.]+x, reached [\d.]+x: \d+% \(\d of 1 sites bound by memory", flat)
    assert "memory read and written, GB/s:" in flat
    assert re.search(r"loads in \d+ ms, peak \d+ MiB", flat)
    assert re.search(r"Conv CPU \d+ [\d.]+ [\d.]+%", flat)
    assert "slowest nodes" in flat
    plain = CliRunner().invoke(main, [*arguments[:-1], "--no-limit"])
    assert "reached" not in plain.stdout
    assert "slowest" not in plain.stdout


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino"])
def test_provider_that_is_not_installed_is_refused(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDERS["cpu"]])
    path = save(graphs.classifier(), tmp_path / "a.onnx")
    result = CliRunner().invoke(main, ["benchmark", path, "--provider", provider])
    assert result.exit_code == 1
    assert result.stdout == ""
    [line] = result.stderr.strip().splitlines()
    assert f"execution provider {provider} is not in the installed onnxruntime" in line
    assert "pip install" in line


def test_footprint_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    small = save(graphs.linear(np.ones((2, 2))), tmp_path / "small.onnx")
    large = save(graphs.linear(np.ones((8, 2_000_000))), tmp_path / "large.onnx")  # 64 MB
    ballast = np.ones(40_000_000)  # 320 MB here must not count there
    reports = [measure(path, threads=1) for path in (small, large)]
    del ballast
    if peak_memory() is None:
        pytest.skip("this system does not tell peak memory")
    peaks = [report.peak_bytes or 0 for report in reports]
    assert peaks[1] - peaks[0] > 50e6
    assert peaks[0] < 300e6
    assert reports[1].load_seconds > 0


def test_footprint_that_fails_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"hello")
    with pytest.raises(ModelError, match=r"measuring its memory failed: .*cannot load") as raised:
        measure(tmp_path / "bad.onnx")
    assert "\n" not in str(raised.value)
