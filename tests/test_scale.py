"""Time and memory grow no faster than the model; benchmarks/scale.py measures large ones.

No clock is read: work is counted in lines of the package that ran, memory by tracemalloc.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from benchmarks.large_model import write_external
from benchmarks.scale import SHAPES, build_model, small_network, write_shards
from onnx_igpc import compress, inspect
from onnx_igpc.calibration.activation_store import ActivationStore
from onnx_igpc.calibration.options import Calibration
from onnx_igpc.graph.model import save_model
from onnx_igpc.planning.options import Published
from onnx_igpc.sites.find import SiteFilter

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = (str(ROOT / "onnx_igpc"), str(ROOT / "passes"))


def lines_run(call: Callable[[], object]) -> int:
    """How many lines of the package ``call`` runs, a line in a loop each time."""
    count = 0

    def local(frame: FrameType, event: str, argument: object) -> object:
        nonlocal count
        count += event == "line"
        return local

    def entered(frame: FrameType, event: str, argument: object) -> object:
        return local if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that arrays and Python's objects took at once while ``call`` ran."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", SHAPES)
def test_work_of_inspect_grows_with_the_nodes(shape: str) -> None:
    small, large = build_model(shape, 200, 4), build_model(shape, 800, 4)
    inspect(small)  # what is done once is done
    assert lines_run(lambda: inspect(large)) < 5 * lines_run(lambda: inspect(small))


@pytest.mark.parametrize("shape", ["chain", "fan"])
def test_work_of_compress_grows_with_the_nodes(shape: str) -> None:
    small, large = build_model(shape, 200, 4), build_model(shape, 800, 4)

    def run(model: object) -> Callable[[], object]:
        return lambda: compress(model, Published(16, init="random"))

    run(small)()
    assert lines_run(run(large)) < 5 * lines_run(run(small))


def test_counting_lines_sees_quadratic_work() -> None:
    """The measure of the tests above tells a square from a straight line."""
    namespace: dict[str, Callable[[int], object]] = {}
    source = (
        "def square(n):\n    for i in range(n):\n        for j in range(n):\n            pass\n"
    )
    exec(compile(source, f"{PACKAGE[0]}/square.py", "exec"), namespace)
    square = namespace["square"]
    assert lines_run(lambda: square(80)) > 10 * lines_run(lambda: square(20))


def test_five_thousand_nodes() -> None:
    report = inspect(build_model("chain", 5000, 10), Published(16))
    assert len(report.sites) == 10


def test_memory_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    """New weights wait on disk: of a layer, less stays than its K and L as they are fitted."""
    channels, ch = 512, 16
    peaks = []
    for layers in (4, 20):
        folder = tmp_path / str(layers)
        folder.mkdir()
        path = write_external(folder, layers, channels)

        def run(path: Path = path) -> None:
            compress(path, Published(ch, init="random")).save(path.parent / "small.onnx")

        if not peaks:
            run()  # what is loaded once is loaded
        peaks.append(peak_bytes(run))
    per_layer = (peaks[1] - peaks[0]) / 16
    assert per_layer < 2 * channels * ch * 8


@pytest.mark.parametrize("init", ["fitted", "random"])
@pytest.mark.parametrize("include", [["*"], ["conv0"]])
def test_memory_is_that_of_the_largest_weight(
    tmp_path: Path, init: str, include: list[str]
) -> None:
    """Reading, fitting, checking and copying hold one weight at a time, and nothing of its size."""
    channels = 1024
    path = write_external(tmp_path, 2, channels)

    def run() -> None:
        compress(path, Published(16, init=init), sites=SiteFilter(include=include)).save(
            tmp_path / "small.onnx"
        )

    run()  # what is loaded once is loaded
    constant = 8 * 2**20
    assert peak_bytes(run) < 1.5 * channels**2 * 4 + constant


@pytest.mark.parametrize("sequential", [False, True])
def test_memory_of_calibration_does_not_grow_with_the_samples(
    tmp_path: Path, sequential: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")
    # Nothing is kept in memory, as with activations beyond its limit.
    monkeypatch.setattr(ActivationStore.__init__, "__defaults__", (1,))
    save_model(small_network(16), tmp_path / "model.onnx")
    peaks = []
    for samples in (64, 512):
        folder = tmp_path / f"shards{samples}"
        folder.mkdir()
        write_shards(folder, samples, 16)

        def run(folder: Path = folder, samples: int = samples) -> None:
            compress(
                tmp_path / "model.onnx",
                Published(16),
                calibration=Calibration(folder, samples=samples, sequential=sequential),
            )

        if not peaks:
            run()
        peaks.append(peak_bytes(run))
    assert peaks[1] < 1.3 * peaks[0]
