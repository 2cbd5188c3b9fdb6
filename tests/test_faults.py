"""Full disks, vanishing folders, killed processes, two writers at once, too little memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import pytest

from onnx_igpc.errors import UsageError
from onnx_igpc.files import atomic as atomic_files
from onnx_igpc.graph.model import load_model, open_model, save_model, write_atomically
from tests.helpers import pointwise_model

resource = pytest.importorskip("resource", reason="limits are those of POSIX")
# Python and onnxruntime take half of it; what the test asks for besides is 1 GiB.
ADDRESS_SPACE = 5 * 2**28


def limited(
    *arguments: str | Path, limits: dict[str, int] | None = None, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with limits of the system on it."""

    def apply() -> None:
        for name, value in (limits or {}).items():
            resource.setrlimit(getattr(resource, name), (value, value))
        # What Python does itself: a write beyond the limit is an error, not the end of the process.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    return subprocess.run(
        [sys.executable, "-m", "onnx_igpc", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        preexec_fn=apply,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def external(folder: Path, seed: int = 0) -> Path:
    """A model with external data."""
    path = folder / f"external{seed}.onnx"
    onnx.save(
        pointwise_model(48, 48, seed=seed),
        path,
        save_as_external_data=True,
        location=f"{path.name}_data",
        size_threshold=0,
    )
    return path


# --------------------------------------------------------------------------- disks


@pytest.mark.parametrize("outside", [False, True], ids=["one file", "external data"])
def test_a_full_disk_costs_nothing(outside: bool, tmp_path: Path) -> None:
    """The write fails half way: one line, and only what was there before is there."""
    source = external(tmp_path) if outside else save(pointwise_model(48, 48), tmp_path / "m.onnx")
    out = tmp_path / "out"
    out.mkdir()
    (out / "small.onnx").write_bytes(b"what was there before")
    result = limited(
        *("compress", source, "-o", out / "small.onnx", "--ch", "12", "-q"),
        limits={"RLIMIT_FSIZE": 4000},
    )
    assert result.returncode == 2, result.stderr
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("error: cannot write")
    assert "File too large" in line
    assert [path.read_bytes() for path in out.iterdir()] == [b"what was there before"]


def test_an_output_folder_that_vanishes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def vanish(file: IO[bytes]) -> None:
        file.write(b"half")
        for path in out.iterdir():
            path.unlink()
        out.rmdir()

    with pytest.raises(UsageError, match=r"cannot write .*m\.onnx: No such file"):
        write_atomically(out / "m.onnx", vanish)
    assert not out.exists()


def test_a_folder_of_inputs_is_not_written_to(tmp_path: Path) -> None:
    """Reading leaves nothing beside the model: such folders are often read-only."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    source = external(inputs)
    before = {path: path.stat().st_mtime_ns for path in inputs.iterdir()}
    inputs.chmod(0o500)
    try:
        result = limited("compress", source, "-o", tmp_path / "out.onnx", "--ch", "12", "-q")
    finally:
        inputs.chmod(0o700)
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in inputs.iterdir()} == before


# --------------------------------------------------------------------------- killed writers


def test_what_a_killed_writer_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.onnx"
    ready = tmp_path / "ready"
    code = (
        "import sys, time, pathlib; from onnx_igpc.graph.model import write_atomically\n"
        "def write(file):\n"
        "    file.write(b'half'); file.flush(); pathlib.Path(sys.argv[2]).touch(); time.sleep(60)\n"
        "write_atomically(sys.argv[1], write)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(target), str(ready)])
    while not ready.exists():
        assert writer.poll() is None
        time.sleep(0.02)
    ready.unlink()
    monkeypatch.setattr(atomic_files, "_STRAY_SECONDS", 0.0)
    write_atomically(target, lambda file: file.write(b"another's"))
    [stray] = set(tmp_path.iterdir()) - {target}
    writer.kill()
    writer.wait()
    assert stray.exists(), "the file of a writer that lives is left alone"
    other = tmp_path / ".m.onnx.notes.tmp"
    other.write_bytes(b"")
    write_atomically(target, lambda file: file.write(b"whole"))
    assert not stray.exists()
    assert target.read_bytes() == b"whole"


def test_young_strays_are_left_alone(tmp_path: Path) -> None:
    """A file is locked just after it is made."""
    stray = tmp_path / ".m.onnx.abc.tmp"
    stray.write_bytes(b"")
    write_atomically(tmp_path / "m.onnx", lambda file: file.write(b"x"))
    assert stray.exists()


@pytest.mark.parametrize("outside", [False, True], ids=["one file", "external data"])
def test_killed_at_any_moment(outside: bool, tmp_path: Path) -> None:
    """Old or new, never half: a writer that saves two models in turns is killed again and again."""
    sources = [
        external(tmp_path, seed)
        if outside
        else save(pointwise_model(48, 48, seed=seed), tmp_path / f"{seed}.onnx")
        for seed in (0, 1)
    ]
    whole = [load_model(path).SerializeToString() for path in sources]
    out = tmp_path / "out"
    out.mkdir()
    target = out / "m.onnx"
    generator = np.random.default_rng(3)
    for _ in range(25):
        writer = multiprocessing.get_context("fork").Process(
            target=_write_for_ever, args=(sources, target), daemon=True
        )
        writer.start()
        time.sleep(float(generator.uniform(0.002, 0.05)))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        if target.exists():
            assert load_model(target).SerializeToString() in whole
    save_model(open_model(sources[0]), target)
    assert load_model(target).SerializeToString() == whole[0]


def _write_for_ever(sources: list[Path], target: Path) -> None:
    models = [open_model(path) for path in sources]
    while True:
        for model in models:
            save_model(model, target)


# --------------------------------------------------------------------------- several at once


def test_several_that_write_the_same_output(tmp_path: Path) -> None:
    """Whoever comes last wins; the model and its data always belong together."""
    sources = [external(tmp_path, seed) for seed in range(3)]
    whole = [load_model(path).SerializeToString() for path in sources]
    out = tmp_path / "out"
    out.mkdir()
    target = out / "m.onnx"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(path, target, 15)) for path in sources]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert load_model(target).SerializeToString() in whole
    assert len(list(out.iterdir())) == 2, "the data of models that were replaced is gone"


def _write_often(source: Path, target: Path, times: int) -> None:
    model = open_model(source)
    for _ in range(times):
        save_model(model, target)


def test_data_that_a_copy_of_the_old_model_uses_is_kept(tmp_path: Path) -> None:
    """cp m.onnx backup.onnx copies no data: writing m.onnx anew must not break the backup."""
    first, second = (external(tmp_path, seed) for seed in (0, 1))
    out = tmp_path / "out"
    out.mkdir()
    save_model(open_model(first), out / "m.onnx")
    (out / "backup").write_bytes((out / "m.onnx").read_bytes())
    save_model(open_model(second), out / "m.onnx")
    assert load_model(out / "backup").SerializeToString() == load_model(first).SerializeToString()
    (out / "backup").unlink()
    save_model(open_model(first), out / "m.onnx")
    save_model(open_model(second), out / "m.onnx")
    assert len(list(out.glob("*.data"))) == 1


# --------------------------------------------------------------------------- memory


def test_too_little_memory_for_calibration(tmp_path: Path) -> None:
    """Activations of 1 GiB a batch where the process may have as much in all."""
    model, data = pointwise_model(3, 64), tmp_path / "data.npy"
    for value in (*model.graph.input, *model.graph.output):
        for axis in (2, 3):
            value.type.tensor_type.shape.dim[axis].dim_value = 512
    np.save(data, np.zeros((16, 3, 512, 512), np.float32))
    output = tmp_path / "out.onnx"
    path = save(model, tmp_path / "wide.onnx")
    result = limited(
        *("compress", path, "-o", output, "--ch", "1", "--calibration", data, "-q"),
        limits={"RLIMIT_AS": ADDRESS_SPACE},
    )
    assert result.returncode == 2, result.stderr
    [line] = result.stderr.strip().splitlines()
    # Which allocation fails first depends on how much the libraries take for themselves.
    assert line.startswith("error: not enough memory")
    assert not output.exists()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_errors_are_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from onnx_igpc.cli import main
    from onnx_igpc.compression import pipeline

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "inspect", fail)
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "m.onnx")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: not enough memory")


def test_a_writer_in_a_thread_shares_nothing(tmp_path: Path) -> None:
    """Threads of one process that write the same file do not remove one another's temporary files."""
    errors: list[BaseException] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(30):
                write_atomically(tmp_path / "f", lambda file: file.write(content))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(bytes([i]) * 1000,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(set((tmp_path / "f").read_bytes())) == 1
