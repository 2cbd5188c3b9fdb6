"""The whole of it on small networks: what is written, what is chosen, stopped and started again."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_igpc
from onnx_igpc import Dataset, Optimization, OptimizationReport, Recipe, Setting
from onnx_igpc.compression.optimization import choice
from onnx_igpc.compression.optimization import optimize as optimize_module
from onnx_igpc.compression.optimization.exploration import INT8_TRAINED
from onnx_igpc.compression.optimization.workbench import Journal
from onnx_igpc.errors import DataError, UsageError
from onnx_igpc.report.benchmark import BenchmarkReport, Race
from onnx_igpc.report.optimization import PictureReport
from onnx_igpc.runtime.racing import Interval
from tests.compression.optimization.conftest import raced
from tests.compression.test_keep import valued
from tests.planning.test_budget import CHANNELS, classifier

DIGITS = Path(__file__).parents[3] / "sample_models" / "digits_net.onnx"
Files = tuple[Path, Path]
FILES = {"model.onnx", "report.html", "report.json", "commands.sh", "data"}


pytestmark = pytest.mark.usefixtures("quick")


def make_files(folder: Path) -> Files:
    """A classifier, one layer of which can be made small at no cost, and 160 samples."""
    values = np.random.default_rng(3).standard_normal((160, CHANNELS, 6, 6)).astype(np.float32)
    onnx.save(classifier(), folder / "model.onnx")
    np.savez(folder / "data.npz", x=values)
    return folder / "model.onnx", folder / "data.npz"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return make_files(tmp_path)


def options(**changed: Any) -> Optimization:
    made = Optimization(
        keep="agreement=80%", setting=Setting(threads=1), shares=(30,), recipe=Recipe(epochs=1)
    )
    return replace(made, **changed)


@dataclass(frozen=True)
class Done:
    """A finished run."""

    files: Files
    folder: Path
    report: OptimizationReport
    log: list[str]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, quick: None) -> Done:
    place = tmp_path_factory.mktemp("optimized")
    files, log = make_files(place), list[str]()
    report = onnx_igpc.optimize(*files, place / "best", optimization=options(), log=log.append)
    return Done(files, place / "best", report, log)


def test_what_is_written(done: Done) -> None:
    assert {file.name for file in done.folder.iterdir()} == FILES
    assert not done.folder.with_name("best.work").exists()
    text = (done.folder / "report.json").read_text()
    assert OptimizationReport.from_json(text) == done.report
    assert json.loads(text)["images"] == {
        "source": str(done.files[1]),
        "total": 160,
        "fit": 80,
        "choose": 80,
        "state": 0,
    }
    assert "160 images: 80 to fit to, 80 held out; the promise is agreement=80%" in done.log[0]


def test_the_verdict_has_five_lines(done: Done) -> None:
    heads = [line.partition(":")[0] for line in done.report.verdict]
    assert heads == ["chosen", "latency", "agreement", "size", "next"]
    chosen = done.report.chosen_point
    assert (
        f"on 80 held-out images, by which it was chosen among {len(done.report.points) - 1}"
        in (done.report.verdict[2])
    )
    assert f"{chosen.file_bytes / 1e3:.3g} kB" in done.report.verdict[3]


def test_the_page_has_every_point(done: Done) -> None:
    page = html.unescape((done.folder / "report.html").read_text())
    assert all(point.name in page for point in done.report.points)
    assert 'id="chart-tried"' in page
    assert page.count('class="chosen"') == 2  # the point, and the legend
    assert all(line.partition(": ")[2] in page for line in done.report.verdict)


def test_the_chosen_model_does_what_is_said_of_it(done: Done) -> None:
    data = done.folder / "data" / "choose.npz"
    found = onnx_igpc.verify(done.files[0], done.folder / "model.onnx", data)
    assert found.classifier is not None
    assert found.classifier.agreement == done.report.chosen_point.damage.agreement


def test_the_fastest_that_holds_is_chosen(done: Done) -> None:
    points, chosen = done.report.points, done.report.chosen_point
    assert chosen.holds
    assert chosen.milliseconds is not None
    assert not [p for p in points if p.holds and (p.milliseconds or 0) < chosen.milliseconds / 1.02]
    assert {point.precision for point in points} == {"fp32", "int8"}
    assert [point.name for point in points if point.cut]


def test_every_command_is_one(files: Files, tmp_path: Path) -> None:
    """The script has every step that was done, and the first of them make the same bytes again."""
    folder = tmp_path / "best"
    report = onnx_igpc.optimize(*files, folder, optimization=options(shares=()))
    lines = (folder / "commands.sh").read_text().splitlines()
    done = [step.command for step in report.steps if step.status == "done"]
    assert [line for line in lines if line.startswith("onnx-igpc")] == done
    (folder / "steps").mkdir()
    program = f"{sys.executable} -m onnx_igpc"
    quantized = next(line for line in done if line is not None and " quantize " in f" {line}")
    subprocess.run(
        quantized.replace("onnx-igpc", program, 1), shell=True, cwd=folder, check=True, timeout=300
    )
    again = (folder / "steps" / "int8.onnx").read_bytes()
    assert report.chosen == "int8"
    assert again == (folder / "model.onnx").read_bytes()


@pytest.mark.parametrize(("precision", "others"), [("fp32", {"fp32"}), ("int8", {"int8"})])
def test_the_precision_is_kept(
    files: Files, tmp_path: Path, precision: Any, others: set[str]
) -> None:
    wanted = options(precision=precision, shares=())
    report = onnx_igpc.optimize(*files, tmp_path / "best", optimization=wanted)
    assert {point.precision for point in report.points[1:]} <= others
    assert report.chosen_point.precision in others


def test_where_nothing_holds_the_original_is_the_answer(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(models: Sequence[Path], **_: Any) -> BenchmarkReport:
        found = raced(models)
        times = tuple(
            replace(t, median_ms=50.0, speedup=t.speedup and Interval(1.0, 0.9, 1.1))
            for t in found.races[0].timings
        )
        return replace(found, races=(Race(1, 1, times),))

    monkeypatch.setattr(choice, "benchmark", slow)
    wanted = options(shares=())
    report = onnx_igpc.optimize(*files, tmp_path / "best", optimization=wanted)
    assert report.chosen == "original"
    assert report.verdict[0].startswith("chosen: the original as it is: ")
    assert (tmp_path / "best" / "model.onnx").read_bytes() == files[0].read_bytes()


def test_labelled_data_gives_the_accuracy_and_chooses_nothing(files: Files, tmp_path: Path) -> None:
    values = np.random.default_rng(9).standard_normal((30, CHANNELS, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "val.npz", x=values, labels=np.arange(30) % 5)
    val = Dataset(tmp_path / "val.npz")
    wanted = options(shares=())
    report = onnx_igpc.optimize(*files, tmp_path / "best", val=val, optimization=wanted)
    assert report.verdict[2].startswith("accuracy: ")
    assert "on 30 labelled images of val.npz, which chose nothing" in report.verdict[2]
    assert report.report.verify is not None
    assert report.report.verify.samples == 30


def test_values_that_no_image_has_are_doubted() -> None:
    fine, wild = (
        PictureReport(shape=[3, 2, 2], low=0.0, high=high, mean=0.0, deviation=0.0, picture="")
        for high in (255.0, 32000.0)
    )
    assert not optimize_module._doubts([fine])
    assert "reach 3.2e+04" in optimize_module._doubts([fine, wild])[0]


def test_values_are_kept_by_their_error(tmp_path: Path) -> None:
    onnx.save(valued(), tmp_path / "model.onnx")
    values = np.random.default_rng(3).standard_normal((40, 16, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=values)
    wanted = options(keep=None, shares=())
    data = tmp_path / "data.npz"
    report = onnx_igpc.optimize(tmp_path / "model.onnx", data, tmp_path / "o", optimization=wanted)
    assert report.promise == "output=0.05"
    assert report.chosen_point.damage.relative_error is not None
    assert report.chosen_point.damage.relative_error <= 0.05
    assert "output=0.05" in (tmp_path / "o" / "report.html").read_text()


class KilledError(BaseException):
    """As if the process had ended: nothing in the package handles it."""


def killed_at_every_step(
    files: Files, folder: Path, wanted: Optimization, patch: pytest.MonkeyPatch
) -> set[str]:
    """Run until it is done, killed once before each value is kept; the names of those."""
    write = Journal.write
    killed: set[str] = set()

    def deadly(self: Journal, name: str, value: object) -> None:
        if name not in killed:
            killed.add(name)
            raise KilledError
        write(self, name, value)

    patch.setattr(Journal, "write", deadly)
    while True:
        try:
            onnx_igpc.optimize(*files, folder, optimization=wanted)
        except KilledError:
            assert not folder.exists()
            continue
        return killed


def compare_killed(
    files: Files, wanted: Optimization, patch: pytest.MonkeyPatch
) -> OptimizationReport:
    """Killed at every step or not, it ends with the same file and the same points."""
    ours, theirs = (files[0].with_name(name) for name in ("whole", "killed"))
    whole = onnx_igpc.optimize(*files, ours, optimization=wanted)
    killed = killed_at_every_step(files, theirs, wanted, patch)
    assert all(
        f"step {step.name}" in killed
        or (f"skip {step.name}" in killed and step.status == "skipped")
        for step in whole.steps
    )
    assert (ours / "model.onnx").read_bytes() == (theirs / "model.onnx").read_bytes()
    report = OptimizationReport.from_json((theirs / "report.json").read_text())
    assert report.points == whole.points
    assert report.chosen == whole.chosen
    return whole


def test_digits_killed_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = np.load(DIGITS.with_name("digits_calibration.npz"))
    name = next(each for each in held.files if each != "labels")
    np.savez(tmp_path / "few.npz", **{name: held[name][:70]})
    (tmp_path / "model.onnx").symlink_to(DIGITS)
    wanted = options(keep=None, shares=())
    whole = compare_killed((tmp_path / "model.onnx", tmp_path / "few.npz"), wanted, monkeypatch)
    assert whole.chosen == "int8"


def test_a_cut_killed_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    onnx.save(valued(), tmp_path / "model.onnx")
    values = np.random.default_rng(3).standard_normal((40, 16, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=values)
    # A promise that the cut breaks, so that it is trained back.
    wanted = options(keep="output=0.05", shares=(40,))
    whole = compare_killed((tmp_path / "model.onnx", tmp_path / "data.npz"), wanted, monkeypatch)
    assert "cut to 40 %, trained" in {step.name for step in whole.steps if step.status == "done"}


def test_training_for_int8_killed_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    onnx.save(valued(), tmp_path / "model.onnx")
    values = np.random.default_rng(3).standard_normal((40, 16, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=values)
    files = tmp_path / "model.onnx", tmp_path / "data.npz"
    # More than int8 can keep.
    recipe = Recipe(epochs=20, lr=1e-4)
    wanted = options(keep="output=0.00001", shares=(), recipe=recipe)
    whole = compare_killed(files, wanted, monkeypatch)
    trained = next(point for point in whole.points if point.name == INT8_TRAINED)
    assert trained.trained
    assert trained.precision == "int8"
    assert not trained.cut
    assert not trained.holds
    assert whole.chosen_point.precision == "fp32"


def test_a_finished_run_is_not_done_again(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = options(shares=())
    report = onnx_igpc.optimize(*files, tmp_path / "best", optimization=wanted)
    monkeypatch.setattr(choice, "benchmark", None)
    (tmp_path / "best.work").mkdir()  # as if it had ended just before this was removed
    assert onnx_igpc.optimize(*files, tmp_path / "best", optimization=wanted) == report
    assert not (tmp_path / "best.work").exists()
    with pytest.raises(UsageError, match="is there already, from another run"):
        onnx_igpc.optimize(*files, tmp_path / "best", optimization=options(keep=None))


def test_the_work_of_another_run_is_not_taken(files: Files, tmp_path: Path) -> None:
    work = tmp_path / "best.work"
    work.mkdir()
    (work / "key").write_text("another")
    with pytest.raises(UsageError, match="left of a run with another model"):
        onnx_igpc.optimize(*files, tmp_path / "best", optimization=options())
    (work / "key").rename(work / "something")
    with pytest.raises(UsageError, match="is in the way"):
        onnx_igpc.optimize(*files, tmp_path / "best", optimization=options())


def test_without_time_the_original_is_left(files: Files, tmp_path: Path) -> None:
    wanted = options(seconds=1e-3)
    report = onnx_igpc.optimize(*files, tmp_path / "best", optimization=wanted)
    assert report.chosen == "original"
    assert "more --time: there was none for" in report.verdict[4]


def test_what_was_not_tried_is_not_said_to_lose(files: Files, tmp_path: Path) -> None:
    wanted = options(seconds=0.01, shares=(60, 40, 20))
    report = onnx_igpc.optimize(*files, tmp_path / "best", optimization=wanted)
    notes = {step.name: step.note for step in report.steps}
    assert notes["cut to 60 %"] == "no time is left"
    assert notes["cut to 40 %"] == "there is no cut to 60 %: no time is left"
    assert notes["cut to 20 %"] == notes["cut to 40 %"]


def test_what_cannot_be_is_refused_before_any_work(files: Files, tmp_path: Path) -> None:
    model, data = files
    with pytest.raises(UsageError, match="takes 1,000 images"):
        onnx_igpc.optimize(model, data, tmp_path / "o", optimization=options(keep="agreement=98%"))
    with pytest.raises(UsageError, match="does not exist"):
        onnx_igpc.optimize(model, data, tmp_path / "no" / "o")
    with pytest.raises(UsageError, match="by its path"):
        onnx_igpc.optimize(model, Dataset(np.zeros((40, CHANNELS, 6, 6))), tmp_path / "o")
    with pytest.raises(DataError, match="no such file"):
        onnx_igpc.optimize(model, tmp_path / "nothing", tmp_path / "o")
    with pytest.raises(UsageError, match="above 0"):
        options(seconds=0)
    with pytest.raises(UsageError, match="precision must be one of fp32, int8, best"):
        options(precision="fp16")
    with pytest.raises(UsageError, match="a share must lie between"):
        options(shares=(100,))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.npz", "model.onnx"]


def test_a_model_without_residual_blocks_has_no_cuts_of_them(done: Done) -> None:
    steps = {step.name: step for step in done.report.steps}
    assert steps["cut of blocks to 90 %"].status == "skipped"
    assert "there are none that could be" in (steps["cut of blocks to 90 %"].note or "")
