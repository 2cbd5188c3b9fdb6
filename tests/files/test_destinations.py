"""Where outputs go: links, pipes, devices and descriptors. No real device is touched."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from onnx_igpc.cli import main
from onnx_igpc.errors import UsageError
from onnx_igpc.files.destinations import destination, is_stdout
from onnx_igpc.graph.model import load_model, open_model, save_model, write_atomically
from tests.helpers import pointwise_model

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and devices are those of POSIX")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(pointwise_model(48, 48).SerializeToString())
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside.onnx"
    proto = pointwise_model(48, 48, seed=1)
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


@pytest.fixture
def null(tmp_path: Path) -> Path:
    """A null device of our own."""
    path = tmp_path / "null"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.open("wb").close()
    except OSError:
        pytest.skip("making a device is not permitted here")
    return path


class Pipe:
    """A FIFO and what came out of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._content = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self._content = self.path.read_bytes()

    def content(self) -> bytes:
        self._reader.join(10)
        assert not self._reader.is_alive(), "nothing was written into the pipe"
        assert self.path.is_fifo(), "the pipe was replaced"
        return self._content


@pytest.fixture
def pipe(tmp_path: Path) -> Pipe:
    return Pipe(tmp_path / "pipe.json")


class TestStreams:
    def test_a_report_goes_into_a_pipe(self, model: Path, pipe: Pipe) -> None:
        result = run("inspect", model, "--ch", 12, "--json", pipe.path)
        assert result.exit_code == 0, result.output
        assert json.loads(pipe.content())["sites"]

    def test_a_model_goes_into_a_pipe(self, model: Path, pipe: Pipe, tmp_path: Path) -> None:
        result = run("compress", model, "--ch", 12, "-o", pipe.path)
        assert result.exit_code == 0, result.output
        onnx.checker.check_model(onnx.load_from_string(pipe.content()))
        assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "pipe.json"}

    def test_a_copy_goes_into_a_pipe(self, model: Path, pipe: Pipe) -> None:
        """Nothing to rewrite: the bytes of the input."""
        result = run("compress", model, "-o", pipe.path, "--ch", 48)
        assert result.exit_code == 0, result.output
        assert pipe.content() == model.read_bytes()

    def test_devices_stay_devices(self, model: Path, null: Path) -> None:
        outputs = ("-o", null, "--json", null)
        result = run("compress", model, "--ch", 12, *outputs)
        assert result.exit_code == 0, result.output
        assert null.is_char_device()
        assert [path.name for path in null.parent.iterdir() if path.name.startswith(".")] == []

    def test_a_link_to_a_device(self, model: Path, null: Path, tmp_path: Path) -> None:
        link = tmp_path / "link.html"
        link.symlink_to(null)
        assert run("compress", model, "--dry-run", "--ch", 12, "--report", link).exit_code == 0
        assert link.is_symlink()
        assert null.is_char_device()

    def test_names_of_stdout(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("/dev/stdout")
        names: list[str | Path] = ["/dev/stdout"]
        if Path("/proc/self/fd").exists():
            names += ["/proc/self/fd/1", "/dev/fd/1", f"/proc/{os.getpid()}/fd/1"]
            names += ["/proc/thread-self/fd/1", tmp_path / "link"]
        assert [name for name in names if not is_stdout(name)] == []
        assert not is_stdout("/dev/fd/2")
        assert not is_stdout("-"), "a dash is for the command line alone"

    @pytest.mark.parametrize("name", ["-", "/proc/self/fd/1"])  # where no file can be put
    def test_every_name_of_stdout(self, name: str, model: Path) -> None:
        if name != "-" and not is_stdout(name):
            pytest.skip("this system has no such file")
        result = run("inspect", model, "--ch", 12, "--json", name)
        assert json.loads(result.stdout)["sites"], "stdout holds nothing but the report"
        written = run("compress", model, "--ch", 12, "-o", name)
        assert written.exit_code == 0, written.output
        onnx.checker.check_model(onnx.load_from_string(written.stdout_bytes))

    def test_stdout_that_is_a_file_is_written_into(self, model: Path, tmp_path: Path) -> None:
        """``--json /dev/stdout > plan.json`` leads to a regular file, which must not be replaced."""
        if not Path("/proc/self/fd").exists():
            pytest.skip("this system has no /proc")
        plan = tmp_path / "plan.json"
        plan.write_text("before\n")
        inode = plan.stat().st_ino
        with plan.open("ab") as file:
            command = ["inspect", str(model), "--ch", "12", "--json", "/proc/self/fd/1"]
            subprocess.run([sys.executable, "-m", "onnx_igpc", *command], stdout=file, check=True)
        assert plan.stat().st_ino == inode
        first, _, rest = plan.read_text().partition("\n")
        assert first == "before"
        assert json.loads(rest)["sites"]

    def test_a_closed_stdout(self, model: Path, tmp_path: Path) -> None:
        """A report for people has nowhere to go; one that was asked for is refused."""

        def closed(*arguments: object) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "onnx_igpc", *map(str, arguments)],
                preexec_fn=lambda: os.close(1),
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )

        output = tmp_path / "o.onnx"
        done = closed("compress", model, "--ch", 12, "-o", output)
        assert (done.returncode, done.stderr) == (0, "")
        onnx.checker.check_model(output)
        for line in (("inspect", model, "--json", "-"), ("compress", model, "-o", "-")):
            done = closed(*line)
            assert done.returncode == 2
            assert done.stderr == "error: cannot write /dev/stdout: it is closed\n"

    def test_descriptors_are_written_into(self, tmp_path: Path) -> None:
        with (tmp_path / "out").open("wb") as file:
            path = Path(f"/dev/fd/{file.fileno()}")
            if destination(path).kind != "descriptor":
                pytest.skip("this system has no /dev/fd")
            write_atomically(path, lambda stream: stream.write(b"content"))
        assert (tmp_path / "out").read_bytes() == b"content"
        with (tmp_path / "out").open("rb") as file, pytest.raises(UsageError, match="reading only"):
            write_atomically(f"/dev/fd/{file.fileno()}", lambda stream: stream.write(b"x"))
        with pytest.raises(UsageError, match=r"cannot write /dev/fd/999: Bad file"):
            write_atomically("/dev/fd/999", lambda stream: stream.write(b"x"))

    def test_a_pipe_without_a_suffix_takes_a_report(self, model: Path, tmp_path: Path) -> None:
        pipe = Pipe(tmp_path / "pipe")
        result = run("compress", model, "--ch", 12, "--dry-run", "--report", pipe.path)
        assert result.exit_code == 0, result.output
        assert json.loads(pipe.content())["sites"]

    def test_a_reader_that_leaves_is_one_line(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        reader = threading.Thread(target=lambda: path.open("rb").close(), daemon=True)
        reader.start()
        with pytest.raises(UsageError, match=r"cannot write .*pipe: Broken pipe"):
            write_atomically(path, lambda stream: [stream.write(b"x" * 2**20) for _ in range(8)])


class TestRefused:
    def test_external_data_needs_a_file(self, outside: Path, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        refused(run("compress", outside, "--ch", 12, "-o", path), "has external data")
        with pytest.raises(UsageError, match="external data"):
            save_model(open_model(outside), path)
        assert path.is_fifo()

    def test_a_socket(self, model: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:  # names of sockets are short
            path = Path(folder) / "s.json"
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
                refused(run("inspect", model, "--json", path), "it is a socket")
                assert path.is_socket()

    def test_a_block_device(self, model: Path, tmp_path: Path) -> None:
        path = tmp_path / "disk.json"
        try:
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 250))
        except OSError:
            pytest.skip("making a device is not permitted here")
        refused(run("compress", model, "-o", path), "it is a block device")
        refused(run("inspect", model, "--json", path), "it is a block device")
        assert path.is_block_device()

    def test_links_in_a_circle(self, model: Path, tmp_path: Path) -> None:
        one, other = tmp_path / "a.json", tmp_path / "b.json"
        one.symlink_to(other)
        other.symlink_to(one)
        refused(run("inspect", model, "--json", one), "lead in a circle")
        refused(run("compress", model, "-o", one), "lead in a circle")
        assert one.is_symlink()

    def test_a_folder(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("folder")
        for name in ("folder", "link"):
            refused(run("compress", model, "-o", tmp_path / name), "it is a folder")
            refused(run("inspect", model, "--json", tmp_path / name), "it is a folder")

    @pytest.mark.parametrize("name", ["none/o.json", "link.json", "model.onnx/o.json"])
    def test_no_folder(self, name: str, model: Path, tmp_path: Path) -> None:
        (tmp_path / "link.json").symlink_to("none/o.json")
        refused(run("inspect", model, "--json", tmp_path / name), "does not exist")
        refused(run("compress", model, "-o", tmp_path / name), "does not exist")

    @pytest.mark.parametrize("option", ["--json", "--report", "--save-sensitivity", "-o"])
    def test_names_that_no_system_takes(self, option: str, model: Path, tmp_path: Path) -> None:
        name = tmp_path / ("x" * 300 + ".json")
        rest = () if option == "-o" else ("-o", tmp_path / "o.onnx")
        refused(run("compress", model, *rest, option, name), "too long")
        with pytest.raises(UsageError, match="cannot write"):
            write_atomically(f"{tmp_path}/a\0b", lambda file: file.write(b""))


class TestLinks:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Path]:
        (tmp_path / "store").mkdir()
        (tmp_path / "links").mkdir()
        return tmp_path / "store"

    def link(self, store: Path, name: str) -> Path:
        """links/<name> -> middle -> store/<name>"""
        middle = store.parent / f"middle-{name}"
        middle.symlink_to(f"store/{name}")
        path = store.parent / "links" / name
        path.symlink_to(Path("..") / middle.name)
        return path

    @pytest.mark.parametrize("there", [True, False], ids=["replaced", "dangling"])
    def test_what_a_link_leads_to_is_replaced(
        self, there: bool, store: Path, model: Path, tmp_path: Path
    ) -> None:
        path, text = self.link(store, "o.onnx"), self.link(store, "o.json")
        if there:
            (store / "o.onnx").write_bytes(b"before")
            os.link(store / "o.onnx", tmp_path / "backup")
        result = run("compress", model, "--ch", 12, "-o", path, "--json", text)
        assert result.exit_code == 0, result.output
        assert path.is_symlink()
        assert text.is_symlink()
        onnx.checker.check_model(store / "o.onnx")
        assert json.loads((store / "o.json").read_text())["sites"]
        assert {each.name for each in store.iterdir()} == {"o.onnx", "o.json"}
        if there:  # whole or not at all: renamed, not overwritten
            assert (tmp_path / "backup").read_bytes() == b"before"

    @pytest.mark.parametrize("ch", [12, 48], ids=["rewritten", "copied"])
    def test_external_data_behind_a_link(self, ch: int, store: Path, outside: Path) -> None:
        """It lies beside the file, and runtimes find it from the link as well."""
        onnxruntime = pytest.importorskip("onnxruntime")
        path = self.link(store, "o.onnx")
        for _ in range(2):
            result = run("compress", outside, "--ch", ch, "-o", path)
            assert result.exit_code == 0, result.output
            assert path.is_symlink()
            for name in (path, store / "o.onnx"):
                load_model(name)
                onnxruntime.InferenceSession(str(name), providers=["CPUExecutionProvider"])
        assert len([each for each in store.iterdir() if not each.is_symlink()]) == 2

    def test_old_data_behind_a_link_goes(self, store: Path, outside: Path, tmp_path: Path) -> None:
        path = self.link(store, "o.onnx")
        for seed in (3, 4):
            other = tmp_path / f"{seed}.onnx"
            proto = pointwise_model(48, 48, seed=seed)
            onnx.save(proto, other, save_as_external_data=True, location=f"{seed}.bin")
            save_model(open_model(other), path)
        assert load_model(path) == load_model(other)
        assert len(list(store.iterdir())) == 2
        assert len(list(path.parent.iterdir())) == 2

    def test_a_link_beside_another_models_data(
        self, store: Path, outside: Path, tmp_path: Path
    ) -> None:
        """A copy keeps the names of its data: one that is taken where the link lies is refused."""
        path = self.link(store, "o.onnx")
        (path.parent / "w.bin").write_bytes(b"another model's")
        refused(run("compress", outside, "--ch", 48, "-o", path), "belongs to another model")
        assert (path.parent / "w.bin").read_bytes() == b"another model's"
